"""Dimensions by made-up networks and clips whose scores are known."""

import pytest
import torch
from sklearn.datasets import load_sample_image

from pusa.data import video
from pusa.evaluation.backbones.registry import Loaded, load
from pusa.evaluation.metrics.camera_motion import CameraMotion, asked_move, moves
from pusa.evaluation.metrics.catalogue import build, build_all
from pusa.evaluation.metrics.dynamic_degree import DynamicDegree
from pusa.evaluation.metrics.frames import FileFrames, TensorFrames, batches, windows
from pusa.evaluation.metrics.motion_smoothness import MotionSmoothness
from pusa.evaluation.metrics.subject_consistency import SubjectConsistency
from pusa.evaluation.metrics.temporal_flickering import TemporalFlickering
from tests.evaluation.clips_for_tests import camera


@pytest.fixture(scope="module")
def clip() -> TensorFrames:
    china = torch.from_numpy(load_sample_image("china.jpg").copy()).movedim(-1, 0)
    return TensorFrames(camera(china, "pan_right"), 8.0)


@pytest.fixture(scope="module")
def standins():
    return build_all("standin")


def paths(**edges: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Grids in which the points that the benchmark looks at go by (x, y)."""
    moved = torch.zeros(10, 10, 2, dtype=torch.long)
    places = {"top": (0, 5), "bottom": (9, 5), "left": (5, 0), "right": (5, 9)}
    for name, path in edges.items():
        moved[places[name]] = torch.tensor(path)
    return torch.zeros(100, 2, dtype=torch.long), moved.reshape(100, 2)


EDGES = [
    ({}, {"static"}),
    ({"top": (3, 0), "bottom": (3, 0)}, {"pan_left"}),
    ({"top": (0, -3), "bottom": (0, 3)}, {"zoom_in"}),
    ({"left": (3, 0), "right": (-3, 0)}, {"zoom_out"}),
    ({"top": (3, -3), "bottom": (3, 3), "left": (0, 3), "right": (0, 3)},
     {"pan_left", "zoom_in", "tilt_up"}),
    ({"top": (3, 0), "left": (3, 0)}, set()),
    ({"top": (1, 0), "bottom": (1, 0)}, {"static"}),  # 1 is not above 0.005 * 200
]  # fmt: skip


@pytest.mark.parametrize(("edges", "seen"), EDGES)
def test_moves_follow_from_the_sixth_points_of_the_edges(edges, seen):
    assert moves(*paths(**edges), shorter=200) == seen


def test_points_are_cut_to_whole_pixels_before_they_are_compared():
    def network(frames, grid):
        return torch.full((100, 2), 3.9), torch.full((100, 2), 5.1)  # 3 -> 5, not 1.2

    clip = TensorFrames(torch.zeros(2, 3, 300, 300, dtype=torch.uint8))
    dimension = CameraMotion(Loaded("fake", "tracking", network))
    assert dimension.score_video(clip, prompt="camera pans left").score == 1


def test_a_prompt_without_a_move_is_refused():
    assert asked_move("a bay, camera tilts down") == "tilt_down"
    with pytest.raises(ValueError, match="asks for no move"):
        asked_move("a bay at night")


@pytest.mark.parametrize(
    ("frames", "fps", "moving", "kept", "needed", "dynamic"),
    [(81, 16.0, 10, 41, 10, 1), (81, 16.0, 9, 41, 10, 0), (10, 8.0, 2, 10, 2, 1),
     (10, 8.0, 1, 10, 2, 0),
     (14, 8.0, 4, 14, 4, 1), (6, 24.0, 0, 2, 0, 1), (1, 8.0, 0, 1, 0, 0), (9, 20.0, 1, 5, 1, 1)],
)  # fmt: skip
def test_dynamic_counts_pairs_that_move(frames, fps, moving, kept, needed, dynamic):
    """The rule's numbers by hand: 81 frames at 16 fps are 41 kept ones of which 10 pairs move."""
    seen = 0

    def flow(first, last):
        nonlocal seen
        places = torch.arange(seen, seen + len(first))
        seen += len(first)
        speed = torch.where(places < moving, 6.1, 5.9) * 64 / 256
        return torch.stack([speed, torch.zeros(len(first))], 1)[:, :, None, None].expand(
            -1, -1, 64, 72
        )

    clip = TensorFrames(torch.zeros(frames, 3, 64, 72, dtype=torch.uint8), fps)
    score = DynamicDegree(Loaded("fake", "flow", flow)).score_video(clip)
    assert score.score == dynamic
    assert (score.extras["kept_frames"], score.extras["needed_pairs"]) == (kept, needed)


@pytest.mark.parametrize("frames", [3, 4, 7, 8])
def test_smoothness_compares_odd_frames_with_what_is_between_even_ones(frames):
    pixels = torch.arange(frames, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 18, 20) * 10
    pixels = pixels.clone()
    pixels[1] += 6

    def middle(first, last):
        assert first.shape[-2:] == (32, 32)
        return (first + last) / 2 + 0.9 / 255  # 0.9 levels, which the cut takes away

    dimension = MotionSmoothness(Loaded("fake", "interpolation", middle), batch_size=2)
    pairs = (frames - 1) // 2
    score = dimension.score_video(TensorFrames(pixels))
    assert score.score == pytest.approx((255 - 6 / pairs) / 255, abs=1e-9)
    assert score.num_frames == frames


def test_flickering_is_the_mean_difference_of_neighbours():
    pixels = torch.tensor([0, 51, 0, 0], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    score = TemporalFlickering(batch_size=2).score_video(TensorFrames(pixels))
    assert score.score == pytest.approx((255 - 34) / 255)


@pytest.mark.parametrize(
    "name", ["subject_consistency", "motion_smoothness", "temporal_flickering"]
)
def test_one_frame_is_too_short(standins, name):
    clip = TensorFrames(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="frames or more"):
        standins[0][name].score_video(clip)


def test_the_input_image_is_asked_for(standins, clip):
    with pytest.raises(ValueError, match="give a reference"):
        standins[0]["i2v_subject"].score_video(clip)


def test_another_kind_of_backbone_is_refused():
    with pytest.raises(ValueError, match="'features', not 'flow'"):
        SubjectConsistency(Loaded("fake", "flow", abs))
    with pytest.raises(ValueError, match="unknown; use one of i2v_subject"):
        build("beauty")


def test_batches_do_not_change_the_numbers(clip):
    backbone = load("efficientnet-lite0")
    found = [SubjectConsistency(backbone, batch_size=n).score_video(clip) for n in (1, 4)]
    assert found[0].score == pytest.approx(found[1].score, abs=1e-6)


def test_a_file_is_gone_through_frame_by_frame_and_again(clip, tmp_path):
    video.write_video(tmp_path / "clip.mp4", clip.pixels, 24)
    frames = FileFrames(tmp_path / "clip.mp4")
    whole, info = video.read_frames(tmp_path / "clip.mp4")
    assert (frames.num_frames, frames.fps) == (len(whole), info.fps)
    for _ in range(2):
        assert torch.equal(torch.cat(list(batches(frames, 4))), whole)
    parts = list(windows(frames, 4))
    assert [len(part) for part in parts] == [5, 5]
    assert torch.equal(parts[1], whole[4:9])
    assert torch.equal(torch.cat(list(windows(frames, 8, 2))), whole[::2])


def test_no_video_is_no_score():
    with pytest.warns(UserWarning, match="compute"), pytest.raises(ValueError, match="no video"):
        TemporalFlickering().compute()
