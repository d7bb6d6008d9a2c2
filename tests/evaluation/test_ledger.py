"""Videos measured in several dimensions: decoded once, resumed, shared, and what goes wrong."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pusa.data import video
from pusa.data.video import VideoError
from pusa.evaluation.backbones.registry import Loaded
from pusa.evaluation.metrics import ledger
from pusa.evaluation.metrics.catalogue import DIMENSIONS
from pusa.evaluation.metrics.dimension import Dimension, Reading
from pusa.evaluation.metrics.frames import FileFrames, TensorFrames, open_frames
from pusa.evaluation.metrics.ledger import Job, Measured, measure, video_scores
from pusa.evaluation.metrics.temporal_flickering import TemporalFlickering
from pusa.evaluation.score import read_rows
from pusa.evaluation.scoring import VideoScore, dimension_scores
from pusa.pipelines.parts import Part
from tests.processes import FORKS

PROMPT = "a tower, camera static"
LENGTHS = (5, 6, 7)
ALL = tuple(DIMENSIONS)


def fakes(factor: float = 1.0) -> dict[str, Dimension]:
    """Every dimension over a network of a line; factor: of its answers."""
    networks = {
        "features": lambda pixels: pixels.mean((2, 3)) * factor,
        "aesthetic": lambda pixels: pixels.mean((1, 2, 3)) * 10 * factor,
        "quality": lambda pixels: pixels.mean((1, 2, 3)) * 100 * factor,
        "interpolation": lambda first, last: (first + last) / 2 * factor,
        "flow": lambda first, last: (last - first)[:, :2] * factor,
        "tracking": lambda frames, grid: (torch.zeros(100, 2), torch.zeros(100, 2) * factor),
    }
    return {
        name: kind() if kind.kind is None
        else kind(Loaded("line", kind.kind, networks[kind.kind], sha256="5a"))
        for name, kind in DIMENSIONS.items()
    }  # fmt: skip


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Videos of noise that differ in length, in all dimensions, with an image of their own."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for sample, length in enumerate(LENGTHS):
        frames = torch.randint(0, 256, (length, 3, 32, 48), generator=generator).to(torch.uint8)
        path = tmp_path / f"{PROMPT}-{sample}.mp4"
        video.write_video(path, frames, 8)
        video.write_image(path.with_suffix(".png"), frames[0])
        found.append(Job(path, path.with_suffix(".png"), PROMPT, ALL))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "dimensions.jsonl"


class Counted:
    """A function that keeps what it was called with first."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, *arguments):
        self.calls.append(arguments[0])
        return self.function(*arguments)


@pytest.fixture
def opened(monkeypatch) -> list:
    """Paths that were decoded."""
    monkeypatch.setattr(ledger, "open_frames", counted := Counted(open_frames))
    return counted.calls


def test_each_video_is_hashed_and_decoded_once_for_all_dimensions(jobs, path, opened, monkeypatch):
    monkeypatch.setattr(ledger, "fingerprint", hashed := Counted(ledger.fingerprint))
    rows = measure(fakes(), jobs, path)
    assert [(row.video, row.dimension) for row in rows] == [
        (job.video.name, name) for job in jobs for name in ALL
    ]
    assert opened == [job.video for job in jobs]
    assert hashed.calls == [file for job in jobs for file in (job.video, job.reference)]


def test_held_frames_and_streamed_ones_give_the_same_scores(jobs, path, tmp_path):
    size = 3 * 32 * 48
    longest = open_frames(jobs[2].video, 7 * size)
    assert isinstance(longest, TensorFrames)
    assert isinstance(open_frames(jobs[2].video, 7 * size - 1), FileFrames)
    held = measure(fakes(), jobs, path)
    assert measure(fakes(), jobs, tmp_path / "other.jsonl", held_bytes=6 * size) == held
    assert len({row.score for row in held}) > len(ALL)


def test_an_image_of_several_videos_is_hashed_once(jobs, path, monkeypatch):
    monkeypatch.setattr(ledger, "fingerprint", hashed := Counted(ledger.fingerprint))
    measure(fakes(), [replace(job, reference=jobs[0].reference) for job in jobs], path)
    assert hashed.calls.count(jobs[0].reference) == 1


def test_the_ledger_goes_on_by_video_and_dimension(jobs, path, opened):
    some = ("dynamic_degree", "i2v_subject")
    first = measure(fakes(), [replace(jobs[0], dimensions=some)], path)
    dimensions = fakes()
    rows = measure(dimensions, jobs, path)
    assert [row for row in rows[: len(ALL)] if row.dimension in some] == first[::-1]
    assert len(read_rows(path, Measured)) == len(jobs) * len(ALL)
    for name, dimension in dimensions.items():
        scores = [row for row in rows if row.dimension == name]
        weights = [row.num_frames - 1 if dimension.by_frames else 1 for row in scores]
        expected = sum(w * row.score for w, row in zip(weights, scores, strict=True)) / sum(weights)
        assert dimension.compute().item() == pytest.approx(expected, abs=1e-12)
    del opened[:]
    assert measure(fakes(), jobs, path) == rows
    assert opened == []


def test_what_changed_is_measured_again_and_nothing_else(jobs, path, opened):
    measure(fakes(), jobs, path)
    del opened[:]
    video.write_video(jobs[0].video, torch.zeros(4, 3, 32, 48, dtype=torch.uint8), 8)
    jobs[1] = replace(jobs[1], prompt="a tower, camera zooms in")
    assert measure(fakes(), jobs, path)[0].num_frames == 4
    assert opened == [jobs[0].video, jobs[1].video]
    other = fakes()["imaging_quality"]
    assert other.backbone is not None
    other.backbone = replace(other.backbone, sha256="77")
    measure(fakes() | {"imaging_quality": other}, jobs, path)
    assert len(read_rows(path, Measured)) == 5 * len(ALL) + 3


def test_parts_write_a_file_each_and_know_one_anothers_rows(jobs, path, opened):
    parts = [measure(fakes(), jobs, path, part=Part(index, 2)) for index in range(2)]
    assert sorted(os.listdir(path.parent)) == [
        "dimensions.0-of-2.jsonl", "dimensions.1-of-2.jsonl"
    ]  # fmt: skip
    assert [len(rows) for rows in parts] == [2 * len(ALL), len(ALL)]
    del opened[:]
    whole = measure(fakes(), jobs, path)
    assert whole == parts[0][: len(ALL)] + parts[1] + parts[0][len(ALL) :]
    assert opened == []


def shared(rank: int, jobs: list[Job], folder: Path, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dimensions = fakes()
    measure(dimensions, jobs, folder / "ranks.jsonl", part=Part(rank, 2))
    results[rank] = {name: dimension.compute().item() for name, dimension in dimensions.items()}
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_share_the_videos_find_the_figures_of_one(jobs, path, tmp_path):
    alone = fakes()
    measure(alone, jobs, path)
    expected = {name: dimension.compute().item() for name, dimension in alone.items()}
    with FORKS.Manager() as manager:
        results = manager.dict()
        ranks = [FORKS.Process(target=shared, args=(i, jobs, tmp_path, results)) for i in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
            assert rank.exitcode == 0
        gathered = dict(results)
    assert gathered[0] == pytest.approx(expected, abs=1e-12)
    assert gathered[1] == pytest.approx(expected, abs=1e-12)


def test_rows_become_scores_whose_means_are_the_dimensions(jobs, path):
    dimensions = fakes()
    rows = measure(dimensions, jobs, path)
    videos = {job.video.name: ("a tower", sample) for sample, job in enumerate(jobs)}
    scores = video_scores(rows, videos)
    assert scores[0] == VideoScore(ALL[0], "a tower", 0, rows[0].score, LENGTHS[0])
    means = {name: dimension.compute().item() for name, dimension in dimensions.items()}
    assert dimension_scores(scores) == pytest.approx(means, abs=1e-12)
    del videos[jobs[1].video.name]
    with pytest.raises(ValueError, match=r"1 scored videos \('a tower.*-1\.mp4'\) of no prompt"):
        video_scores(rows, videos)


# What goes wrong.


def require_kept(path: Path, jobs: list[Job], names: tuple[str, ...]) -> None:
    """On file are these dimensions of the first video, and none of another."""
    rows = [(row.video, row.dimension) for row in read_rows(path, Measured)]
    assert rows == [(jobs[0].video.name, name) for name in names]


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [n for n, kind in DIMENSIONS.items() if kind.kind is not None])
def test_an_answer_that_is_not_finite_is_no_score(jobs, path, name, factor):
    """Of any kind of network: a threshold would take NaN for stillness."""
    before = tuple(other for other in ALL if other != name)
    jobs = [replace(job, dimensions=(*before, name)) for job in jobs]
    dimensions = fakes() | {name: fakes(factor)[name]}
    with pytest.raises(ValueError, match=rf"static-0\.mp4: {name}: the backbone line answers"):
        measure(dimensions, jobs, path)
    require_kept(path, jobs, before)


class Adrift(TemporalFlickering):
    """Makes no number, without any network."""

    def score_video(self, video, reference=None, prompt="") -> Reading:
        return Reading(float("inf"), video.num_frames)


def test_a_score_that_is_not_finite_is_not_written(jobs, path):
    with pytest.raises(ValueError, match=r"0\.mp4: temporal_flickering \(no backbone\) gives inf"):
        measure(fakes() | {"temporal_flickering": Adrift()}, jobs, path)
    require_kept(path, jobs, ALL[:-1])


def test_files_that_are_not_there_are_named_before_anything_is_measured(jobs, path):
    jobs[1].video.unlink()
    jobs[2].reference.unlink()
    with pytest.raises(ValueError, match=r"2 files \('.*-1\.mp4', '.*-2\.png'\) not there"):
        measure(fakes(), jobs, path)
    assert not path.exists()


def test_a_dimension_that_is_not_at_hand_is_named_before_anything_is_measured(jobs, path):
    ready = {name: kind for name, kind in fakes().items() if name != "aesthetic_quality"}
    with pytest.raises(ValueError, match="aesthetic_quality: asked for, but not among i2v_subject"):
        measure(ready, jobs, path)
    assert not path.exists()


def test_a_missing_reference_names_the_video(jobs, path):
    jobs[1] = replace(jobs[1], reference=None)
    with pytest.raises(ValueError, match=r"-1\.mp4: i2v_subject .*give a reference"):
        measure(fakes(), jobs, path)
    require_kept(path, jobs, ALL)


def test_an_image_that_is_none_is_named(jobs, path):
    jobs[1].reference.write_text("a tower")
    with pytest.raises(ValueError, match=r"-1\.png: not a readable reference image"):
        measure(fakes(), jobs, path)
    require_kept(path, jobs, ALL)


def test_a_prompt_without_a_move_names_the_video(jobs, path):
    jobs = [replace(jobs[0], prompt="a tower", dimensions=("camera_motion",))]
    with pytest.raises(ValueError, match=r"-0\.mp4: camera_motion: 'a tower' asks for no move"):
        measure(fakes(), jobs, path)


@pytest.mark.parametrize("how", ["cut in the middle", "a text", "nothing"])
@pytest.mark.parametrize("held_bytes", [ledger.HELD_BYTES, 0])
def test_a_video_that_cannot_be_read_is_named_and_the_rows_before_are_kept(
    jobs, path, how, held_bytes
):
    content = jobs[1].video.read_bytes()
    cut = {"cut in the middle": content[: len(content) // 2], "a text": b"a tower", "nothing": b""}
    jobs[1].video.write_bytes(cut[how])
    with pytest.raises(VideoError, match=r"static-1\.mp4: .*(truncated|empty)"):
        measure(fakes(), jobs, path, held_bytes=held_bytes)
    require_kept(path, jobs, ALL)


NEEDED = {name: 3 if name == "motion_smoothness" else 2 for name in ALL} | dict.fromkeys(
    ["camera_motion", "dynamic_degree", "aesthetic_quality", "imaging_quality"], 1
)


@pytest.mark.parametrize("num_frames", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_a_video_that_is_too_short_is_named(jobs, path, name, num_frames):
    video.write_video(jobs[0].video, torch.zeros(num_frames, 3, 32, 48, dtype=torch.uint8), 8)
    job = replace(jobs[0], dimensions=(name,))
    if num_frames >= NEEDED[name]:
        assert measure(fakes(), [job], path)[0].num_frames == num_frames
        return
    message = rf"-0\.mp4: {name} needs {NEEDED[name]} frames or more, the video has {num_frames}"
    with pytest.raises(ValueError, match=message):
        measure(fakes(), [job], path)


def test_a_row_that_is_damaged_is_named_and_one_that_is_half_written_is_measured_again(
    jobs, path, opened
):
    rows = measure(fakes(), jobs, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines)[:-30])
    del opened[:]
    assert measure(fakes(), jobs, path) == rows
    assert opened == [jobs[2].video]
    assert path.read_text() == "".join(lines)
    damaged = json.dumps({"dimension": "i2v_subject"}) + "\n"
    path.write_text("".join([*lines[:3], damaged, *lines[4:]]))
    with pytest.raises(ValueError, match=r"dimensions\.jsonl:4: not a score .*delete that line"):
        measure(fakes(), jobs, path)


def test_names_beyond_ascii_come_back_from_the_ledger(jobs, path):
    moved = jobs[0].video.with_name("\u00e9t\u00e9, Tu\u0308rme \u5854-0.mp4")
    jobs[0].video.rename(moved)
    rows = measure(fakes(), [replace(jobs[0], video=moved)], path)
    assert read_rows(path, Measured) == rows
    assert video_scores(rows, {moved.name: ("a", 0)})
    assert measure(fakes(), [replace(jobs[0], video=moved)], path) == rows
