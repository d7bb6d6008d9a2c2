"""The tables of the tasks' evaluation: tasks.md, and scores.jsonl with every single number."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pusa.atomic import write_text
from pusa.evaluation.score import Row
from pusa.evaluation.stats import Interval, Scores, contrast, mean_interval
from pusa.evaluation.tables import markdown_table, plain, signed
from pusa.evaluation.tasks_cases import Case
from pusa.evaluation.tasks_measure import SLOPE

OURS, BASE = "VTA", "base"
NOTE = (
    "Mean ± half of the 95% interval (Student t over clips). A difference is paired by clip; bold "
    "where its interval leaves out zero."
)


def write_tables(
    folder: Path, rows: Sequence[Row], cases: Sequence[Case], facts: Mapping[str, str]
) -> Path:
    """tasks.md and scores.jsonl; returns the path of tasks.md."""
    write_text(folder / "scores.jsonl", "".join(json.dumps(asdict(row)) + "\n" for row in rows))
    scores = by_metric(rows)
    lines = ["# Tasks: fidelity, seams, drift (no benchmark's measures)", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", NOTE]
    for group in dict.fromkeys(case.group for case in cases):
        members = [case for case in cases if case.group == group]
        lines += ["", f"## {group}", ""]
        lines += drift_table(members, scores) if group == "drift" else table(members, scores)
    path = folder / "tasks.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def by_metric(rows: Sequence[Row]) -> dict[tuple[str, str], Scores]:
    """(system, "case/metric") -> values by clip, without those that do not apply."""
    scores: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        clips = scores.setdefault((row.system, row.metric), {})
        if row.value is not None:
            clips.setdefault(row.index, []).append(row.value)
    return {key: clips for key, clips in scores.items() if clips}


def table(cases: Sequence[Case], scores: Mapping[tuple[str, str], Scores]) -> list[str]:
    """A row for each setting and number; the last column is against the group's first setting."""
    controls = _controls(cases, scores)
    titles = ["", "", BASE, OURS, f"{OURS} - {BASE}", *controls]
    several = len(cases) > 1
    titles += [f"{OURS} - {OURS} at {cases[0].setting}"] if several else []
    cells = []
    for metric in _metrics(cases[0], scores):
        for case in cases:
            name = f"{case.name}/{metric}"
            row = [metric, case.setting, *_compared(name, scores)]
            row += [_mean(scores.get((control, name))) for control in controls]
            first = f"{cases[0].name}/{metric}"
            row += [_difference(scores, (OURS, name), (OURS, first))] if several else []
            cells.append(row)
    return markdown_table(titles, cells)


def drift_table(cases: Sequence[Case], scores: Mapping[tuple[str, str], Scores]) -> list[str]:
    """A row for each number, setting and system; a column for each segment of the extension."""
    names = _metrics(cases[0], scores)
    columns = list(dict.fromkeys(name.partition("/")[2] for name in names))
    cells = []
    for metric in dict.fromkeys(name.partition("/")[0] for name in names):
        for case in cases:
            parts = [f"{case.name}/{metric}/{column}" for column in columns]
            cells += [
                [metric, case.setting, system, *(_mean(scores.get((system, p))) for p in parts)]
                for system in (BASE, OURS)
            ]
            apart = [_difference(scores, (OURS, p), (BASE, p)) for p in parts]
            cells.append([metric, case.setting, f"{OURS} - {BASE}", *apart])
            if case is not cases[0]:
                first = [f"{cases[0].name}/{metric}/{column}" for column in columns]
                pairs = zip(parts, first, strict=True)
                apart = [_difference(scores, (OURS, p), (OURS, f)) for p, f in pairs]
                cells.append(
                    [metric, case.setting, f"{OURS} - {OURS} at {cases[0].setting}", *apart]
                )
        for control in _controls(cases, scores):
            parts = [f"{cases[0].name}/{metric}/{column}" for column in columns]
            cells.append([metric, "", control, *(_mean(scores.get((control, p))) for p in parts)])
    return markdown_table(["", "multipliers", "", *map(_column, columns)], cells)


def _column(name: str) -> str:
    return name if name == SLOPE else f"segment {name}"


def _metrics(case: Case, scores: Mapping[tuple[str, str], Scores]) -> list[str]:
    found = (m for _, m in scores if m.startswith(f"{case.name}/"))
    return list(dict.fromkeys(metric.partition("/")[2] for metric in found))


def _controls(cases: Sequence[Case], scores: Mapping[tuple[str, str], Scores]) -> list[str]:
    starts = tuple(f"{case.name}/" for case in cases)
    systems = dict.fromkeys(s for s, metric in scores if metric.startswith(starts))
    return [system for system in systems if system not in (OURS, BASE)]


def _compared(name: str, scores: Mapping[tuple[str, str], Scores]) -> list[str]:
    means = [_mean(scores.get((system, name))) for system in (BASE, OURS)]
    return [*means, _difference(scores, (OURS, name), (BASE, name))]


def _mean(values: Scores | None) -> str:
    if values is None:
        return ""
    interval = mean_interval(values)
    return plain(interval, _digits(interval))


def _difference(
    scores: Mapping[tuple[str, str], Scores], first: tuple[str, str], second: tuple[str, str]
) -> str:
    if first == second or first not in scores or second not in scores:
        return ""
    both = contrast(first[1], scores[first], scores[second])
    apart = both.difference
    text = signed(apart, _digits(both.first, both.second))
    return f"**{text}**" if apart.low > 0 or apart.high < 0 else text


def _digits(*intervals: Interval) -> int:
    """Two decimals, or one where a mean reaches 10."""
    return 1 if any(abs(interval.mean) >= 10 for interval in intervals) else 2
