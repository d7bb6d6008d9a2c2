"""VBench-I2V's measures on a suite of prompts, the whole way: videos, scores, intervals, outputs.

Resumable in every step, and in shares: videos that are there and scores that are known are kept.
"""

from collections.abc import Mapping
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
)
from pusa.evaluation.makers import CONTROLS, Bars, Size
from pusa.evaluation.outputs import write_outputs
from pusa.evaluation.prompts import PromptSource
from pusa.evaluation.provenance import Setting
from pusa.evaluation.scoring import KNOWN
from pusa.evaluation.vbench_suite import images_key, prompts_key
from pusa.pipelines.loras import Strength
from pusa.pipelines.parts import Part


@dataclass(frozen=True)
class Benchmark:
    """What configs/suite/*.yaml say.

    lora, strength: what entries refer to, so that one value is typed once. seeds: one per sample of
    a prompt; entries: rows by name (a mapping of an `Entry`'s fields will do); contender: of them,
    what this is about; baseline: what it is held against, or None; controls: of CONTROLS;
    dimensions: of VBench-I2V's; crf: of the videos; published: whether the printed rows of the
    paper's `table` stand beside ours; allow: fields of manifests that may differ; incomplete:
    whether videos of others may be missing. ValueError for names that there are none of.
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
            object.__setattr__(self, name, tuple(getattr(self, name)))
        rows = {name: read_entry(name, row) for name, row in self.entries.items()}
        object.__setattr__(self, "entries", rows)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"suite.seeds={list(self.seeds)}; name each seed once, one at least.")
        for role in ("contender", "baseline"):
            name = getattr(self, role)
            if name is not None and name not in self.entries:
                raise ValueError(
                    f"suite.{role}={name!r} is none of {', '.join(self.entries)} (suite.entries)."
                )
        for name in (*self.controls, *self.entries):
            if name in self.entries and (name in CONTROLS or "/" in name or name.startswith(".")):
                raise ValueError(f"suite.entries: {name!r} cannot name a row; choose another name.")
        unknown = [c for c in self.controls if c not in CONTROLS]
        unknown += [d for d in self.dimensions if d not in KNOWN]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: unknown; suite.controls are of {', '.join(CONTROLS)}, "
                f"suite.dimensions of {', '.join(KNOWN)}."
            )


def evaluate_benchmark(
    tools: Tools, bench: Benchmark, name: str, progress: Bars,
    part: Part = Part(), overwrite: bool = False,  # noqa: B008 - frozen
) -> Path | None:  # fmt: skip
    """Generate what is missing, score, conclude; returns the page, None of one part of several.

    overwrite: videos that were made otherwise are made again. ValueError, before anything is made,
    for what cannot be.
    """
    rows = {n: entry for n, entry in bench.entries.items() if not entry.without}
    check_entries(rows, name)
    model, folder = tools.model, Path(bench.output)
    size = Size(model.num_frames, model.height, model.width, model.fps, bench.crf)
    images = folder / "images" / f"{size.width}x{size.height}"
    suite = bench.prompts.read(size.width, size.height, len(bench.seeds), images)
    ready, missing = dimensions_of(bench.networks, bench.dimensions)
    records = {n: record_of(dimension) for n, dimension in ready.items()}
    setting = Setting(
        suite.name, prompts_key(suite.prompts), images_key(suite), bench.seeds, size.height,
        size.width, size.num_frames, size.fps, size.crf, bench.networks.resize, records,
    )  # fmt: skip
    del ready  # their networks give way to the model's, and come back
    lanes = lanes_of(
        tools, rows, bench.controls, bench.contender, suite, setting, size, folder / "videos",
        bench.incomplete,
    )  # fmt: skip
    changes = check_alike(lanes, bench.contender, bench.baseline, bench.allow)
    for lane in lanes:
        generate(lane, part, progress, overwrite)
    ready, _ = dimensions_of(bench.networks, bench.dimensions)
    scores = {lane.name: score(lane, ready, folder / "scores", part, progress) for lane in lanes}
    if part.count > 1:
        return None
    result = conclude(
        suite,
        lanes,
        scores,
        bench.contender,
        bench.baseline,
        missing,
        changes,
        bench.table if bench.published else "",
    )
    left = {n: entry.without for n, entry in bench.entries.items() if entry.without}
    notes = tuple(f"{n} is not here: {why}" for n, why in left.items())
    return write_outputs(folder, replace(result, warnings=(*result.warnings, *notes)))
