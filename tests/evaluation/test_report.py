"""The report says what the rows say: tables, verdicts, and a page with relative links alone."""

import json
import re

import pytest
import torch

from pusa.data import video
from pusa.evaluation.baselines import GroundTruth, StaticCopy
from pusa.evaluation.compare import compare
from pusa.evaluation.report import contact_sheet, write_report
from pusa.evaluation.score import Row
from pusa.evaluation.stats import Contrast, Interval, contrast
from pusa.evaluation.tables import (
    coverage,
    make_table,
    mean_cells,
    plain,
    retained,
    signed,
    verdict,
)
from pusa.metrics import registry
from tests.evaluation.systems_for_tests import NoisyTruth


def rows_of(system, metric, values):
    return [Row(system, 0, index, metric, v, "x") for index, v in enumerate(values)]


def made_up_rows():
    return [
        *rows_of("base", "psnr_first_frame", [20.0, 20.2, 20.1]),
        *rows_of("VTA", "psnr_first_frame", [30.0, 30.2, 30.4]),
        *rows_of("base", "subject_similarity", [0.9, 0.91, 0.92]),
        *rows_of("VTA", "subject_similarity", [0.4, 0.41, 0.42]),
        *rows_of("base", "dynamic_degree", [0.0, 1.0, 1.0]),
        *rows_of("VTA", "dynamic_degree", [1.0, 1.0, 0.0]),
        *rows_of("base", "pan_accuracy", [None, None, None]),
        *rows_of("VTA", "pan_accuracy", [None, None, None]),
    ]


@pytest.fixture
def report(suite, tmp_path):
    systems = {
        "base": NoisyTruth(40), "VTA": NoisyTruth(5), "static copy": StaticCopy(),
        "truth": GroundTruth(),
    }  # fmt: skip
    rows = compare(systems, suite, [0, 1], tmp_path)
    kept = contrast("loss <shared>", {0: [1.0], 1: [1.1]}, {0: [1.0], 1: [1.2]}, better="lower")
    write_report(tmp_path, rows, suite, {"model": "tiny & small"}, retention=[kept])
    return tmp_path


def test_verdicts_follow_from_the_intervals():
    table = make_table(made_up_rows(), {}, "VTA", "base")
    assert [verdict(table, item) for item in table.contrasts] == [
        "VTA beats base on psnr_first_frame (difference +10.10 ± 0.43).",
        "base beats VTA on subject_similarity (difference -0.500 ± 0.000).",
        "VTA does not beat base on dynamic_degree (difference +0.000 ± 2.484).",
    ]


def test_a_metric_that_applies_nowhere_has_no_cell_and_no_verdict():
    table = make_table(made_up_rows(), {}, "VTA", "base")
    assert ("VTA", "pan_accuracy") not in table.cells
    assert "pan_accuracy" in table.metrics
    assert mean_cells(table)[0][-1] == "n/a"
    assert coverage(table) == "Of fewer clips: pan_accuracy (0 of 3)."


def test_an_unknown_contender_is_refused():
    with pytest.raises(ValueError, match="contender='LoRA' has no scores; use one of base, VTA"):
        make_table(made_up_rows(), {}, "LoRA", "base")


@pytest.mark.parametrize(
    ("low", "high", "better", "word"),
    [
        (0.1, 0.3, "higher", "gained"), (0.1, 0.3, "lower", "lost"),
        (-0.3, -0.1, "higher", "lost"), (-0.3, -0.1, "lower", "gained"),
        (-0.1, 0.3, "higher", "no change shown"),
    ],
)  # fmt: skip
def test_retention_speaks_only_when_the_difference_leaves_out_zero(low, high, better, word):
    side = Interval(1.0, 0.0, 2.0, 5)
    difference = Interval((low + high) / 2, low, high, 5)
    assert retained(Contrast("m", better, side, side, difference)) == word


def test_a_column_is_rounded_alike():
    table = make_table(made_up_rows()[:6], {}, "VTA", "base")
    assert [row[1] for row in mean_cells(table)] == ["20.10 ± 0.25", "30.20 ± 0.50"]
    assert plain(Interval(0.98765, 0.9, 1.1, 9), 3) == "0.988 ± 0.100"
    assert signed(Interval(0.5, -float("inf"), float("inf"), 1), 3) == "+0.500 ± ∞"


def test_the_json_holds_every_mean_and_difference(report):
    content = json.loads((report / "table.json").read_text())
    assert content["suite"] == "toy suite (stand-in), not VBench"
    cells = {(cell["system"], cell["metric"]) for cell in content["means"]}
    assert {("base", "psnr_first_frame"), ("truth", "dynamic_degree")} <= cells
    named = {item["metric"]: item for item in content["contrasts"]}
    assert named["psnr_first_frame"]["contender_beats"] is True
    first, second = named["psnr_first_frame"]["VTA"], named["psnr_first_frame"]["base"]
    assert named["psnr_first_frame"]["difference"]["mean"] == pytest.approx(
        first["mean"] - second["mean"]
    )
    assert first["num_clips"] == 4
    assert content["retention"][0]["better"] == "lower"


def test_the_markdown_is_a_table_with_arrows_and_retention(report):
    text = (report / "table.md").read_text()
    assert "not VBench" in text
    assert "| system | psnr_first_frame\N{NO-BREAK SPACE}↑ |" in text
    assert len(re.findall(r"^\| (base|VTA|static copy|truth) \|", text, re.MULTILINE)) == 4
    assert "| loss <shared>\N{NO-BREAK SPACE}↓ |" in text


def test_the_page_is_self_contained_and_its_links_exist(report):
    page = (report / "report.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 16
    for source in sources:
        assert (report / source.replace("%20", " ")).is_file()
    assert "http" not in page
    assert "tiny &amp; small" in page
    assert "loss &lt;shared&gt;\N{NO-BREAK SPACE}↓" in page
    assert page.count("<th>") == len(registry.names()) + 1 + 6  # systems, and retention
    said = (report / "table.txt").read_text()
    assert "within base's interval" in said
    assert "psnr_first_frame" in said
    assert '<span class="badge yes">yes</span>' in page


def test_the_contact_sheet_is_a_row_per_system(tmp_path):
    clips = {"a": torch.zeros(17, 3, 8, 10, dtype=torch.uint8)}
    clips["b"] = torch.arange(17, dtype=torch.uint8).view(-1, 1, 1, 1).expand(17, 3, 8, 10)
    contact_sheet(clips, tmp_path / "sheet.png")
    sheet = video.read_frames(tmp_path / "sheet.png")[0][0]
    assert sheet.shape == (3, 2 * (32 + 4), 5 * (40 + 4))
    assert sheet[0, 40].unique().tolist() == [0, 4, 8, 12, 16, 255]
    with pytest.raises(ValueError, match="'a' has 17 frames, frame 17 is wanted"):
        contact_sheet(clips, tmp_path / "sheet.png", frames=[17])
