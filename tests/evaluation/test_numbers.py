"""JSON and CSV hold what the result holds, to the last digit."""

import csv
import io
import json

import pytest

from pusa.atomic import write_json
from pusa.evaluation.numbers import numbers, system_csv, video_csv
from pusa.evaluation.results import Result
from tests.evaluation.results_for_tests import CONTENDER, make_result, single


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return make_result(tmp_path_factory.mktemp("result"), 4)


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_read_back_equals_the_cells(result):
    rows = read(system_csv(result))
    found = {
        (r["system"], r["column"]): (float(r["mean"]), float(r["low"]), float(r["high"]))
        for r in rows
    }
    assert found == {k: (c.mean, c.low, c.high) for k, c in result.cells.items()}
    assert {r["role"] for r in rows if r["system"] == CONTENDER} == {"contender"}
    assert {r["better"] for r in rows if r["column"] == "mean_abs_error"} == {"lower"}


def test_the_videos_read_back_equal_the_shots(result):
    stems = {item.stem: item.index for item in result.items}
    found = {
        (r["system"], stems[r["prompt"]], int(r["sample"]), r["column"]): float(r["value"])
        for r in read(video_csv(result))
    }
    assert found == {
        (shot.system, shot.index, shot.sample, name): value
        for shot in result.shots
        for name, value in shot.values.items()
    }


def test_json_has_everything_and_no_infinity(result, tmp_path):
    write_json(tmp_path / "all.json", numbers(single(result)))
    told = json.loads((tmp_path / "all.json").read_text())
    assert {row["low"] for row in told["means"]} == {None}
    assert {row["low"] for row in read(system_csv(single(result)))} == {""}
    told = json.loads(json.dumps(numbers(result)))
    found = {(r["system"], r["metric"]): (r["mean"], r["low"]) for r in told["means"]}
    assert found == {key: (cell.mean, cell.low) for key, cell in result.cells.items()}
    assert told["title"] == result.title
    assert told["warnings"] == list(result.warnings)
    assert [s["manifest"] is None for s in told["systems"]] == [False] * 3 + [True] * 3
    assert len(told["comparisons"]) == len(result.comparisons)
    assert told["missing"] == result.missing
    first, item = told["comparisons"][0], result.comparisons[0]
    assert first["difference_value"]["mean"] == item.contrast.difference.mean
    assert (first["p"], first["detectable"]) == (item.p, item.detectable)
