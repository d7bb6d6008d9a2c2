"""Controls are what they are called; a video's sidecar tells whether it would be made so now."""

import gc
import json
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pusa.data import video
from pusa.data.toy import make_scene, render
from pusa.entry import build, plain_config
from pusa.evaluation.entries import Entry
from pusa.evaluation.makers import (
    CONTROLS,
    ControlMaker,
    ModelMaker,
    Outdated,
    Size,
    Work,
    is_made,
    shuffled,
    slow_zoom,
)
from pusa.evaluation.vbench_suite import Prompt, SuiteVideo
from pusa.pipelines.studio import Memory
from pusa.pipelines.tasks import Given, Task
from tests.conftest import compose_config

SIZE = Size(num_frames=9, height=32, width=48, fps=8.0, crf=10)


def work(folder: Path, stem: str = "a dog. runs", sample: int = 0) -> Work:
    prompt = Prompt(stem, f"{stem}, quickly", "dog.png", "", ())
    one = SuiteVideo(0, prompt, sample)
    return Work(one, folder / "dog.png", 5 + sample, folder / "videos" / one.name)


@pytest.fixture
def picture(tmp_path) -> torch.Tensor:
    """A picture that no column, row or corner of is like another, where `work` looks for it."""
    pixels = torch.stack(
        [
            torch.arange(64).mul(4).repeat(32, 1),
            torch.arange(32)[:, None].mul(8).repeat(1, 64),
            torch.full((32, 64), 90),
        ]
    ).to(torch.uint8)
    video.write_image(tmp_path / "dog.png", pixels)
    return pixels


def control(name: str, folder: Path) -> ControlMaker:
    return ControlMaker(name, SIZE, lambda one: folder / "theirs" / one.path.name)


def test_a_static_copy_is_the_middle_of_the_image_and_does_not_move(tmp_path, picture):
    one = work(tmp_path)
    control("static copy", tmp_path).make(one)
    frames, info = video.read_frames(one.path)
    assert (frames.shape, info.fps) == ((9, 3, 32, 48), 8.0)
    assert (frames[1:].int() - frames[:1].int()).abs().max() <= 6  # of the encoder
    assert (frames[0].float() - picture[:, :, 8:56].float()).abs().mean() < 6


def test_a_slow_zoom_grows_about_its_centre(picture):
    frames = slow_zoom(picture.expand(5, -1, -1, -1))
    assert torch.equal(frames[0], picture)
    steps = [(a.float() - b.float()).abs().mean() for a, b in pairwise(frames)]
    assert min(steps) > 0
    # Red rises by 4 a column: of the last frame's width 1 / 1.15 is seen, about the middle.
    seen = (frames[-1, 0, 16, -2].float() - frames[-1, 0, 16, 1].float()) / 4
    assert seen == pytest.approx(61 / 1.15, abs=1)
    middle = frames[:, :, 15:17, 31:33].float().mean((2, 3))
    assert (middle - middle[0]).abs().max() < 3


def test_a_shuffle_holds_the_same_frames_in_an_order_of_its_seed(tmp_path, picture):
    frames = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    mixed = shuffled(frames, 3)
    assert not torch.equal(mixed, frames)
    assert torch.equal(mixed.sort(0).values, frames)
    assert torch.equal(shuffled(frames, 3), mixed)
    assert not torch.equal(shuffled(frames, 4), mixed)
    one = work(tmp_path)
    clip = render(make_scene(0, "heldout", 0, num_frames=9, height=32, width=48)).frames
    video.write_video(tmp_path / "theirs" / one.path.name, clip, 8.0, 0)
    control("frame shuffle", tmp_path).make(one)
    made, theirs = (video.read_frames(p)[0].float()
                    for p in (one.path, tmp_path / "theirs" / one.path.name))  # fmt: skip
    nearest = [int((theirs - frame).abs().mean((1, 2, 3)).argmin()) for frame in made]
    assert sorted(nearest) == list(range(9)) != nearest


@pytest.mark.parametrize("name", [n for n in CONTROLS if n != "frame shuffle"])
def test_a_video_is_made_until_it_its_settings_or_its_image_change(name, tmp_path, picture):
    one, maker = work(tmp_path), control(name, tmp_path)
    assert not is_made(maker, one)
    maker.make(one)
    assert is_made(maker, one)
    with pytest.raises(Outdated, match=r"a dog\. runs-0\.mp4: .* other settings \(fps\)"):
        is_made(replace(maker, size=replace(SIZE, fps=24.0)), one)
    content = one.path.read_bytes()
    one.path.write_bytes(content[:-1])  # cut off: as good as not there
    assert not is_made(maker, one)
    one.path.write_bytes(content)
    video.write_image(one.image, 255 - picture)
    with pytest.raises(Outdated, match=r"was made from other files \(.*dog\.png\)"):
        is_made(maker, one)
    one.path.with_suffix(".json").unlink()  # a crash between the two files
    assert not is_made(maker, one)


def test_seeds_pair_systems_and_part_prompts(tmp_path):
    first = work(tmp_path)
    assert first.own_seed() == replace(first, path=tmp_path / "other" / "x.mp4").own_seed()
    others = [work(tmp_path, "a cat"), work(tmp_path, sample=1)]
    assert len({first.own_seed(), *(one.own_seed() for one in others)}) == 3
    assert 0 <= first.own_seed() < 2**31


@pytest.fixture
def model_maker(root):
    cfg = compose_config("evaluate", "experiment=tiny_vta", "name=x", "sampler.num_steps=1")
    plain = plain_config(cfg)
    configs = {key: plain[key] for key in ("model", "sampler", "memory")}
    model, sampler, task = map(build, (cfg.model, cfg.sampler, cfg.task))
    size = Size(17, 32, 32, 16.0, 10)

    def make(**changes) -> ModelMaker:
        given = {"model": model, "task": task} | changes
        return ModelMaker(
            Entry(), given["model"], sampler, given["task"], Memory(), size, configs
        )  # fmt: skip

    return make


def test_networks_are_let_go_when_a_row_is_done(model_maker, tmp_path, picture):
    maker, one = model_maker(), work(tmp_path)
    assert maker._studio is None  # nothing is read to look whether videos are there
    maker.check(one)
    assert not is_made(maker, one)
    assert maker._studio is None
    maker.make(one)
    assert is_made(maker, one)
    assert maker._studio is not None
    experts = weakref.ref(maker._studio._experts)
    maker.release()
    gc.collect()
    assert experts() is None


def test_another_model_file_makes_a_video_outdated(model_maker, tmp_path, picture):
    maker, one = model_maker(), work(tmp_path)
    maker.make(one)
    sidecar = one.path.with_suffix(".json")
    told = json.loads(sidecar.read_text())
    weights = next(path for path in told["inputs"] if "wan_tiny" in path)
    told["inputs"][weights] = "0" * 32
    sidecar.write_text(json.dumps(told))
    with pytest.raises(Outdated, match=r"was made from other files \(.*wan_tiny"):
        is_made(maker, one)


def test_what_no_model_can_make_is_said_before_it_is_tried(model_maker, tmp_path, picture):
    two = Task("start_end", (Given("0", medium=0), Given("-1", medium=1)))
    with pytest.raises(ValueError, match="'start_end' takes more than one image"):
        model_maker(task=two).check(work(tmp_path))
    maker = model_maker()
    maker.size = replace(maker.size, num_frames=16)
    with pytest.raises(ValueError, match="16"):
        maker.check(work(tmp_path))
