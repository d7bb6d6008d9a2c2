"""A result as a LaTeX table for booktabs."""

import re
from collections.abc import Sequence

from pusa.evaluation.results import Column, Result
from pusa.evaluation.stats import Interval
from pusa.evaluation.tables import NOTE, digits_of, scaled, spread

BOLD = "Bold is the best mean above the controls, whether or not a difference is shown."
ARROWS = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
_ESCAPES = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$", "<": r"$<$", ">": r"$>$",
} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def latex(result: Result) -> str:
    """Systems as rows, controls below a line; the best above it bold, ties too.

    The caption is the title, which tells a stand-in, and what the intervals are.
    """
    own = [s.name for s in result.systems if s.role != "control"]
    controls = [s.name for s in result.systems if s.role == "control"]
    best = {c.name: _best(result, c, own) for c in result.columns}
    body = []
    for group, bold in ((own, best), (controls, {})):
        body += [r"\midrule"] if group else []
        for name in group:
            cells = [
                _cell(result.cells.get((name, c.name)), c, bold.get(c.name)) for c in result.columns
            ]
            body.append(" & ".join([escaped(name), *cells]) + r" \\")
    heads = [f"{escaped(c.name)} {ARROWS[c.better]}" for c in result.columns]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(f'{result.title}. {NOTE} {BOLD}')}}}",
        rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        " & ".join(["system", *heads]) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return re.sub("|".join(map(re.escape, _ESCAPES)), lambda match: _ESCAPES[match[0]], text)


def _cell(cell: Interval | None, column: Column, best: float | None) -> str:
    if cell is None:
        return "--"
    shown = scaled(cell, column.scale)
    digits = digits_of(shown)
    mean = f"{shown.mean:.{digits}f}"
    mean = rf"\textbf{{{mean}}}" if cell.mean == best else mean
    half = spread(shown, digits).replace("\N{INFINITY}", r"\infty")
    return rf"{mean} {{\scriptsize $\pm {half}$}}"


def _best(result: Result, column: Column, systems: Sequence[str]) -> float | None:
    """None of a single one: nothing is best alone."""
    means = [
        result.cells[system, column.name].mean
        for system in systems
        if (system, column.name) in result.cells
    ]
    if len(means) < 2:
        return None
    return max(means) if column.better == "higher" else min(means)
