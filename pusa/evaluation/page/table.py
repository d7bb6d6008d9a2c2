"""The page's main table: our systems, controls apart, and below them what the paper printed."""

from collections.abc import Sequence
from itertools import groupby

from pusa.evaluation.page.markup import Markup, join, tag
from pusa.evaluation.page.view import DASH, View, ends, number, sign, words
from pusa.evaluation.published import SOURCE, Published
from pusa.evaluation.results import Column, System
from pusa.evaluation.tables import ARROWS, scaled

MARKS = "abcdefghijklmnopqrstuvwxyz"
NOTE = (
    "Mean and its 95% interval over prompts; the arrow says which way is better, bold is best of "
    "the systems that are no control. A click on a heading sorts."
)
ROLES = {"contender": "contender", "baseline": "baseline", "control": "control", "other": ""}


def table(view: View) -> Markup:
    """With its footnotes and what was not measured."""
    models = [s for s in view.result.systems if s.role != "control"]
    controls = [s for s in view.result.systems if s.role == "control"]
    bodies = [_body(view, models, "models", "")]
    if controls:
        bodies.append(_body(view, controls, "controls", "Controls, which need no model"))
    if view.result.published:
        bodies.append(_published(view))
    return join(
        tag(
            "div",
            tag("table", tag("caption", view.result.title), _head(view), *bodies, class_="means"),
            class_="scroll", tabindex="0", role="region", aria_label="Table of means",
        ),
        tag("p", NOTE, class_="note"),
        _notes(view),
    )  # fmt: skip


def best(view: View, column: Column) -> str | None:
    """The system of the best mean among those that are no control; None of a single one."""
    cells = {
        s.name: view.result.cells[s.name, column.name].mean * sign(column)
        for s in view.result.systems
        if s.role != "control" and (s.name, column.name) in view.result.cells
    }
    return max(cells, key=lambda name: cells[name]) if len(cells) > 1 else None


def system_name(view: View, system: System) -> Markup:
    """A dot of the system's colour, and its name."""
    dot = tag("i", class_=f"dot s{view.place(system.name)}", aria_hidden="true")
    return tag("span", dot, system.name, class_="system")


def _head(view: View) -> Markup:
    groups = [(name, len(list(run))) for name, run in groupby(view.columns, lambda c: c.group)]
    marks = _marks(view)
    top = [tag("th", name, colspan=size, scope="colgroup") for name, size in groups]
    cells = []
    for column in view.columns:
        mark = tag("sup", marks[column.note]) if column.note else None
        label = f"{words(column.name)}\N{NO-BREAK SPACE}{ARROWS[column.better]}"
        title = f"{column.name}: {column.better} is better. Sort by it."
        button = tag("button", label, mark, type="button", class_="sort", title=title)
        cells.append(
            tag("th", button, scope="col", data_column=column.name,
                data_better=column.better, class_=_edge(view, column))
        )  # fmt: skip
    return tag(
        "thead",
        tag("tr", tag("th", "system", rowspan="2", scope="col"), *top, class_="groups"),
        tag("tr", *cells),
    )


def _body(view: View, systems: Sequence[System], class_: str, heading: str) -> Markup:
    leaders = {column.name: best(view, column) for column in view.columns}
    rows = [_divider(view, heading)] if heading else []
    for system in systems:
        role = ROLES[system.role]
        name = tag(
            "th", system_name(view, system), tag("span", role, class_="role") if role else None,
            tag("small", system.about) if system.about else None, scope="row",
        )  # fmt: skip
        cells = [_cell(view, system.name, c, leaders[c.name]) for c in view.columns]
        rows.append(tag("tr", name, *cells, class_=system.role))
    return tag("tbody", *rows, class_=class_)


def _cell(view: View, system: str, column: Column, leader: str | None) -> Markup:
    cell, edge = view.result.cells.get((system, column.name)), _edge(view, column)
    if cell is None:
        return tag("td", DASH, class_=edge, title=f"{column.name} does not apply to {system}")
    shown, digits = scaled(cell, column.scale), view.digits[column.name]
    mean = tag("b" if system == leader else "span", number(shown.mean, digits))
    spread = tag("small", ends(shown, digits))
    title = f"{system}, {column.name}: mean of {cell.num_clips} prompts and its 95% interval"
    return tag("td", mean, spread, class_=edge, data_value=shown.mean, title=title)


def _published(view: View) -> Markup:
    rows = [_divider(view, f"As printed in {SOURCE}, under other conditions: not ours, not tested")]
    marks = _marks(view)
    for entry in view.result.published:
        mark = tag("sup", marks[entry.note]) if entry.note else None
        cells = [_printed(view, entry, column) for column in view.columns]
        source = tag("small", f"Table {entry.table}")
        rows.append(tag("tr", tag("th", entry.row, mark, source, scope="row"), *cells))
    return tag("tbody", *rows, class_="published")


def _printed(view: View, entry: Published, column: Column) -> Markup:
    edge = _edge(view, column)
    if column.name not in entry.percent:
        return tag("td", DASH, class_=edge, title="not printed")
    value = entry.percent[column.name]
    return tag("td", tag("span", f"{value:.2f}"), class_=edge, data_value=value)


def _divider(view: View, text: str) -> Markup:
    heading = tag("th", tag("span", text), colspan=len(view.columns) + 1, scope="rowgroup")
    return tag("tr", heading, class_="divider")


def _edge(view: View, column: Column) -> str | None:
    """A line to the left of a group's first column."""
    place = view.columns.index(column)
    starts = place == 0 or view.columns[place - 1].group != column.group
    return "edge" if starts else None


def _marks(view: View) -> dict[str, str]:
    """Note -> its letter; equal notes share one."""
    notes = [column.note for column in view.columns]
    notes += [entry.note for entry in view.result.published]
    distinct = [note for note in dict.fromkeys(notes) if note]
    count = len(MARKS)
    return {note: MARKS[i % count] * (i // count + 1) for i, note in enumerate(distinct)}


def _notes(view: View) -> Markup:
    lines = [
        tag("li", tag("sup", mark), " ", note, class_="footnote")
        for note, mark in _marks(view).items()
    ]
    lines += [
        tag("li", "Not measured: ", tag("strong", name), f", {why}", class_="missing")
        for name, why in view.result.missing.items()
    ]
    return tag("ul", *lines, class_="notes") if lines else Markup("")
