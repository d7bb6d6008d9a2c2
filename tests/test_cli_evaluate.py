"""`pusa compare` and `pusa vbench` on a finished benchmark and on files of VBench's form."""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest

from pusa.evaluation.scoring import SCALES, totals
from pusa.evaluation.vbench_suite import CAMERA_MOVES
from tests.conftest import run_pusa
from tests.evaluation.info_for_tests import BACKGROUND, SUBJECT, entry, write_info


@pytest.fixture
def copied(done, tmp_path) -> Path:
    """The benchmark's folder, to be changed."""
    return shutil.copytree(done.folder, tmp_path / "copied")


def change_manifest(folder: Path, system: str, **fields) -> None:
    path = folder / "videos" / system / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_two_systems_are_compared_as_their_own_evaluation_does(done, tmp_path, caplog):
    caplog.set_level("INFO")
    file = tmp_path / "found.json"
    assert run_pusa("compare", done.folder, f"{done.folder}:base", "--json", file) == 0
    found, own = (json.loads(p.read_text()) for p in (file, done.folder / "standin.json"))
    assert found["title"] == own["title"]
    figures = ("p", "detectable", "verdict", "metric", "first_value", "difference_value")
    expected = [
        {key: c[key] for key in figures} for c in own["comparisons"] if c["second"] == "base"
    ]
    assert [{key: c[key] for key in figures} for c in found["comparisons"]] == expected
    assert caplog.text.count("no difference shown") + caplog.text.count("better") >= 4
    assert "stand-in, not VBench" in caplog.text
    assert "loras differs: lora.safetensors" in caplog.text


def test_shares_of_a_work_are_read_as_the_whole(done, copied, tmp_path):
    for system in ("VTA", "base"):
        whole = copied / "scores" / f"{system}.jsonl"
        lines = whole.read_text().splitlines(keepends=True)
        whole.unlink()
        for i in range(2):
            whole.with_name(f"{system}.{i}-of-2.jsonl").write_text("".join(lines[i::2]))
        other = whole.with_name(f"{system}.x.0-of-2.jsonl")  # of a row whose name goes on
        other.write_text(lines[0].replace('"fingerprint": "', '"fingerprint": "9'))
        for path in (copied / "videos" / system).glob("*.mp4"):
            path.unlink()  # so that the file's name alone tells
    files = tmp_path / "whole.json", tmp_path / "parts.json"
    for folder, file in zip((done.folder, copied), files, strict=True):
        assert run_pusa("compare", f"{folder}:VTA", f"{folder}:base", "--json", file) == 0
    whole, parts = (json.loads(file.read_text())["means"] for file in files)
    assert [row["mean"] for row in parts] == pytest.approx([row["mean"] for row in whole])


def test_what_was_not_made_alike_is_refused_until_told(done, copied, capsys):
    change_manifest(copied, "VTA", crf=20, hardware="another")
    assert run_pusa("compare", copied, f"{done.folder}:base") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: these results cannot be compared, they differ in crf: 20 and 10")
    assert run_pusa("compare", copied, f"{done.folder}:base", "--allow", "crf") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{0}/nowhere", "{0}"), "nowhere: no such folder of an evaluation"),
        (("{0}:Vta", "{0}"), "there are: VTA, base"),
        (("{0}:static copy", "{0}"), "'static copy' has no"),
        (("{0}", "{0}"), "is held against itself"),
        (("{0}", "{0}:base", "--allow", "hight"), "expected some of prompts"),
        (("{0}/videos", "{0}"), "There is none; name one"),
    ],
)
def test_a_fault_is_one_message(done, words, message, capsys):
    assert run_pusa("compare", *(word.format(done.folder) for word in words)) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_videos_that_changed_since_they_were_scored_are_noticed(copied, capsys):
    video = next((copied / "videos" / "VTA").glob("*-0.mp4"))
    video.write_bytes(video.read_bytes() + b"x")
    assert run_pusa("compare", copied, f"{copied}:base") == 1
    assert "no scores of 1 videos" in capsys.readouterr().err
    shutil.rmtree(copied / "scores")
    assert run_pusa("compare", copied, f"{copied}:base") == 1
    assert "run evaluate.py again" in capsys.readouterr().err


def test_an_evaluation_without_its_list_of_videos_is_told_the_remedy(copied, capsys):
    (copied / "videos" / "VTA" / "videos.json").unlink()
    assert run_pusa("compare", f"{copied}:VTA", f"{copied}:base") == 1
    assert "videos.json is missing; the same evaluate.py command" in capsys.readouterr().err


def test_scores_of_networks_that_were_used_before_are_passed_over(done, copied, tmp_path):
    ledger = copied / "scores" / "VTA.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    old = [row | {"sha256": "0" * 64, "backbone": "another", "score": 9.0} for row in rows]
    older = [row | {"fingerprint": f"1-{row['fingerprint']}", "score": 9.0} for row in rows]
    ledger.write_text("".join(json.dumps(row) + "\n" for row in [*old, *older, *rows]))
    files = tmp_path / "a.json", tmp_path / "b.json"
    for folder, file in zip((done.folder, copied), files, strict=True):
        assert run_pusa("compare", f"{folder}:VTA", f"{folder}:base", "--json", file) == 0
    ours, theirs = (json.loads(file.read_text())["means"] for file in files)
    assert [row["mean"] for row in ours] == [row["mean"] for row in theirs]


def test_videos_of_an_earlier_larger_suite_are_no_part_of_it(done, copied, tmp_path):
    """They stay in the folder, and their scores in the ledger."""
    videos = copied / "videos" / "VTA"
    names = json.loads((videos / "videos.json").read_text())
    fewer = [name for name in names if "cat" not in name]
    assert 0 < len(fewer) < len(names)
    (videos / "videos.json").write_text(json.dumps(fewer))
    file = tmp_path / "found.json"
    assert run_pusa("compare", copied, f"{done.folder}:base", "--json", file) == 0
    means = {(r["system"], r["metric"]): r for r in json.loads(file.read_text())["means"]}
    assert means[str(copied), "temporal_flickering"]["num_clips"] == 2
    assert run_pusa("vbench", "export", copied, tmp_path / "export") == 0
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == sorted(fewer)


def test_videos_of_others_are_not_exported(copied, tmp_path, capsys):
    for path in (copied / "videos" / "VTA").glob("*.mp4"):
        path.unlink()
    assert run_pusa("vbench", "export", copied, tmp_path / "export") == 1
    assert "made by others and are where they were" in capsys.readouterr().err
    assert run_pusa("compare", copied, f"{copied}:base") == 0  # their scores are here


def test_videos_go_where_vbench_looks(done, tmp_path, capsys):
    target = tmp_path / "export"
    for _ in range(2):
        assert run_pusa("vbench", "export", f"{done.folder}:base", target) == 0
    names = sorted(path.name for path in (done.folder / "videos" / "base").glob("*.mp4"))
    assert sorted(path.name for path in target.iterdir()) == names
    assert "a tabby cat looks around and blinks-1.mp4" in names
    (target / "x.txt").write_text("")
    assert run_pusa("vbench", "export", done.folder, target) == 1
    assert "use another folder" in capsys.readouterr().err


def full_results(folder: Path, num_samples: int = 5) -> tuple[Path, Path, dict[str, float]]:
    """A list of a few prompts, results of all their videos, and the means."""
    prompts = [entry(f"a goat number {i}", SUBJECT, "goat.jpg") for i in range(6)]
    prompts += [entry(f"a dune number {i}", BACKGROUND, "dune.jpg") for i in range(6)]
    moves = [f"a dune, {move}" for move in CAMERA_MOVES[:6]]
    prompts += [entry(text, ["camera_motion"], "dune.jpg") for text in moves]
    content, means = {}, {}
    for name in SCALES:
        texts = [p["prompt_en"] for p in prompts if name in p["dimension"]]
        pairs = list(product(enumerate(texts), range(num_samples)))
        values = [0.5 + 0.02 * i + 0.01 * k for (i, _), k in pairs]
        means[name] = sum(values) / len(values)
        factor = 100 if name == "imaging_quality" else 1
        listed = [
            {"video_path": f"v/{text}-{k}.mp4", "video_results": factor * value}
            for ((_, text), k), value in zip(pairs, values, strict=True)
        ]
        content[name] = [means[name], *([{}] if name == "camera_motion" else []), listed]
    path = folder / "run_eval_results.json"
    path.write_text(json.dumps(content))
    return path, write_info(folder, prompts), means


def test_vbenchs_own_results_are_shown_with_totals_and_intervals(tmp_path, caplog):
    caplog.set_level("INFO")
    results, info, means = full_results(tmp_path)
    file = tmp_path / "table.json"
    assert run_pusa("vbench", "score", results, "--info", info, "--json", file) == 0
    told = json.loads(file.read_text())
    found = {row["metric"]: row for row in told["means"]}
    for name, value in (means | totals(means)).items():
        assert found[name]["mean"] == pytest.approx(value)
        assert found[name]["low"] < value < found[name]["high"]
    assert told["title"] == "VBench-I2V's measures on another suite"
    assert f"{100 * totals(means)['Total']:.2f} ±" in caplog.text


def test_results_of_fewer_videos_are_incomplete_and_others_refused(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    results, info, _ = full_results(tmp_path, num_samples=4)
    assert run_pusa("vbench", "score", results, "--info", info) == 0
    assert "another suite, incomplete" in caplog.text
    content = json.loads(results.read_text())
    content["i2v_subject"][0] += 0.1
    results.write_text(json.dumps(content))
    assert run_pusa("vbench", "score", results, "--info", info) == 1
    assert "i2v_subject: its mean is" in capsys.readouterr().err
    assert run_pusa("vbench", "score", tmp_path / "none", "--info", info) == 1
    assert "no *_eval_results.json" in capsys.readouterr().err
