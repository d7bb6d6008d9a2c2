"""Rows that were not made here: finished videos of others, and results of VBench's own program."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from pusa.data.video import read_frames, write_video
from tests.conftest import run_pusa
from tests.evaluation.benchmarks_for_tests import ALONE, CHEAP
from tests.evaluation.test_benchmark import means, refused

UNKNOWN = "prompt_rewriting,codec,crf"  # of videos without a manifest
ALLOWED = (*UNKNOWN.split(","), "backbones")


@pytest.fixture
def videos(done, tmp_path) -> Path:
    """The finished videos of VTA, with nothing beside them."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in (done.folder / "videos" / "VTA").glob("*.mp4"):
        shutil.copy(path, folder)
    return folder


def rows(contender: str, **entries: str) -> tuple[str, ...]:
    """Overrides under which these rows alone are evaluated, and nothing is generated."""
    added = [f"+suite.entries.{name}={{{value}}}" for name, value in entries.items()]
    return (CHEAP, *ALONE, *added, f"suite.contender={contender}")


def test_videos_of_others_are_scored_as_they_are(bench, done, videos):
    folder = bench(*rows("theirs", theirs=f"videos: {videos}"))
    ours = means(done.folder)["VTA", "temporal_flickering"]
    assert means(folder)["theirs", "temporal_flickering"] == ours
    told = json.loads((folder / "standin.json").read_text())
    assert "sampling" not in told["facts"]
    assert told["systems"][0]["manifest"]["weights"] == "unknown"
    assert sorted(p.suffix for p in videos.iterdir()) == [".mp4"] * 6  # nothing is written there
    assert run_pusa("compare", folder, f"{done.folder}:base") == 1
    assert run_pusa("compare", folder, f"{done.folder}:base", "--allow", *ALLOWED) == 0


def test_videos_of_whose_making_nothing_is_known_are_compared_only_if_told(bench, done, videos):
    base = done.folder / "videos" / "base"
    words = (*rows("theirs", theirs=f"videos: {videos}", base2=f"videos: {base}"),
             "suite.baseline=base2")  # fmt: skip
    why = refused(bench, *words)
    assert "theirs and base2: these results cannot be compared" in why
    for field in UNKNOWN.split(","):
        assert f"{field}: " in why
    folder = bench(*words, f"suite.allow=[{UNKNOWN}]")
    told = json.loads((folder / "standin.json").read_text())
    assert "crf: -1 and 10" in told["facts"]["base2 differs from the contender in"]


def test_videos_with_their_manifest_need_no_leave_whatever_they_were_scored_in(bench, done, videos):
    shutil.copy(done.folder / "videos" / "VTA" / "manifest.json", videos)
    base = done.folder / "videos" / "base"
    words = rows("theirs", theirs=f"videos: {videos}", base2=f"videos: {base}")
    folder = bench(*words, "suite.baseline=base2")
    told = json.loads((folder / "standin.json").read_text())
    assert [c["verdict"] for c in told["comparisons"]] == ["no difference shown"]
    manifest = json.loads((videos / "manifest.json").read_text()) | {"seeds": [4, 5]}
    (videos / "manifest.json").write_text(json.dumps(manifest))
    assert "they differ in seeds: 4, 5 and 0, 1" in refused(bench, *words, "suite.baseline=base2")


def test_an_incomplete_folder_is_refused_or_called_so(bench, videos):
    words = (*rows("theirs", theirs=f"videos: {videos}"), "suite.controls=[frame shuffle]")
    (videos / "one more-0.mp4").write_bytes(b"x")
    assert "1 unexpected ('one more-0.mp4')" in refused(bench, *words)
    (videos / "one more-0.mp4").unlink()
    gone = sorted(videos.glob("*-0.mp4"))[0]
    gone.unlink()
    assert "of 6 videos, 1 missing" in refused(bench, *words)
    folder = bench(*words, "suite.incomplete=true")
    assert not (folder / "standin.json").exists()
    told = json.loads((folder / "standin_incomplete.json").read_text())
    assert told["title"].endswith(", incomplete")
    assert "theirs: 1 videos are missing." in told["warnings"]
    table = csv.DictReader((folder / "standin_incomplete.csv").read_text().splitlines())
    prompts = {row["system"]: row["prompts"] for row in table}
    assert prompts == {"theirs": "3", "frame shuffle": "2"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda frames: (frames[:9], 16), "num_frames"),
        (lambda frames: (frames, 8), "fps"),
        (lambda frames: (frames[..., :16, :], 16), "height"),
    ],
)
def test_videos_of_a_row_that_differ_among_themselves_are_refused(bench, videos, change, field):
    last = sorted(videos.glob("*.mp4"))[0]  # no first of the suite: the kinds come in their order
    frames, _ = read_frames(last)
    write_video(last, *change(frames))
    words = rows("theirs", theirs=f"videos: {videos}")
    assert f"{last}: has {field}=" in refused(bench, *words)
    assert bench(*words, f"suite.allow=[{field}]").is_dir()


def test_what_is_not_there_is_no_training_that_was_forgotten(bench):
    why = refused(bench, *rows("theirs", theirs="videos: nowhere"))
    assert "theirs: nowhere: not there; name the folder of its finished videos" in why


@pytest.fixture
def results(done, tmp_path) -> Path:
    """VTA's scores as VBench's own program writes them."""
    content = {}
    with (done.folder / "standin_videos.csv").open() as file:
        table = [row for row in csv.DictReader(file) if row["system"] == "VTA"]
    for name in ("temporal_flickering", "dynamic_degree"):
        values = [row for row in table if row["column"] == name]
        listed = [
            {"video_path": f"x/{row['video']}", "video_results": float(row["value"])}
            for row in values
        ]
        content[name] = [sum(v["video_results"] for v in listed) / len(listed), listed]
    path = tmp_path / "vta_eval_results.json"
    path.write_text(json.dumps(content))
    return path


def test_results_of_vbench_itself_need_no_network_and_no_video(bench, done, results):
    nowhere = ("suite.networks.source=benchmark", "suite.networks.folder=/nowhere")
    words = (*rows("theirs", theirs=f"results: {results}"), *nowhere)
    folder = bench(*words, "suite.dimensions=[temporal_flickering,dynamic_degree]")
    found = means(folder)
    for name in ("temporal_flickering", "dynamic_degree"):
        assert found["theirs", name] == pytest.approx(means(done.folder)["VTA", name])
    why = refused(bench, *words, "suite.dimensions=[temporal_flickering,imaging_quality]")
    assert "lacks scores of 6 videos, in imaging_quality" in why
    assert "more samples than the 1 of suite.seeds" in refused(bench, *words, "suite.seeds=[0]")


def test_results_stand_beside_what_other_networks_measured_only_if_told(bench, results, videos):
    words = rows("theirs", theirs=f"results: {results}", ours=f"videos: {videos}")
    assert "theirs and ours: these results cannot be compared" in refused(bench, *words)
    alone = rows("theirs", theirs=f"results: {results}")
    why = refused(bench, *alone, "suite.controls=[static copy]")
    assert "theirs and static copy: these results cannot be compared, they differ in back" in why
    assert "no videos to shuffle" in refused(bench, *alone, "suite.controls=[frame shuffle]")
    folder = bench(*words, "suite.dimensions=[dynamic_degree]",
                   "suite.allow=[backbones,height,width,num_frames,fps]")  # fmt: skip
    assert (folder / "standin.json").is_file()
    found = means(folder)
    assert found["theirs", "dynamic_degree"] == found["ours", "dynamic_degree"]
