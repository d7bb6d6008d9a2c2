"""A result as text: for the terminal and as Markdown."""

import math
from collections.abc import Sequence

from pusa.evaluation.published import SOURCE
from pusa.evaluation.results import Column, Comparison, Result
from pusa.evaluation.scoring import QUANTITIES
from pusa.evaluation.stats import Contrast, Interval
from pusa.evaluation.summary import verdict

ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}
PUBLISHED = f"As printed in {SOURCE}, under its own conditions"
WIDE = 7  # more systems than this stand below one another on a terminal
NOTE = (
    "Mean ± half of the 95% interval, by resampling prompts and their samples; p is of a paired "
    "permutation test, without a correction for the number of columns."
)


def console(result: Result) -> str:
    """For a terminal: columns as rows, systems beside one another; then the comparisons with the
    baseline."""
    lines = [result.title, ""]
    names, cells = [s.name for s in result.systems], mean_cells(result)
    heads = [heading(c.name, c.better) for c in result.columns]
    if len(names) <= WIDE:
        turned = zip(*(row[1:] for row in cells), strict=True)
        lines += aligned([["", *names], *([h, *row] for h, row in zip(heads, turned, strict=True))])
    else:
        lines += aligned([["", *heads], *cells])
    if result.published:
        lines += ["", PUBLISHED, *aligned([published_titles(result), *published_cells(result)])]
    lines += [f"not measured: {name}: {why}" for name, why in result.missing.items()]
    baseline = result.system("baseline")
    told = [c for c in result.comparisons if baseline is not None and c.second == baseline.name]
    lines += ["", *(sentence(item, _scale(result, item)) for item in told)] if told else []
    if result.retention:
        title = f"what {result.rivals[0]} keeps of text to video"
        lines += ["", title, *aligned([retention_titles(result), *retention_cells(result)])]
    lines += ["", *result.warnings] if result.warnings else []
    return "\n".join(lines) + "\n"


def markdown(result: Result) -> str:
    lines = [f"# {result.title}", "", *(f"- {name}: {v}" for name, v in result.facts.items()), ""]
    lines += [f"**{warning}**\n" for warning in result.warnings]
    lines += [NOTE, ""]
    titles = ["system", *(heading(c.name, c.better) for c in result.columns)]
    lines += markdown_table(titles, mean_cells(result))
    notes = [f"- {c.name}: {c.note}" for c in result.columns if c.note]
    notes += [f"- {name}: not measured. {why}" for name, why in result.missing.items()]
    lines += ["", *notes] if notes else []
    if result.published:
        lines += ["", f"## {PUBLISHED}", ""]
        lines += markdown_table(published_titles(result), published_cells(result))
    if result.comparisons:
        lines += ["", "## Comparisons", ""]
        lines += markdown_table(comparison_titles(), comparison_cells(result))
    if result.retention:
        lines += ["", "## Retention", ""]
        lines += markdown_table(retention_titles(result), retention_cells(result))
    return "\n".join(lines) + "\n"


def mean_cells(result: Result) -> list[list[str]]:
    """One row of text per system: its name, then a cell per column."""
    digits = {c.name: _column_digits(result, c) for c in result.columns}
    return [
        [
            s.name,
            *(
                "n/a" if cell is None else plain(scaled(cell, c.scale), digits[c.name])
                for c in result.columns
                for cell in [result.cells.get((s.name, c.name))]
            ),
        ]
        for s in result.systems
    ]


def published_titles(result: Result) -> list[str]:
    return ["row", *_published_columns(result)]


def published_cells(result: Result) -> list[list[str]]:
    columns = _published_columns(result)
    return [
        [
            f"{entry.row}{' *' if entry.note else ''}",
            *(f"{entry.percent[c]:.2f}" if c in entry.percent else "" for c in columns),
        ]
        for entry in result.published
    ]


def _published_columns(result: Result) -> list[str]:
    """What is printed, in the order of our columns where we have them."""
    printed = dict.fromkeys(name for entry in result.published for name in entry.percent)
    ours = [c.name for c in result.columns if c.name in printed]
    return [*(q for q in QUANTITIES[::-1] if q in printed and q not in ours), *ours,
            *(name for name in printed if name not in (*ours, *QUANTITIES))]  # fmt: skip


def comparison_titles() -> list[str]:
    return ["", "", "first", "second", "difference", "p", "detectable", "first is"]


def comparison_cells(result: Result) -> list[list[str]]:
    """One row of text per comparison."""
    rows = []
    for item in result.comparisons:
        scale, contrast = _scale(result, item), item.contrast
        digits = digits_of(scaled(contrast.first, scale), scaled(contrast.second, scale))
        rows.append(
            [
                f"{item.first} against {item.second}",
                heading(contrast.metric, contrast.better),
                plain(scaled(contrast.first, scale), digits),
                plain(scaled(contrast.second, scale), digits),
                signed(scaled(contrast.difference, scale), digits),
                shown_p(item.p),
                "" if item.detectable is None else f"{item.detectable * scale:.{digits}f}",
                verdict(item),
            ]
        )
    return rows


def sentence(item: Comparison, scale: float = 1.0) -> str:
    """Who beats whom on a column, in one sentence."""
    contrast, outcome = item.contrast, verdict(item)
    first, second, gap = item.first, item.second, scaled(contrast.difference, scale)
    if outcome == "worse":
        first, second = second, first
        gap = Interval(-gap.mean, -gap.high, -gap.low, gap.num_clips)
    verb = "does not beat" if outcome == "no difference shown" else "beats"
    digits = digits_of(scaled(contrast.first, scale), scaled(contrast.second, scale))
    told = f"difference {signed(gap, digits)}, {shown_p(item.p)}"
    return f"{first} {verb} {second} on {contrast.metric} ({told})."


def retention_titles(result: Result) -> list[str]:
    ours, theirs = result.rivals
    return ["metric", theirs, ours, "difference", "paired verdict", f"within {theirs}'s interval"]


def retention_cells(result: Result) -> list[list[str]]:
    """One row of text per retention contrast."""
    rows = []
    for item in result.retention:
        digits = digits_of(item.first, item.second)
        numbers = plain(item.second, digits), plain(item.first, digits)
        inside = "yes" if item.second.low <= item.first.mean <= item.second.high else "no"
        name = heading(item.metric, item.better)
        rows.append([name, *numbers, signed(item.difference, digits), retained(item), inside])
    return rows


def retained(item: Contrast) -> str:
    """What a retention contrast says: is a loss shown by the paired difference?"""
    sign = 1 if item.better == "higher" else -1
    ends = sorted((sign * item.difference.low, sign * item.difference.high))
    if ends[1] < 0:
        return "lost"
    return "gained" if ends[0] > 0 else "no change shown"


def plain(interval: Interval, digits: int) -> str:
    """Mean and half-width, "21.34 ± 0.56"."""
    return f"{interval.mean:.{digits}f} ± {spread(interval, digits)}"


def signed(interval: Interval, digits: int) -> str:
    """A difference with its sign, "+1.234 ± 0.056"."""
    return f"{interval.mean:+.{digits}f} ± {spread(interval, digits)}"


def shown_p(p: float | None) -> str:
    if p is None:
        return "too few prompts to test"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def heading(metric: str, better: str) -> str:
    return f"{metric}\N{NO-BREAK SPACE}{ARROWS[better]}"


def scaled(interval: Interval, scale: float) -> Interval:
    mean, low, high = (scale * end for end in (interval.mean, interval.low, interval.high))
    return Interval(mean, low, high, interval.num_clips)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose first column is to the left and whose others are to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]


def markdown_table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (titles, rule, *cells)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _column_digits(result: Result, column: Column) -> int:
    cells = [cell for (_, name), cell in result.cells.items() if name == column.name]
    return digits_of(*(scaled(cell, column.scale) for cell in cells))


def _scale(result: Result, item: Comparison) -> float:
    return next(c.scale for c in result.columns if c.name == item.contrast.metric)


def digits_of(*intervals: Interval) -> int:
    """Decimals that suit all of these means: two if one of them reaches 10, else three."""
    return 2 if any(abs(interval.mean) >= 10 for interval in intervals) else 3


def spread(interval: Interval, digits: int) -> str:
    """Half of an interval's width, or infinity's sign."""
    half = interval.half_width
    return f"{half:.{digits}f}" if math.isfinite(half) else "∞"
