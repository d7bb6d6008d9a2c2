"""Rows of the toy suite become the result that every benchmark's outputs are written from."""

from pathlib import Path

import pytest

from pusa.evaluation.compare import video_path
from pusa.evaluation.results import Result
from pusa.evaluation.score import Row
from pusa.evaluation.summary import verdict
from pusa.evaluation.toy_result import result_of, setting_of, system

PSNR = {"VTA": 25.0, "base": 20.0, "ground truth": 40.0}


def rows(suite) -> list[Row]:
    """VTA is better in both columns on every clip, by about as much; seed 1 of the models only."""
    found = []
    for name in PSNR:
        for seed in (0, 1) if name != "ground truth" else (0,):
            for item in suite:
                shift = 0.1 * item.index
                psnr = None if item.index == 3 else PSNR[name] + shift + seed
                found.append(Row(name, seed, item.index, "psnr_continuation", psnr, "x"))
                found.append(
                    Row(name, seed, item.index, "direction_accuracy", float(name != "base"), "x")
                )
    return found


@pytest.fixture
def result(suite, tmp_path) -> Result:
    systems = [system(name, f"about {name}", None, None) for name in PSNR]
    return result_of(tmp_path, rows(suite), suite, systems, {"clips": "4"}, ())


def test_roles_columns_and_title(result):
    roles = {s.name: s.role for s in result.systems}
    assert roles == {"VTA": "contender", "base": "baseline", "ground truth": "control"}
    assert [c.name for c in result.columns] == ["psnr_continuation", "direction_accuracy"]
    assert {c.scale for c in result.columns} == {1.0}
    assert (result.title, result.stem) == ("toy suite (stand-in), not VBench", "toy_suite")


def test_cells_are_means_of_what_applies(result):
    cell = result.cells["VTA", "psnr_continuation"]
    assert cell.mean == pytest.approx(25.0 + 0.1 + 0.5)
    assert cell.num_clips == 3  # it does not apply to the fourth
    assert result.cells["ground truth", "psnr_continuation"].mean == pytest.approx(40.1)


def test_the_contender_is_held_against_base_and_controls(result):
    found = {(c.second, c.contrast.metric): c for c in result.comparisons}
    assert {second for second, _ in found} == {"base", "ground truth"}
    psnr = found["base", "psnr_continuation"]
    assert psnr.contrast.difference.mean == pytest.approx(5.0)
    assert psnr.p == pytest.approx(2 / 2**3)
    assert verdict(psnr) == "no difference shown"  # three clips cannot show any
    assert found["ground truth", "direction_accuracy"].p == 1.0


def test_every_video_is_a_shot_with_what_applies_and_every_clip_has_its_picture(
    result, suite, tmp_path
):
    shots = {(s.system, s.index, s.sample): s for s in result.shots}
    assert len(shots) == 4 * 5
    assert shots["VTA", 3, 1].values == {"direction_accuracy": 1.0}
    assert shots["base", 0, 1].path == video_path(tmp_path, "base", 1, 0)
    assert [item.text for item in result.items] == [item.caption for item in suite]
    assert all(Path(item.image).is_file() for item in result.items)


def test_a_setting_knows_its_clips(suite):
    setting = setting_of(suite, [0, 1])
    assert (setting.num_frames, setting.height, setting.seeds) == (9, 32, (0, 1))
    fewer = setting_of(suite[:2], [0, 1])
    assert fewer.prompts != setting.prompts
    assert fewer.images != setting.images
