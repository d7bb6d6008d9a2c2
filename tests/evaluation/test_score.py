"""scores.jsonl: appended to, resumed, and true to the files that were measured."""

import json

import pytest

from pusa.data import video
from pusa.evaluation import score
from pusa.evaluation.score import Row, VideoFile, append_rows, read_rows, score_videos
from pusa.metrics import registry


@pytest.fixture
def files(suite, tmp_path):
    made = []
    for item in suite[:2]:
        path = tmp_path / f"{item.index}.mp4"
        video.write_video(path, item.frames(), 16, crf=4)
        made.append(VideoFile("base", 0, item, path))
    return made


@pytest.fixture
def measured(monkeypatch):
    """The samples that are decoded for measuring, in order."""
    seen = []
    original = score.sample_of
    monkeypatch.setattr(
        score, "sample_of", lambda file: seen.append(file.item.index) or original(file)
    )
    return seen


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [Row("a", 0, 1, "psnr", 20.25, "x"), Row("a", 0, 1, "pan", None, "x")]
    append_rows(tmp_path / "scores.jsonl", rows[:1])
    append_rows(tmp_path / "scores.jsonl", rows[1:])
    assert read_rows(tmp_path / "scores.jsonl") == rows
    assert read_rows(tmp_path / "none.jsonl") == []


def test_every_metric_of_every_video_is_scored_once(files, tmp_path, measured):
    path = tmp_path / "scores.jsonl"
    rows = score_videos(path, files)
    assert [(row.index, row.metric) for row in rows] == [
        (index, name) for index in (0, 1) for name in registry.names()
    ]
    content = path.read_bytes()
    assert score_videos(path, files) == rows
    assert path.read_bytes() == content
    assert measured == [0, 1]


def test_an_interrupted_run_goes_on_and_a_half_written_line_is_dropped(files, tmp_path, measured):
    path = tmp_path / "scores.jsonl"
    rows = score_videos(path, files)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(read_rows(path)) == len(rows) - 1
    assert score_videos(path, files) == rows
    assert path.read_bytes() == whole
    assert measured == [0, 1, 1]


def test_a_video_that_changed_is_scored_again(files, tmp_path, measured):
    path = tmp_path / "scores.jsonl"
    before = score_videos(path, files)
    darker = files[1].item.frames() // 2
    video.write_video(files[1].path, darker, 16, crf=4)
    after = score_videos(path, files)
    assert measured == [0, 1, 1]
    size = len(registry.names())
    assert after[:size] == before[:size]
    first = {row.metric: row.value for row in after[size:]}
    assert first["psnr_first_frame"] < 20


def test_only_missing_metrics_are_measured(files, tmp_path):
    path = tmp_path / "scores.jsonl"
    rows = score_videos(path, files)
    kept = [row for row in rows if row.metric != "dynamic_degree"]
    path.write_text("")
    append_rows(path, kept)
    assert score_videos(path, files) == rows
    assert len(read_rows(path)) == len(rows)


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps({"system": "a"}) + "\n")
    with pytest.raises(ValueError, match=r"scores\.jsonl:1: not a score .*; delete that line"):
        read_rows(path)


def test_a_missing_video_is_named(files, tmp_path):
    files[0].path.unlink()
    with pytest.raises(video.VideoError, match=r"0\.mp4: no such file; run the comparison again"):
        score_videos(tmp_path / "scores.jsonl", files)


@pytest.mark.parametrize("tail", ["", '{"half": ', "x" * 7, "x" * 8, "x" * 20])
@pytest.mark.parametrize("whole", ["", "a\n", "a\nbcdefgh\n"])
def test_appending_cuts_off_a_half_written_line_however_long(tmp_path, monkeypatch, whole, tail):
    monkeypatch.setattr(score, "TAIL", 8)
    path = tmp_path / "scores.jsonl"
    path.write_text(whole + tail)
    score.append_rows(path, [Row("base", 0, 1, "psnr", 2.0, "mark")])
    kept, last = path.read_text()[:-1].rpartition("\n")[::2]
    assert kept + "\n" * bool(whole) == whole
    assert json.loads(last)["system"] == "base"
