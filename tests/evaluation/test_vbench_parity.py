"""Our dimensions beside those of the `vbench` package, on real clips and with the same networks.

vbench 0.1.5 is installed without its dependencies into a folder of its own, and run in a process of
its own (vbench_upstream.py says what is replaced there).
"""

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.nn import functional as F

from pusa.data import video
from pusa.evaluation.backbones.registry import Loaded, load
from pusa.evaluation.metrics.catalogue import DIMENSIONS, build
from pusa.evaluation.metrics.frames import FileFrames
from pusa.evaluation.metrics.resize import Resize
from tests.evaluation.clips_for_tests import real_clip
from tests.evaluation.vbench_upstream import aesthetic_head

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("vbench_upstream.py")
# Name, frames, height, width, prompt: different lengths, sides beyond 512 and off multiples of 16.
CLIPS = [
    ("bikes.mp4", 14, 136, 318, "camera pans left"),
    ("bigbuckbunny.mp4", 7, 360, 640, "camera static"),
    ("carphone_pristine.mp4", 13, 144, 176, "camera static"),
]


@dataclass(frozen=True)
class Given:
    clips: tuple[Path, ...]
    images: tuple[Path, ...]
    theirs: dict[str, list]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Given:
    folder = tmp_path_factory.mktemp("vbench")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    installed = subprocess.run(
        [*pip, str(folder / "package"), "vbench==0.1.5"], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"pip could not install vbench==0.1.5: {installed.stderr.strip()[-300:]}")
    clips, images = zip(*(cut(folder, *clip) for clip in CLIPS), strict=True)
    pairs = [f"{clip}:{image}" for clip, image in zip(clips, images, strict=True)]
    command = [sys.executable, str(SCRIPT), str(folder / "package"), *pairs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Given(clips, images, json.loads(done.stdout.splitlines()[-1]))


def cut(
    folder: Path, name: str, frames: int, height: int, width: int, prompt: str
) -> tuple[Path, Path]:
    """The beginning of a real clip, made smaller, and the frame after it as an input image."""
    pixels, fps = real_clip(name, frames + 1, height, width)
    clip, image = folder / f"{name[:-4]}, {prompt}-0.mp4", folder / f"{name[:-4]}.png"
    video.write_video(clip, pixels[:-1], fps)
    video.write_image(image, pixels[-1])
    return clip, image


def dimension_of(name: str, resize: Resize):
    if name != "aesthetic_quality":
        return build(name, resize=resize)
    head, features = aesthetic_head(), load("efficientnet-lite0").network
    network = Loaded("line", "aesthetic", lambda x: head(F.normalize(features(x), dim=-1))[:, 0])
    return DIMENSIONS[name](network, resize)


@pytest.fixture(scope="module")
def ours(given):
    """The dimension and its scores of the clips, measured once."""
    return functools.cache(functools.partial(measured, given))


def measured(given: Given, name: str, resize: Resize = "board"):
    dimension = dimension_of(name, resize)
    scores = [
        dimension.score_video(FileFrames(clip), image, clip.name)
        for clip, image in zip(given.clips, given.images, strict=True)
    ]
    for score in scores:
        dimension.update(score)
    return dimension, scores


@pytest.mark.parametrize("name", DIMENSIONS)
def test_a_dimension_agrees_with_the_package(given, ours, name):
    _, scores = ours(name)
    found = [score.score for score in scores]
    differences = [abs(a - b) for a, b in zip(found, given.theirs[name], strict=True)]
    print(f"{name}: at most {max(differences):.2g} apart; {found}")
    assert max(differences) <= (0 if name == "temporal_flickering" else 1e-4)


@pytest.mark.parametrize("name", ["i2v_subject", "i2v_background"])
def test_with_todays_transforms_the_modern_way_of_resizing_agrees(given, ours, name):
    modern, board = (
        [score.score for score in ours(name, resize)[1]] for resize in ("modern", "board")
    )
    theirs = given.theirs[f"{name}, modern"]
    assert modern == pytest.approx(theirs, abs=1e-4)
    assert board != pytest.approx(theirs, abs=1e-4)  # or the clips could not tell them apart


def test_the_moves_that_the_camera_is_seen_to_make_are_the_packages(given, ours):
    _, scores = ours("camera_motion")
    seen = [score.extras["seen"] or ["None"] for score in scores]
    assert seen == given.theirs["camera_moves"]


def test_the_mean_over_clips_of_different_lengths_is_weighted_as_in_the_package(given, ours):
    dimension, scores = ours("subject_consistency")
    (theirs,) = given.theirs["subject_consistency_of_all"]
    assert dimension.compute().item() == pytest.approx(theirs, abs=1e-5)
    plain = sum(score.score for score in scores) / len(scores)
    assert plain != pytest.approx(theirs, abs=1e-5)
