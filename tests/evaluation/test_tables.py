"""Tables for people: all rows and columns, who beats whom, and what cannot be said."""

import re
from dataclasses import replace

import pytest

from pusa.evaluation import tables
from pusa.evaluation.results import Comparison, Result
from pusa.evaluation.stats import Contrast, Interval
from tests.evaluation.results_for_tests import (
    BASELINE,
    CONTENDER,
    STILL,
    TRUTH,
    make_result,
    single,
    without,
)


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return make_result(tmp_path_factory.mktemp("result"), 4)


def comparison(better, gap: float, p: float | None) -> Comparison:
    first, second = Interval(0.5, 0.4, 0.6, 9), Interval(0.4, 0.3, 0.5, 9)
    gaps = Interval(gap, gap - 0.02, gap + 0.01, 9)
    return Comparison("ours", "theirs", Contrast("score", better, first, second, gaps), p, 0.05)


def test_the_console_shows_every_system_column_warning_and_gap(result):
    text = tables.console(result)
    for system in result.systems:
        assert system.name in text
    for column in result.columns:
        assert tables.heading(column.name, column.better) in text
    for said in (result.title, *result.warnings, *result.missing, tables.PUBLISHED, "Wan-I2V"):
        assert said in text
    assert text.count(f"{CONTENDER} beats {BASELINE}") + text.count("does not beat") >= 9


def test_markdown_tables_are_whole_whatever_names_hold(result):
    named = replace(
        result,
        systems=tuple(replace(s, name="a|b") if s.name == STILL else s for s in result.systems),
        cells={("a|b" if k[0] == STILL else k[0], k[1]): c for k, c in result.cells.items()},
        comparisons=(),
    )
    lines = tables.markdown(named).splitlines()
    (row,) = [line for line in lines if line.startswith(r"| a\|b")]
    assert len(re.findall(r"(?<!\\)\|", row)) == len(result.columns) + 2
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("| ")]
    assert set(widths[: len(result.systems) + 2]) == {len(result.columns) + 2}


def test_a_sentence_names_the_winner_first_and_its_lead():
    assert tables.sentence(comparison("higher", 0.1, 0.01), 100) == (
        "ours beats theirs on score (difference +10.00 ± 1.50, p = 0.010)."
    )
    assert tables.sentence(comparison("higher", -0.1, 0.0001), 100) == (
        "theirs beats ours on score (difference +10.00 ± 1.50, p < 0.001)."
    )
    assert tables.sentence(comparison("lower", 0.1, 0.01)) == (
        "theirs beats ours on score (difference -0.100 ± 0.015, p = 0.010)."
    )
    assert tables.sentence(comparison("lower", -0.1, None)) == (
        "ours does not beat theirs on score (difference -0.100 ± 0.015, too few prompts to test)."
    )


def test_what_does_not_apply_and_what_is_not_known_are_said(result):
    cells = {row[0]: row[1:] for row in tables.mean_cells(result)}
    names = [c.name for c in result.columns]
    assert cells[TRUTH][names.index("mean_abs_error")] == "n/a"
    assert cells[STILL][names.index("Total")] == "n/a"
    alone = tables.comparison_cells(single(result))
    assert {row[5] for row in alone} == {"too few prompts to test"}
    assert all("∞" in row[4] for row in alone)


def test_a_table_without_a_baseline_or_controls_is_one(result):
    few = without(result, BASELINE, STILL)
    for text in (tables.console(few), tables.markdown(few)):
        assert CONTENDER in text
        assert "beat" not in text


def test_columns_are_aligned():
    lines = tables.aligned([["", "a", "bb"], ["row", "1.0", "2"], ["x", "n/a", "10.00"]])
    assert {len(line) for line in lines} == {max(map(len, lines))}
    assert lines[1].startswith("row  1.0")
