"""A comparison writes videos, scores what the files hold, and goes on after an interruption."""

from dataclasses import replace

import pytest
import torch

from pusa.data import video
from pusa.evaluation import compare as module
from pusa.evaluation.baselines import Codec, GroundTruth, StaticCopy
from pusa.evaluation.compare import compare, video_path
from tests.evaluation.systems_for_tests import Interrupted, NoisyTruth


def value(rows, system, metric):
    """Mean of a system's applicable values."""
    values = [row.value for row in rows if (row.system, row.metric) == (system, metric)]
    values = [v for v in values if v is not None]
    return sum(values) / len(values)


def assert_alike(rows, expected):
    """The same rows, with values as close as two encodings of the same frames are."""
    for row, other in zip(rows, expected, strict=True):
        assert row.key[:4] == other.key[:4]
        assert row.value == pytest.approx(other.value, abs=0.3)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 2)


def test_every_system_is_scored_from_its_files(suite, tmp_path):
    systems = {
        "truth": GroundTruth(), "static copy": StaticCopy(), "noisy": NoisyTruth(20),
        "codec": Codec(lambda frames: frames // 4 * 4),
    }  # fmt: skip
    rows = compare(systems, suite, [0, 1], tmp_path)
    assert {(row.system, row.seed) for row in rows} == {
        ("truth", 0), ("static copy", 0), ("noisy", 0), ("noisy", 1), ("codec", 0),
    }  # fmt: skip
    for item in suite:
        assert video_path(tmp_path, "noisy", 1, item.index).is_file()
    psnr = {name: value(rows, name, "psnr_first_frame") for name in systems}
    assert 30 < psnr["truth"] < 60, "the truth is scored as decoded, too"
    assert psnr["truth"] > psnr["codec"] > psnr["noisy"]
    assert value(rows, "truth", "direction_accuracy") == 1
    assert value(rows, "static copy", "direction_accuracy") == 0
    assert value(rows, "static copy", "dynamic_degree") == 0
    assert value(rows, "static copy", "psnr_continuation") < value(
        rows, "truth", "psnr_continuation"
    )


def test_an_interrupted_run_goes_on_to_the_same_numbers(suite, tmp_path):
    whole = compare({"noisy": NoisyTruth(10)}, suite, [3], tmp_path / "whole")
    with pytest.raises(Interrupted):
        compare({"noisy": NoisyTruth(10, stop_after=2)}, suite, [3], tmp_path / "halted")
    again = NoisyTruth(10)
    resumed = compare({"noisy": again}, suite, [3], tmp_path / "halted")
    assert_alike(resumed, whole)
    assert again.made == [(2, 3), (3, 3)]
    idle = NoisyTruth(10)
    assert compare({"noisy": idle}, suite, [3], tmp_path / "halted") == resumed
    assert idle.made == []


def test_a_removed_video_is_made_again(suite, tmp_path):
    rows = compare({"noisy": NoisyTruth(10)}, suite, [0], tmp_path)
    video_path(tmp_path, "noisy", 0, 1).unlink()
    system = NoisyTruth(10)
    again = compare({"noisy": system}, suite, [0], tmp_path)
    assert_alike(again, rows)
    assert [row for row in again if row.index != 1] == [row for row in rows if row.index != 1]
    assert system.made == [(0, 0), (1, 0)]  # in its batch, for the same rounding


def test_the_suite_may_grow_but_not_change(suite, toy_folder, tmp_path):
    compare({"truth": GroundTruth()}, suite[:2], [0], tmp_path)
    rows = compare({"truth": GroundTruth()}, suite, [0], tmp_path)
    assert {row.index for row in rows} == {0, 1, 2, 3}
    other = [replace(item, caption="something else") for item in suite]
    with pytest.raises(ValueError, match=r"holds videos of another suite \(item 0: "):
        compare({"truth": GroundTruth()}, other, [0], tmp_path)


def test_the_progress_display_sees_all_the_work(suite, tmp_path):
    seen = {}

    def progress(sequence, description, /):
        seen[description] = len(sequence)
        return sequence

    compare({"noisy": NoisyTruth(5)}, suite, [0, 1], tmp_path, progress)
    assert seen == {"generate": 4, "score": 8}


class Wrong:
    seeded = False

    def __init__(self, videos):
        self.videos = videos

    def generate(self, items, seed):
        return self.videos


def test_wrong_videos_are_named(suite, tmp_path):
    with pytest.raises(ValueError, match="system 'x' made 0 videos of 2 items"):
        compare({"x": Wrong([])}, suite, [0], tmp_path)
    short = [torch.zeros(5, 3, 32, 32, dtype=torch.uint8)] * 2
    with pytest.raises(ValueError, match=r"system 'x', item 0: video is \(5, 3, 32, 32\)"):
        compare({"x": Wrong(short)}, suite, [0], tmp_path)


@pytest.mark.parametrize(
    ("systems", "seeds", "message"),
    [
        ({}, [0], "systems is empty"),
        ({"x": GroundTruth()}, [], "seeds is empty"),
        ({"../x": GroundTruth()}, [0], "'../x' cannot be a folder"),
    ],
)
def test_empty_or_unusable_arguments_are_refused(suite, tmp_path, systems, seeds, message):
    with pytest.raises(ValueError, match=message):
        compare(systems, suite, seeds, tmp_path)


def test_files_keep_colour_and_detail(suite, tmp_path):
    """crf 4 loses little: what remains is the chroma subsampling that any mp4 has."""
    compare({"truth": GroundTruth()}, suite[:1], [0], tmp_path)
    decoded, info = video.read_frames(video_path(tmp_path, "truth", 0, 0))
    assert info.fps == pytest.approx(16)
    assert (decoded.float() - suite[0].frames().float()).abs().mean() < 4
