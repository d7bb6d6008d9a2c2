"""VBench's result files as they are written, and videos where VBench looks for them."""

import json
import os
from pathlib import Path

import pytest

from pusa.evaluation.official import export_videos, from_rows, read_results, to_rows
from pusa.evaluation.score import append_rows, read_rows
from pusa.evaluation.scoring import VideoScore, dimension_scores
from pusa.evaluation.vbench_suite import read_info, videos_of
from tests.evaluation.info_for_tests import entries, write_info

GOAT, DUNES = "a goat chews, slowly", "a red kite over dunes"
PAN, STILL = f"{DUNES}, camera pans left", f"{DUNES}, camera static"


@pytest.fixture
def prompts(tmp_path: Path):
    return read_info(write_info(tmp_path, entries()))


def listed(stem: str, sample: int, value, **more) -> dict:
    return {"video_path": f"run/videos/{stem}-{sample}.mp4", "video_results": value} | more


def results() -> dict:
    """As VBenchI2V.evaluate writes it: NaN for a movement nobody asked for, percent per video."""
    return {
        "i2v_subject": [0.75, [listed(GOAT, 0, 0.7), listed(GOAT, 1, 0.8)]],
        "dynamic_degree": [0.5, [listed(GOAT, 0, True), listed(GOAT, 1, False)]],
        "imaging_quality": [0.62, [listed(GOAT, 0, 60.0), listed(DUNES, 0, 64.0)]],
        "background_consistency": [
            (8 * 0.9 + 2 * 0.4) / 10,
            [listed(DUNES, 0, 0.9, video_sim=7.2, cnt_per_video=8),
             listed(DUNES, 1, 0.4, video_sim=0.8, cnt_per_video=2)],
        ],
        "camera_motion": [
            0.5,
            {"pan_left": 1.0, "static": 0.0, "zoom_in": float("nan")},
            [listed(PAN, 0, 1.0, prompt_type="pan_left", predict_type=["pan_left"]),
             listed(STILL, 0, 0.0, prompt_type="static", predict_type=["zoom_in"])],
        ],
    }  # fmt: skip


def write(folder: Path, content, name: str = "run") -> Path:
    path = folder / f"{name}_eval_results.json"
    path.write_text(json.dumps(content))
    return path


def test_results_are_read_as_fractions_with_every_video(tmp_path: Path, prompts):
    found = read_results(write(tmp_path, results()), prompts)
    expected = {
        "i2v_subject": 0.75, "dynamic_degree": 0.5, "imaging_quality": 0.62,
        "background_consistency": 0.8, "camera_motion": 0.5,
    }  # fmt: skip
    assert found.means == pytest.approx(expected)
    assert dimension_scores(found.videos) == pytest.approx(expected)
    assert found.camera == {"pan_left": 1.0, "static": 0.0}
    assert VideoScore("imaging_quality", DUNES, 0, 0.64) in found.videos
    assert VideoScore("dynamic_degree", GOAT, 0, 1.0) in found.videos
    assert VideoScore("background_consistency", DUNES, 0, 0.9, 9) in found.videos
    assert VideoScore("camera_motion", PAN, 0, 1.0) in found.videos


def test_dimensions_may_be_spread_over_files(tmp_path: Path, prompts):
    for name, entry in results().items():
        write(tmp_path, {name: entry}, name)
    found = read_results(tmp_path, prompts)
    assert found.means == read_results(write(tmp_path, results(), "all"), prompts).means
    with pytest.raises(ValueError, match="background_consistency: is in another file"):
        read_results(tmp_path, prompts)


def test_the_mean_of_imaging_quality_may_be_of_an_old_version(tmp_path: Path, prompts):
    old = {"imaging_quality": [62.0, results()["imaging_quality"][1]]}
    assert read_results(write(tmp_path, old), prompts).means["imaging_quality"] == 0.62


def test_a_mean_over_frames_needs_the_lengths_where_they_differ(tmp_path: Path, prompts):
    videos = [listed(GOAT, 0, 0.9), listed(GOAT, 1, 0.4)]
    path = write(tmp_path, {"subject_consistency": [(8 * 0.9 + 2 * 0.4) / 10, videos]})
    with pytest.raises(
        ValueError, match=r"mean is 0\.800000, but its videos give 0\.65.*num_frames"
    ):
        read_results(path, prompts)
    lengths = {f"{GOAT}-0.mp4": 9, f"{GOAT}-1.mp4": 3}
    assert read_results(path, prompts, lengths).means["subject_consistency"] == 0.8
    several_processes = write(tmp_path, {"subject_consistency": [0.65, videos]})
    assert read_results(several_processes, prompts, lengths).means["subject_consistency"] == 0.65


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object of dimensions"),
        ({"color": [1.0, []]}, "color: no dimension of VBench-I2V"),
        ({"i2v_subject": 0.5}, "i2v_subject: expected 2 items"),
        ({"camera_motion": [0.5, []]}, "camera_motion: expected 3 items"),
        ({"i2v_subject": [0.5, []]}, "no videos; VBench found none"),
        ({"i2v_subject": ["0.5", [listed(GOAT, 0, 1.0)]]}, "expected a number"),
        ({"i2v_subject": [0.5, [{"video_path": "a"}]]}, "without video_path and video_results"),
        ({"i2v_subject": [0.5, [listed("cat", 0, 0.5)]]}, r"'cat-0\.mp4' is no video of the suite"),
        ({"i2v_subject": [0.5, [listed(GOAT, 0, float("nan"))]]}, "has nan; score it again"),
        ({"i2v_subject": [0.5, [listed(GOAT, 0, 0.5)] * 2]}, "listed twice"),
        ({"i2v_subject": [0.6, [listed(GOAT, 0, 0.5)]]}, "its mean is 0.6.*changed or cut"),
        ({"i2v_subject": [float("nan"), [listed(GOAT, 0, 0.5)]]}, "its mean is nan"),
    ],
)
def test_what_vbench_would_not_write_is_refused(tmp_path: Path, prompts, content, message: str):
    with pytest.raises(ValueError, match=message):
        read_results(write(tmp_path, content), prompts)


def test_a_file_that_is_not_there_or_not_json_is_named(tmp_path: Path, prompts):
    with pytest.raises(ValueError, match=r"no \*_eval_results\.json"):
        read_results(tmp_path, prompts)
    path = write(tmp_path, {})
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_results(path, prompts)


def test_rows_keep_everything_that_means_and_intervals_need(tmp_path: Path, prompts):
    found = read_results(write(tmp_path, results()), prompts)
    append_rows(tmp_path / "scores.jsonl", to_rows(found.videos, prompts, "Pusa", found.source))
    rows = read_rows(tmp_path / "scores.jsonl")
    back = from_rows(rows, prompts, "Pusa")
    assert dimension_scores(back) == pytest.approx(found.means)
    assert {row.fingerprint for row in rows} == {found.source}
    assert from_rows(rows, prompts, "another") == []
    with pytest.raises(ValueError, match="a score of prompt 3, but the suite has 1"):
        from_rows(rows, prompts[:1], "Pusa")


@pytest.fixture
def made(tmp_path: Path, prompts):
    """Our own files, numbered, of one prompt."""
    videos = []
    for video in videos_of(prompts, 2, ["i2v_subject"]):
        source = tmp_path / "ours" / f"seed{video.sample}" / f"{video.index:04d}.mp4"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(bytes([video.sample]))
        videos.append((video, source))
    return videos


def test_videos_stand_under_the_exact_names_without_taking_room(made, tmp_path: Path):
    folder = tmp_path / "vbench"
    assert export_videos(made, folder) == 2
    assert sorted(os.listdir(folder)) == [f"{GOAT}-0.mp4", f"{GOAT}-1.mp4"]
    assert all(source.samefile(folder / video.name) for video, source in made)
    assert export_videos(made, folder) == 0


def test_they_are_copied_where_links_cannot_be(made, tmp_path: Path, monkeypatch):
    def refuse(source, target):
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert export_videos(made, tmp_path / "vbench") == 2
    assert (tmp_path / "vbench" / f"{GOAT}-1.mp4").read_bytes() == b"\x01"
    assert len(os.listdir(tmp_path / "vbench")) == 2


def test_nothing_is_overwritten_or_mixed(made, tmp_path: Path):
    folder = tmp_path / "vbench"
    folder.mkdir()
    (folder / f"{GOAT}-1.mp4").write_bytes(b"9")
    with pytest.raises(ValueError, match=r"1 videos \('a goat.*-1.mp4'\) there and different"):
        export_videos(made, folder)
    assert os.listdir(folder) == [f"{GOAT}-1.mp4"]
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"1 files \('notes.txt'\) of no video"):
        export_videos(made, folder)
    made[0][1].unlink()
    with pytest.raises(ValueError, match=r"1 videos .* not there; generate them first"):
        export_videos(made, tmp_path / "other")
    assert not (tmp_path / "other").exists()
