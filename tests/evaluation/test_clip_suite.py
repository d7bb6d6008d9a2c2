"""Clips of a user's own as a suite with a truth: cut to the model's size once."""

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from pusa.data import video
from pusa.entry import build
from pusa.evaluation.clip_suite import clip_items
from pusa.evaluation.tasks import TaskSuite
from pusa.pipelines.prepare import Source
from tests.conftest import compose_config


def moving(num_frames: int, height: int, width: int) -> torch.Tensor:
    ramp = torch.arange(width)[None] + 4 * torch.arange(num_frames)[:, None]
    return (ramp[:, None, None] % 256).expand(-1, 3, height, -1).to(torch.uint8)


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Two clips of other sizes and rates than the tiny model's."""
    rows = []
    for name, frames, fps in (
        ("a.mp4", moving(40, 48, 64), 32.0),
        ("b.mp4", moving(20, 40, 40), 16.0),
    ):
        video.write_video(tmp_path / name, frames, fps)
        rows.append({"file_name": name, "text": f"what {name} shows"})
    path = tmp_path / "metadata.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def model(root):
    return build(compose_config("evaluate", "experiment=tiny_vta", "name=x").model)


def source(manifest: Path) -> Source:
    return Source("mine", str(manifest))


def bar(what):
    return lambda items: items


def test_own_clips_become_as_long_large_and_fast_as_the_models_videos(manifest, model, tmp_path):
    items = clip_items(source(manifest), model, tmp_path / "clips", None, bar)
    assert [item.caption for item in items] == ["what a.mp4 shows", "what b.mp4 shows"]
    for item in items:
        frames, info = video.read_frames(item.path)
        assert tuple(frames.shape) == (17, 3, 32, 32)
        assert info.fps == model.fps
        assert torch.equal(item.frames(), frames)
    # Twice the model's rate: every second frame.
    every = video.read_fitted(manifest.parent / "a.mp4", range(0, 34, 2), 32, 32)
    gap = (items[0].frames().int() - every.int()).abs().float().mean()
    assert gap < 2


def test_they_are_written_once_and_again_when_a_clip_or_the_size_changes(manifest, model, tmp_path):
    folder = tmp_path / "clips"

    def stamps(of) -> list[int]:
        clip_items(source(manifest), of, folder, None, bar)
        return [path.stat().st_mtime_ns for path in sorted(folder.glob("*.mp4"))]

    first = stamps(model)
    assert stamps(model) == first
    video.write_video(manifest.parent / "b.mp4", moving(30, 40, 40).flip(0), 16.0)
    second = stamps(model)
    assert second[0] == first[0]
    assert second[1] != first[1]
    larger = dataclasses.replace(model, height=40, width=40)
    assert set(stamps(larger)).isdisjoint(second)


def test_too_few_and_too_short_clips_are_named(manifest, model, tmp_path):
    with pytest.raises(ValueError, match="holds 1 clips; a transition needs two"):
        clip_items(source(manifest), model, tmp_path, 1, bar)
    longer = dataclasses.replace(model, num_frames=33)
    with pytest.raises(video.VideoError, match=r"a\.mp4|b\.mp4"):
        clip_items(source(manifest), longer, tmp_path / "clips", None, bar)


def test_the_tasks_suite_takes_a_manifest(manifest, root):
    cfg = compose_config(
        "evaluate", "experiment=tiny_vta", "suite=tasks", "name=x",
        f"suite.source.manifest={manifest}",
    )  # fmt: skip
    suite = build(cfg.suite)
    assert isinstance(suite, TaskSuite)
    assert suite.source.toy is None
