"""`pusa published`: the figures that the paper prints, to look at without running anything."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pusa import entry


def add_commands(commands) -> None:
    published = commands.add_parser(
        "published",
        help="the paper's tables as it prints them, and what is wrong in them",
        description="Prints rows of arXiv 2507.16116 v2. `python evaluate.py "
        "experiment=paper/tableX --published` prints them beside one's own.",
    )
    published.add_argument("table", nargs="?", help="1, 2, 3, 4a, 4b, 4c, 5a or 5b; default: all")
    published.add_argument("--table", dest="named", metavar="TABLE", help="the same")
    published.add_argument("--json", metavar="FILE", help="write the rows; - prints them instead")
    published.set_defaults(run=_published)


def _published(options: argparse.Namespace) -> None:
    from pusa.evaluation.published import published

    if options.table and options.named and options.table != options.named:
        raise ValueError(f"table {options.table} or table {options.named}? Name one.")
    wanted = options.table or options.named
    rows = [row for row in published() if wanted in (None, row.table)]
    if not rows:
        known = ", ".join(dict.fromkeys(row.table for row in published()))
        raise ValueError(f"table {wanted!r} is none of {known}.")
    entry.show(Printed(rows), options.json)


@dataclass(frozen=True)
class Printed:
    """Published rows, of one table or of several."""

    rows: Sequence[Any]

    @property
    def ok(self) -> bool:
        return True

    def text(self) -> str:
        tables = dict.fromkeys(row.table for row in self.rows)
        return "\n\n".join(self._table([r for r in self.rows if r.table == t]) for t in tables)

    def _table(self, rows: Sequence[Any]) -> str:
        from pusa.evaluation.tables import aligned

        columns = list(dict.fromkeys(name for row in rows for name in row.percent))
        cells = [["", *columns]]
        for row in rows:
            shown = (f"{row.percent[c]:.2f}" if c in row.percent else "" for c in columns)
            cells.append([row.row + (" *" if row.note else ""), *shown])
        notes = [f"* {row.row}: {row.note}" for row in rows if row.note]
        return "\n".join([f"{rows[0].source}, as printed", *aligned(cells), *notes])

    def to_json(self) -> dict:
        return {"rows": [vars(row) | {"source": row.source} for row in self.rows]}
