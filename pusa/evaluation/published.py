"""Published VBench-I2V figures, to stand beside one's own. Only as printed; nothing is recomputed.

They are of "Unlocking Temporal Control in Pretrained Video Diffusion Models via Vectorized
Timestep Adaptation" (Pusa V1.0, arXiv 2507.16116 v2): its Table 1, which repeats VBench's board and
is of the whole suite, and Tables 2 to 5, of 750 videos that the paper does not name. Table 2 prints
totals alone; its rows are called here as in Table 5b, which has them in full.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pusa.evaluation.scoring import SCALES

SOURCE = "arXiv 2507.16116 v2"
_TOTALS = {"total": "Total", "i2v": "I2V", "quality": "Quality"}


@dataclass(frozen=True)
class Published:
    """A printed row. percent: as printed, by dimension and total, without what was not printed.

    note: what a reader of the figures must know, "" for most.
    """

    table: str
    row: str
    percent: Mapping[str, float]
    note: str

    @property
    def source(self) -> str:
        return f"{SOURCE}, Table {self.table}"

    def fractions(self) -> dict[str, float]:
        """The printed dimensions as `scoring.totals` takes them."""
        return {name: self.percent[name] / 100 for name in SCALES if name in self.percent}


@cache
def published() -> tuple[Published, ...]:
    """All rows in the paper's order. A row that it prints in two tables is there as often."""
    text = resources.files("pusa.evaluation").joinpath("published.csv").read_text("utf-8")
    return tuple(
        Published(
            entry["table"],
            entry["row"],
            {
                name: float(entry[column])
                for column, name in (_TOTALS | {name: name for name in SCALES}).items()
                if entry[column]
            },
            entry["note"],
        )
        for entry in csv.DictReader(text.splitlines())
    )


def find(table: str, row: str) -> Published:
    """One row by its table and name; ValueError, with the names there are, if there is none."""
    rows = [entry for entry in published() if entry.table == table]
    for entry in rows:
        if entry.row == row:
            return entry
    names = ", ".join(entry.row for entry in rows)
    tables = ", ".join(sorted({entry.table for entry in published()}))
    raise ValueError(
        f"{row!r} is no row of Table {table}; it has {names}."
        if rows
        else f"Table {table!r} is none of {tables}."
    )
