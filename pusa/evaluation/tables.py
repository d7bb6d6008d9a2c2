"""From rows to a table: means with intervals, contrasts, and the two files table.md, table.json."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pusa.evaluation.score import Row
from pusa.evaluation.stats import Contrast, Interval, Scores, contrast, mean_interval
from pusa.evaluation.suite import SUITE_NAME
from pusa.metrics import registry

ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}


@dataclass(frozen=True)
class Table:
    """Everything that a report says in numbers.

    cells: (system, metric) -> Interval, without an entry where a metric applies to no clip.
    contrasts: contender against baseline, one per metric that both have. retention: comparisons
    measured elsewhere on what the contender must not lose. facts: what was run, as shown on top.
    """

    facts: Mapping[str, str]
    systems: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: Mapping[tuple[str, str], Interval]
    contender: str
    baseline: str
    contrasts: tuple[Contrast, ...]
    retention: tuple[Contrast, ...]


def make_table(
    rows: Sequence[Row],
    facts: Mapping[str, str],
    contender: str,
    baseline: str,
    retention: Sequence[Contrast] = (),
) -> Table:
    """Sum up the rows of compare(); ValueError if contender or baseline is not among its systems."""
    systems = tuple(dict.fromkeys(row.system for row in rows))
    metrics = tuple(dict.fromkeys(row.metric for row in rows))
    for role, name in (("contender", contender), ("baseline", baseline)):
        if name not in systems:
            raise ValueError(f"{role}={name!r} has no scores; use one of {', '.join(systems)}.")
    scores = {(s, m): scores_of(rows, s, m) for s in systems for m in metrics}
    cells = {key: mean_interval(values) for key, values in scores.items() if values}
    contrasts = tuple(
        contrast(m, scores[contender, m], scores[baseline, m], registry.lookup(m).better)
        for m in metrics
        if scores[contender, m].keys() & scores[baseline, m].keys()
    )
    return Table(facts, systems, metrics, cells, contender, baseline, contrasts, tuple(retention))


def scores_of(rows: Sequence[Row], system: str, metric: str) -> Scores:
    """A system's values of a metric by clip, in the order of the rows; not applicable is left out."""
    scores: dict[int, list[float]] = {}
    for row in rows:
        if (row.system, row.metric) == (system, metric) and row.value is not None:
            scores.setdefault(row.index, []).append(row.value)
    return scores


def verdicts(table: Table) -> list[str]:
    """One sentence per metric: does the contender beat the baseline by more than both intervals?"""
    sentences = []
    for item in table.contrasts:
        answer = "yes" if item.first_beats else "no"
        if item.first_loses:
            answer = f"no, {table.baseline} beats {table.contender}"
        difference = signed(item.difference)
        sentences.append(
            f"{table.contender} beats {table.baseline} on {item.metric} "
            f"by more than both intervals (difference {difference}): {answer}."
        )
    return sentences


def retained(item: Contrast) -> str:
    """What a retention contrast says: is a loss shown by the paired difference?"""
    sign = 1 if item.better == "higher" else -1
    ends = sorted((sign * item.difference.low, sign * item.difference.high))
    if ends[1] < 0:
        return "lost"
    return "gained" if ends[0] > 0 else "no change shown"


def plain(interval: Interval) -> str:
    """Mean and half-width, "21.34 ± 0.56"; two digits from 10 on, else three."""
    return f"{_number(interval.mean, interval.mean)} ± {_spread(interval)}"


def signed(interval: Interval) -> str:
    """A difference with its sign, "+1.234 ± 0.056"."""
    return f"{_number(interval.mean, interval.mean, '+')} ± {_spread(interval)}"


def heading(metric: str, better: str) -> str:
    return f"{metric} {ARROWS[better]}"


def write_markdown(path: Path, table: Table) -> None:
    """table.md: facts, verdicts, the table of means, retention."""
    lines = [f"# {SUITE_NAME}", ""]
    lines += [f"- {name}: {value}" for name, value in table.facts.items()]
    lines += ["", "Mean ± half of the 95% interval (Student t over clips).", ""]
    titles = [heading(m, registry.lookup(m).better) for m in table.metrics]
    lines += _markdown_table(["system", *titles], mean_cells(table))
    lines += ["", "## Verdicts", "", *(f"- {sentence}" for sentence in verdicts(table))]
    if table.retention:
        lines += ["", "## Retention", ""]
        lines += _markdown_table(retention_titles(table), retention_cells(table))
    _write(path, "\n".join(lines) + "\n")


def write_json(path: Path, table: Table) -> None:
    """table.json: all means, intervals and differences unrounded; an infinite end is null."""
    content = {
        "suite": SUITE_NAME,
        "facts": dict(table.facts),
        "means": [
            {"system": system, "metric": metric, **_finite(asdict(interval))}
            for (system, metric), interval in table.cells.items()
        ],
        "contender": table.contender,
        "baseline": table.baseline,
        "contrasts": [_contrast_json(table, item) for item in table.contrasts],
        "retention": [_contrast_json(table, item) for item in table.retention],
    }
    _write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def mean_cells(table: Table) -> list[list[str]]:
    """One row of text per system: its name, then a cell per metric."""
    return [
        [s, *(plain(table.cells[s, m]) if (s, m) in table.cells else "n/a" for m in table.metrics)]
        for s in table.systems
    ]


def retention_titles(table: Table) -> list[str]:
    return ["metric", table.baseline, table.contender, "difference", "verdict"]


def retention_cells(table: Table) -> list[list[str]]:
    """One row of text per retention contrast."""
    return [
        [
            heading(item.metric, item.better), plain(item.second), plain(item.first),
            signed(item.difference), retained(item),
        ]
        for item in table.retention
    ]  # fmt: skip


def _contrast_json(table: Table, item: Contrast) -> dict:
    return {
        "metric": item.metric,
        "better": item.better,
        table.contender: _finite(asdict(item.first)),
        table.baseline: _finite(asdict(item.second)),
        "difference": _finite(asdict(item.difference)),
        "contender_beats": item.first_beats,
        "contender_loses": item.first_loses,
    }


def _finite(values: dict) -> dict:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _number(value: float, scale: float, sign: str = "") -> str:
    return f"{value:{sign}.{2 if abs(scale) >= 10 else 3}f}"


def _spread(interval: Interval) -> str:
    half = interval.half_width
    return _number(half, interval.mean) if math.isfinite(half) else "∞"


def _markdown_table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (titles, rule, *cells)]


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
