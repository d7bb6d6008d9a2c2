"""Lists of videos to make: a row of a .csv or .jsonl file for each. Makes none."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTS = ("at", "media", "lora")  # cells of a .csv with several values, ";" between them
_NAME = re.compile(r"[\w][\w .+,-]*")  # it becomes a file


@dataclass(frozen=True)
class Job:
    """One row. name: of the file, without .mp4; line: where it stands; values: by column, what is
    not there left out."""

    name: str
    line: int
    values: Mapping[str, Any]


def read_jobs(path: str | Path) -> list[Job]:
    """Jobs of a .csv with a header or of a .jsonl with an object a line.

    A row without a `name` is called by its number among the rows. ValueError, with the line, for
    what is neither, for a name that is no file's or is there twice, and for a file without rows.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: jobs are a .csv or a .jsonl file.")
    if not path.is_file():
        raise ValueError(f"{path}: no such file of jobs.")
    text = path.read_text("utf-8-sig")
    rows = _of_csv(path, text) if path.suffix == ".csv" else _of_jsonl(path, text)
    if not rows:
        raise ValueError(f"{path}: holds no jobs; it needs a row for each video.")
    jobs = [_job(path, number, *row) for number, row in enumerate(rows)]
    seen: dict[str, int] = {}
    for job in jobs:
        if job.name in seen:
            raise ValueError(
                f"{path}:{job.line}: {job.name!r} is the name of line {seen[job.name]}, too; every "
                "video is a file of its own."
            )
        seen[job.name] = job.line
    return jobs


def _of_csv(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    lines = text.splitlines()
    reader = csv.DictReader(lines, skipinitialspace=True)
    if not reader.fieldnames or not all(name and name.strip() for name in reader.fieldnames):
        raise ValueError(f"{path}: its first line must name every column, as name,prompt,at,seed.")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(
                f"{path}:{reader.line_num}: has another number of cells than the first line; put "
                "a cell with commas into quotes."
            )
        values = {key.strip(): cell.strip() for key, cell in row.items() if cell.strip()}
        rows.append((reader.line_num, {k: _cell(k, v) for k, v in values.items()}))
    return rows


def _cell(column: str, text: str) -> Any:
    return [part.strip() for part in text.split(";")] if column in LISTS else text


def _of_jsonl(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f'{path}:{number}: not an object of columns, as {{"prompt": ...}}.')
        rows.append((number, {key: value for key, value in row.items() if value is not None}))
    return rows


def _job(path: Path, number: int, line: int, row: dict[str, Any]) -> Job:
    name = str(row.pop("name", f"{number:05d}"))
    if not _NAME.fullmatch(name):
        raise ValueError(f"{path}:{line}: {name!r} is no name for a file.")
    return Job(name.removesuffix(".mp4"), line, row)
