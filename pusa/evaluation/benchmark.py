"""VBench-I2V's measures on a suite of prompts, the whole way: videos, scores, intervals, outputs.

Resumable in every step, and in shares: videos that are there and scores that are known are kept.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pusa.evaluation.conclusion import conclude
from pusa.evaluation.entries import Entry, check_entries, read_entry
from pusa.evaluation.lanes import (
    Networks,
    Tools,
    check_alike,
    dimensions_of,
    generate,
    lanes_of,
    record_of,
    score,
    write_records,
)
from pusa.evaluation.makers import CONTROLS, Bars, Size
from pusa.evaluation.naming import BackboneRecord
from pusa.evaluation.outputs import write_outputs
from pusa.evaluation.prompts import PromptSource
from pusa.evaluation.provenance import Setting, official
from pusa.evaluation.published import published
from pusa.evaluation.scoring import KNOWN
from pusa.evaluation.vbench_suite import images_key, prompts_key
from pusa.pipelines.loras import Strength
from pusa.pipelines.parts import Part

ROW_NAME = re.compile(r"\w[^/\\:*?\[\]\0]*")


@dataclass(frozen=True)
class Benchmark:
    """What configs/suite/*.yaml say.

    lora, strength: what entries refer to, so that one value is typed once. seeds: one per sample of
    a prompt; entries: rows by name (a mapping of an `Entry`'s fields will do, None is no row);
    contender: of them, what this is about; baseline: what it is held against, or None; controls: of
    CONTROLS; dimensions: of VBench-I2V's; crf: of the videos; published: whether the printed rows
    of the paper's `table` stand beside ours; allow: fields of manifests that may differ;
    incomplete: whether videos of others may be missing. ValueError for names that there are none
    of.
    """

    prompts: PromptSource
    seeds: tuple[int, ...]
    entries: Mapping[str, Entry]
    contender: str
    baseline: str | None
    networks: Networks
    output: str
    lora: str = ""
    strength: Strength = 1.0
    controls: tuple[str, ...] = CONTROLS
    dimensions: tuple[str, ...] = KNOWN
    crf: int = 10
    table: str = "1"
    published: bool = False
    allow: tuple[str, ...] = ()
    incomplete: bool = False

    def __post_init__(self):
        for name in ("seeds", "controls", "dimensions", "allow"):
            object.__setattr__(self, name, _listed(name, getattr(self, name)))
        object.__setattr__(self, "table", str(self.table))  # a 1 of YAML is a number
        rows = {str(name): row for name, row in self.entries.items() if row is not None}
        rows = {name: read_entry(name, row) for name, row in rows.items()}
        object.__setattr__(self, "entries", rows)
        numbers = all(type(seed) is int for seed in self.seeds)
        if not (self.seeds and numbers) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"suite.seeds={list(self.seeds)}; name whole numbers, each once, one at least."
            )
        self._check_rows()
        unknown = [c for c in self.controls if c not in CONTROLS]
        unknown += [d for d in self.dimensions if d not in KNOWN]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: unknown; suite.controls are of {', '.join(CONTROLS)}, "
                f"suite.dimensions of {', '.join(KNOWN)}."
            )
        tables = sorted({row.table for row in published()})
        if self.table not in tables:
            raise ValueError(f"suite.table={self.table!r} is none of {', '.join(tables)}.")

    def _check_rows(self):
        for name in self.entries:
            if name in CONTROLS or not ROW_NAME.fullmatch(name):
                raise ValueError(
                    f"suite.entries: {name!r} cannot name a row; its videos' folder is called so: "
                    "begin with a letter or digit, without / \\ : * ? [ ], unlike a control."
                )
        for role in ("contender", "baseline"):
            name = getattr(self, role)
            if name is not None and name not in self.entries:
                raise ValueError(
                    f"suite.{role}={name!r} is none of {', '.join(self.entries)} (suite.entries)."
                )
        if self.contender == self.baseline:
            raise ValueError(
                f"suite.contender and suite.baseline are both {self.contender!r}; name another "
                "row, or suite.baseline=null."
            )
        without = self.entries[self.contender].without
        if without:
            raise ValueError(f"suite.contender={self.contender!r} cannot be made: {without}")


def evaluate_benchmark(
    tools: Tools, bench: Benchmark, name: str, progress: Bars,
    part: Part = Part(), overwrite: bool = False,  # noqa: B008 - frozen
) -> Path | None:  # fmt: skip
    """Generate what is missing, score, conclude; returns the page, None of one part of several.

    overwrite: videos that were made otherwise are made again. ValueError, before anything is made,
    for what cannot be.
    """
    rows = {n: entry for n, entry in bench.entries.items() if not entry.without}
    baseline = bench.baseline if bench.baseline in rows else None
    check_entries(rows, name)
    model, folder = tools.model, Path(bench.output)
    size = Size(model.num_frames, model.height, model.width, model.fps, bench.crf)
    images = folder / "images" / f"{size.width}x{size.height}"
    suite = bench.prompts.read(size.width, size.height, len(bench.seeds), images)
    records, missing = _records(bench, rows)
    if not suite.videos(records):
        raise ValueError(
            f"{suite.name}: no prompt is scored in {', '.join(records)}; choose others of "
            "suite.dimensions."
        )
    setting = Setting(
        suite.name, prompts_key(suite.prompts), images_key(suite), bench.seeds, size.height,
        size.width, size.num_frames, size.fps, size.crf, bench.networks.resize, records,
    )  # fmt: skip
    lanes = lanes_of(
        tools, rows, bench.controls, bench.contender, suite, setting, size, folder / "videos",
        bench.incomplete,
    )  # fmt: skip
    allow = (*bench.allow, "missing") if bench.incomplete else bench.allow
    changes = check_alike(lanes, bench.contender, setting, allow)
    generate(lanes, folder / "videos", part, progress, overwrite)
    ready = dimensions_of(bench.networks, tuple(records))[0] if _is_measured(bench, rows) else {}
    scores = {lane.name: score(lane, ready, folder / "scores", part, progress) for lane in lanes}
    if part.count > 1:
        return None
    write_records(lanes, folder / "videos")
    result = conclude(
        suite, lanes, scores, bench.contender, baseline, records, missing, changes,
        bench.table if bench.published else "",
    )  # fmt: skip
    left = {n: entry.without for n, entry in bench.entries.items() if entry.without}
    notes = tuple(f"{n} is not here: {why}" for n, why in left.items())
    return write_outputs(folder, replace(result, warnings=(*result.warnings, *notes)))


def _listed(name: str, values: Iterable) -> tuple:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"suite.{name}={values!r} is no list; write suite.{name}=[{values}].")
    return tuple(values)


def _is_measured(bench: Benchmark, rows: Mapping[str, Entry]) -> bool:
    """Whether anything is: results of others need no network."""
    return bool(bench.controls) or not all(row.results for row in rows.values())


def _records(
    bench: Benchmark, rows: Mapping[str, Entry]
) -> tuple[dict[str, BackboneRecord], dict[str, str]]:
    """The networks of what can be measured, which give way to the model's and come back; and why
    the rest cannot. ValueError if nothing can."""
    if not _is_measured(bench, rows):
        return official(bench.dimensions), {}
    ready, missing = dimensions_of(bench.networks, bench.dimensions)
    if not ready:
        raise ValueError("; ".join(missing.values()) or "suite.dimensions is empty; name some.")
    return {name: record_of(dimension) for name, dimension in ready.items()}, missing
