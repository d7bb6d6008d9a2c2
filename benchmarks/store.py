"""The suite's results on disk: one JSON file into which a partial run is merged."""

import json
import logging
from pathlib import Path
from typing import Any

from pusa.atomic import write_json

log = logging.getLogger(__name__)
IDENTITY = ("case", "detail", "mode", "width", "dtype", "frames")


def identity(row: dict[str, Any]) -> tuple:
    """What a row is a measurement of."""
    return tuple(row.get(name) for name in IDENTITY)


class Store:
    """facts: of the machine; matmul: dtype -> FLOP per second, of every product timed; rows.

    Rows of the file are kept if they were measured under the same facts, else all begin anew.
    """

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path, self.facts = path, facts
        self.rows: dict[tuple, dict[str, Any]] = {}
        self.matmul: dict[str, list[float]] = {}
        old = read(path) if path.exists() else {}
        if old.get("facts") == facts:
            self.matmul = old["matmul"]
            self.rows = {identity(row): row for row in old["rows"]}
        elif old:
            log.warning("%s is of another machine or torch; it begins anew.", path.name)

    def add(self, row: dict[str, Any]) -> None:
        """In place of the row of this identity; written at once."""
        self.rows[identity(row)] = row
        self._write()

    def drop(self, **fields: Any) -> None:
        """Rows of these fields, which no longer hold."""
        self.rows = {
            key: row
            for key, row in self.rows.items()
            if any(row.get(name) != value for name, value in fields.items())
        }
        self._write()

    def add_matmul(self, dtype: str, rates: list[float]) -> None:
        self.matmul.setdefault(dtype, []).extend(rates)
        self._write()

    def _write(self) -> None:
        value = {"facts": self.facts, "matmul": self.matmul, "rows": list(self.rows.values())}
        write_json(self.path, value)


def read(path: Path) -> dict[str, Any]:
    """SystemExit if there are no results yet."""
    if not path.exists():
        raise SystemExit(f"{path}: not there; run `make bench` first.")
    return json.loads(path.read_text())
