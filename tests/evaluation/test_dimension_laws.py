"""What every dimension must say of still, real, shuffled, noisy and filmed clips, with stand-ins.

The orders are those that VBench's own program shows with the same networks.
"""

import functools
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

from pusa.data import video
from pusa.evaluation.metrics.camera_motion import MOVES
from pusa.evaluation.metrics.catalogue import DIMENSIONS, build_all
from pusa.evaluation.metrics.frames import TensorFrames
from tests.evaluation.clips_for_tests import SIZES, camera, real_clip

COUNT = 9
CONSISTENT = [
    "i2v_subject", "i2v_background", "subject_consistency", "background_consistency",
    "motion_smoothness", "temporal_flickering",
]  # fmt: skip


@pytest.fixture(scope="module")
def standins():
    return build_all("standin")


@pytest.fixture(scope="module")
def china() -> torch.Tensor:
    return torch.from_numpy(load_sample_image("china.jpg").copy()).movedim(-1, 0)  # (3, 427, 640)


@functools.cache
def clips(name: str) -> dict[str, TensorFrames]:
    """Shuffled is all but the first frame: with another first frame, the likeness to it might rise
    though the order is lost (carphone's does)."""
    real, fps = real_clip(name, COUNT, *SIZES[name])
    order = 1 + torch.randperm(COUNT - 1, generator=torch.Generator().manual_seed(0))
    pixels = {
        "real": real, "still": real[:1].repeat(3, 1, 1, 1),
        "shuffled": torch.cat([real[:1], real[order]]),
    }  # fmt: skip
    return {kind: TensorFrames(frames, fps) for kind, frames in pixels.items()}


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str, Path]:
    """The first frame of each clip."""
    folder = tmp_path_factory.mktemp("references")
    for name in SIZES:
        video.write_image(folder / f"{name}.png", clips(name)["real"].pixels[0])
    return {name: folder / f"{name}.png" for name in SIZES}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dimension", CONSISTENT)
def test_still_is_above_real_is_above_shuffled(standins, references, dimension, name):
    measured = standins[0][dimension]
    still, real, shuffled = (
        measured.score_video(clips(name)[kind], references[name]).score
        for kind in ("still", "real", "shuffled")
    )
    assert still > real > shuffled
    assert 0.99 < still <= 1 + 1e-6


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dimension", ["i2v_subject", "i2v_background"])
def test_another_input_image_lowers_the_score(standins, references, dimension, name):
    others = [other for other in SIZES if other != name]
    scores = {
        image: standins[0][dimension].score_video(clips(name)["real"], references[image]).score
        for image in SIZES
    }
    assert scores[name] > max(scores[other] for other in others) + 0.05


@pytest.mark.parametrize("name", SIZES)
def test_noise_lowers_subject_consistency(standins, name):
    """On frames larger than the network's: where they are enlarged to 224, the noise becomes coarse
    and hides in what frames differ (bikes at 136x320 scores higher with it)."""
    height, width = SIZES[name]
    clean, _ = real_clip(name, COUNT, 2 * height, 2 * width)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = (clean + 40 * noise).round().clamp(0, 255).to(torch.uint8)
    consistency = standins[0]["subject_consistency"]
    found = [consistency.score_video(TensorFrames(pixels)).score for pixels in (clean, noisy)]
    assert found[0] > found[1] + 0.01


@pytest.mark.parametrize("name", SIZES)
def test_a_still_clip_is_not_dynamic_and_a_real_one_is(standins, name):
    degree = standins[0]["dynamic_degree"]
    assert degree.score_video(clips(name)["still"]).score == 0
    assert degree.score_video(TensorFrames(*real_clip(name, 43, *SIZES[name]))).score == 1


def test_blur_lowers_imaging_quality(standins, china):
    sharp = china[None, :, 100:260, 200:440]
    blurred = F.avg_pool2d(sharp.float(), 5, stride=1, padding=2).to(torch.uint8)
    quality = standins[0]["imaging_quality"]
    assert (
        quality.score_video(TensorFrames(sharp)).score
        > quality.score_video(TensorFrames(blurred)).score + 0.2
    )


@pytest.mark.parametrize("words", MOVES)
def test_every_move_over_a_picture_is_seen(standins, china, words):
    clip = TensorFrames(camera(china, MOVES[words]))
    score = standins[0]["camera_motion"].score_video(clip, prompt=f"a temple, {words}")
    assert score.score == 1, score.extras
    assert (score.extras["seen"] == ["static"]) == (MOVES[words] == "static")


def test_aesthetic_quality_is_missing_where_nobody_ships_weights(standins):
    ready, missing = standins
    assert set(ready) == set(DIMENSIONS) - {"aesthetic_quality"}
    assert "no standin backbone" in missing["aesthetic_quality"]
