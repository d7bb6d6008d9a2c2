"""From rows to a table: means with intervals, contrasts, and the two files table.md, table.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pusa.atomic import write_json, write_text
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
    """Sum up the rows of compare(); ValueError if contender or baseline is not in them."""
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
    """A system's values of a metric by clip; clips it does not apply to are left out."""
    scores: dict[int, list[float]] = {}
    for row in rows:
        if (row.system, row.metric) == (system, metric) and row.value is not None:
            scores.setdefault(row.index, []).append(row.value)
    return scores


def verdict(table: Table, item: Contrast) -> str:
    """Who beats whom on a metric, by more than both intervals, in one sentence."""
    ours, theirs = table.contender, table.baseline
    if item.first_loses:
        ours, theirs = theirs, ours
    verb = "beats" if item.first_beats or item.first_loses else "does not beat"
    difference = signed(item.difference, _digits(item.first, item.second))
    return f"{ours} {verb} {theirs} on {item.metric} (difference {difference})."


def coverage(table: Table) -> str:
    """A sentence on the metrics that apply to a part of the clips; empty if there are none."""
    clips = {
        m: max((c.num_clips for (_, metric), c in table.cells.items() if metric == m), default=0)
        for m in table.metrics
    }
    total = max(clips.values())
    parts = [f"{m} ({count} of {total})" for m, count in clips.items() if count < total]
    return f"Of fewer clips: {', '.join(parts)}." if parts else ""


def retained(item: Contrast) -> str:
    """What a retention contrast says: is a loss shown by the paired difference?"""
    sign = 1 if item.better == "higher" else -1
    ends = sorted((sign * item.difference.low, sign * item.difference.high))
    if ends[1] < 0:
        return "lost"
    return "gained" if ends[0] > 0 else "no change shown"


def plain(interval: Interval, digits: int) -> str:
    """Mean and half-width, "21.34 ± 0.56"."""
    return f"{interval.mean:.{digits}f} ± {_spread(interval, digits)}"


def signed(interval: Interval, digits: int) -> str:
    """A difference with its sign, "+1.234 ± 0.056"."""
    return f"{interval.mean:+.{digits}f} ± {_spread(interval, digits)}"


def heading(metric: str, better: str) -> str:
    return f"{metric}\N{NO-BREAK SPACE}{ARROWS[better]}"


def write_markdown(path: Path, table: Table) -> None:
    """table.md: facts, verdicts, the table of means, retention."""
    lines = [f"# {SUITE_NAME}", ""]
    lines += [f"- {name}: {value}" for name, value in table.facts.items()]
    note = f"Mean ± half of the 95% interval (Student t over clips). {coverage(table)}"
    lines += ["", note.strip(), ""]
    titles = [heading(m, registry.lookup(m).better) for m in table.metrics]
    lines += markdown_table(["system", *titles], mean_cells(table))
    lines += ["", "## Verdicts", "", f"Does {table.contender} beat {table.baseline}?", ""]
    for item in table.contrasts:
        lines.append(f"- {'yes' if item.first_beats else 'no'}: {verdict(table, item)}")
    if table.retention:
        lines += ["", "## Retention", ""]
        lines += markdown_table(retention_titles(table), retention_cells(table))
    write_text(path, "\n".join(lines) + "\n")


def write_numbers(path: Path, table: Table) -> None:
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
    write_json(path, content)


def mean_cells(table: Table) -> list[list[str]]:
    """One row of text per system: its name, then a cell per metric."""
    columns = {
        m: [table.cells[s, m] for s in table.systems if (s, m) in table.cells]
        for m in table.metrics
    }
    return [
        [s, *(_cell(table.cells.get((s, m)), _digits(*columns[m])) for m in table.metrics)]
        for s in table.systems
    ]


def console(table: Table) -> str:
    """The table for a terminal: metrics as rows, systems as columns, then the verdicts."""
    titles = ["", *table.systems]
    columns = list(zip(*mean_cells(table), strict=True))[1:]
    names = [heading(m, registry.lookup(m).better) for m in table.metrics]
    lines = _aligned([titles, *([n, *cells] for n, cells in zip(names, columns, strict=True))])
    lines += ["", *(verdict(table, item) for item in table.contrasts)]
    if table.retention:
        title = f"what {table.contender} keeps of text to video"
        lines += ["", title, *_aligned([retention_titles(table), *retention_cells(table)])]
    return "\n".join([SUITE_NAME, "", *lines]) + "\n"


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]


def retention_titles(table: Table) -> list[str]:
    within = f"within {table.baseline}'s interval"
    return ["metric", table.baseline, table.contender, "difference", "paired verdict", within]


def retention_cells(table: Table) -> list[list[str]]:
    """One row of text per retention contrast."""
    rows = []
    for item in table.retention:
        digits = _digits(item.first, item.second)
        numbers = plain(item.second, digits), plain(item.first, digits)
        difference = signed(item.difference, digits)
        inside = "yes" if item.second.low <= item.first.mean <= item.second.high else "no"
        name = heading(item.metric, item.better)
        rows.append([name, *numbers, difference, retained(item), inside])
    return rows


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


def _cell(interval: Interval | None, digits: int) -> str:
    return "n/a" if interval is None else plain(interval, digits)


def _digits(*intervals: Interval) -> int:
    """Decimals that suit all of these means: two if one of them reaches 10, else three."""
    return 2 if any(abs(interval.mean) >= 10 for interval in intervals) else 3


def _spread(interval: Interval, digits: int) -> str:
    half = interval.half_width
    return f"{half:.{digits}f}" if math.isfinite(half) else "∞"


def markdown_table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (titles, rule, *cells)]
