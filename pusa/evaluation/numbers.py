"""A result as data: JSON with everything, CSV by system and by video. Nothing is rounded."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pusa.evaluation.results import Comparison, Result
from pusa.evaluation.stats import Contrast
from pusa.evaluation.summary import verdict


def numbers(result: Result) -> dict[str, Any]:
    """Everything unrounded and unscaled, for JSON; an infinite end is null."""
    return {
        "title": result.title,
        "facts": dict(result.facts),
        "warnings": list(result.warnings),
        "columns": [asdict(column) for column in result.columns],
        "systems": [
            {
                "name": s.name, "role": s.role, "about": s.about,
                "manifest": None if s.manifest is None else asdict(s.manifest),
            }
            for s in result.systems
        ],
        "means": [
            {"system": system, "metric": column, **_finite(asdict(interval))}
            for (system, column), interval in result.cells.items()
        ],
        "comparisons": [_comparison_json(item) for item in result.comparisons],
        "missing": dict(result.missing),
        "retention": [_contrast_json(item) for item in result.retention],
        "published": [
            {"source": row.source, "row": row.row, "percent": dict(row.percent), "note": row.note}
            for row in result.published
        ],
    }  # fmt: skip


def system_csv(result: Result) -> str:
    """A line for each system and column: mean, both ends, prompts; unscaled."""
    rows = [["system", "role", "column", "better", "mean", "low", "high", "prompts"]]
    roles = {system.name: system.role for system in result.systems}
    better = {column.name: column.better for column in result.columns}
    for (system, column), cell in result.cells.items():
        ends = [*map(_exact, (cell.mean, cell.low, cell.high)), str(cell.num_clips)]
        rows.append([system, roles[system], column, better[column], *ends])
    return _csv(rows)


def video_csv(result: Result) -> str:
    """A line for each video and column, unscaled."""
    texts = {item.index: item for item in result.items}
    rows = [["system", "prompt", "sample", "video", "column", "value"]]
    for shot in result.shots:
        stem = texts[shot.index].stem
        for name, value in shot.values.items():
            rows.append([shot.system, stem, str(shot.sample), shot.path.name, name, _exact(value)])
    return _csv(rows)


def _comparison_json(item: Comparison) -> dict[str, Any]:
    return {
        "first": item.first, "second": item.second, "p": item.p, "detectable": item.detectable,
        "verdict": verdict(item), **_contrast_json(item.contrast),
    }  # fmt: skip


def _contrast_json(item: Contrast) -> dict[str, Any]:
    sides = {"first": item.first, "second": item.second, "difference": item.difference}
    return {
        "metric": item.metric,
        "better": item.better,
        **{f"{name}_value": _finite(asdict(interval)) for name, interval in sides.items()},
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _exact(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
