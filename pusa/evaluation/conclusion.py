"""The end of a benchmark: from scores and manifests to a `Result` and its files."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pusa.evaluation.lanes import Lane
from pusa.evaluation.makers import ModelMaker
from pusa.evaluation.manifest import Manifest
from pusa.evaluation.metrics.catalogue import DIMENSIONS
from pusa.evaluation.naming import file_stem, title
from pusa.evaluation.published import published
from pusa.evaluation.results import Column, Item, Result, Role, Shot, System
from pusa.evaluation.scoring import KNOWN, QUANTITIES, SCALES, VideoScore
from pusa.evaluation.summary import cells_of, compare_systems, has
from pusa.evaluation.vbench_suite import PromptSuite
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.placements import multipliers_of, place_unseen
from pusa.pipelines.positions import Timing
from pusa.pipelines.schedule import schedule_of
from pusa.pipelines.tasks import Task

COPY = "static copy"


def conclude(
    suite: PromptSuite, lanes: Sequence[Lane], scores: Mapping[str, Sequence[VideoScore]],
    contender: str, baseline: str | None, missing: Mapping[str, str], changes: Sequence[str],
    table: str,
) -> Result:  # fmt: skip
    """missing: dimensions by why they were not measured; changes: in which contender and baseline
    differ, in words; table: of the paper, to stand beside, or "".
    """
    ours = next(lane for lane in lanes if lane.name == contender)
    assert ours.manifest is not None
    systems = tuple(_system(lane, contender, baseline) for lane in lanes)
    columns = columns_of(ours.manifest, scores[contender])
    cells = cells_of(scores, columns)
    rows = [s.name for s in systems if s.role in ("contender", "other")]
    pairs = [(row, baseline) for row in rows if baseline is not None]
    pairs += [(contender, s.name) for s in systems if s.role == "control"]
    basis = ours.manifest.basis()
    return Result(
        title=title(basis),
        stem=file_stem(basis),
        facts=_facts(ours.manifest, lanes, changes),
        columns=columns,
        systems=systems,
        items=_items(suite, lanes),
        shots=_shots(lanes, scores),
        cells=cells,
        comparisons=tuple(compare_systems(scores, columns, pairs, cells)),
        missing=missing,
        retention=(),
        published=tuple(row for row in published() if row.table == table),
        warnings=tuple(_warnings(cells, ours, contender)),
    )


def columns_of(manifest: Manifest, scores: Sequence[VideoScore]) -> tuple[Column, ...]:
    """The dynamic degree stands beside the total, since what does not move scores well."""
    totals = [q for q in QUANTITIES[::-1] if has(scores, q)]
    dimensions = [d for d in KNOWN if has(scores, d)]
    order = [*totals[:1], "dynamic_degree", *totals[1:], *dimensions]
    names = [n for n in dict.fromkeys(order) if n in (*totals, *dimensions)]
    return tuple(Column(n, _group(n), "higher", 100.0, _note(n, manifest)) for n in names)


def plan_of(model: Model, sampler: Sampler, task: Task, num_frames: int) -> Tensor:
    """The sigmas (S, F) that the network is told, call by call, when a task is sampled."""
    timing = Timing(model.spec, num_frames, model.fps)
    given = multipliers_of(place_unseen(task, timing))
    calls = schedule_of(model, sampler, given, num_frames).calls
    return torch.tensor([call.levels for call in calls])


def _group(name: str) -> str:
    if name in QUANTITIES:
        return "totals"
    return SCALES[name].group if name in SCALES else "no total"


def _note(name: str, manifest: Manifest) -> str:
    record = manifest.backbones.get(name)
    if record is None or DIMENSIONS[name].kind is None:
        return ""
    return record.id if record.comparable else f"{record.id}, not comparable with the benchmark's"


def _system(lane: Lane, contender: str, baseline: str | None) -> System:
    role: Role = "other"
    if lane.manifest is None:
        role = "control"
    elif lane.name == contender:
        role = "contender"
    elif lane.name == baseline:
        role = "baseline"
    plan = None
    if isinstance(lane.maker, ModelMaker):
        maker = lane.maker
        plan = plan_of(maker.model, maker.sampler, maker.task, maker.size.num_frames)
    return System(lane.name, role, lane.about, lane.manifest, plan)


def _facts(manifest: Manifest, lanes: Sequence[Lane], changes: Sequence[str]) -> dict[str, str]:
    facts = {
        "suite": f"{manifest.suite} (prompts {manifest.prompts[:12]}), "
        f"seeds {', '.join(map(str, manifest.seeds))}",
        "model": f"{manifest.model} (weights {manifest.weights[:12]}), {manifest.dtype}",
        "task": manifest.task,
        "sampling": f"{manifest.num_steps} steps of {manifest.sampler}, guidance "
        f"{manifest.guidance_scale:g}, shift {manifest.shift:g}",
        "videos": f"{manifest.num_frames} frames of {manifest.width}x{manifest.height} at "
        f"{manifest.fps:g} per second, {manifest.codec}, crf {manifest.crf}",
        "frames are resized": manifest.resize,
    }
    facts |= {lane.name: lane.about for lane in lanes if lane.manifest is not None}
    if changes:
        facts["contender and baseline differ in"] = "; ".join(changes)
    return facts | {"made on": manifest.hardware}


def _items(suite: PromptSuite, lanes: Sequence[Lane]) -> tuple[Item, ...]:
    used = {work.video.index for lane in lanes for work in lane.works}
    return tuple(
        Item(i, p.stem, p.text, p.image_type, suite.image(p))
        for i, p in enumerate(suite.prompts)
        if i in used
    )


def _shots(
    lanes: Sequence[Lane], scores: Mapping[str, Sequence[VideoScore]]
) -> tuple[Shot, ...]:  # fmt: skip
    shots = []
    for lane in lanes:
        values: dict[tuple[str, int], dict[str, float]] = {}
        for score in scores[lane.name]:
            values.setdefault((score.prompt, score.sample), {})[score.dimension] = score.value
        for work in lane.works:
            key = work.video.prompt.stem, work.video.sample
            shots.append(Shot(lane.name, work.video.index, key[1], work.path, values.get(key, {})))
    return tuple(shots)


def _warnings(cells: Mapping, ours: Lane, contender: str) -> list[str]:
    assert ours.manifest is not None
    warnings = []
    basis = ours.manifest.basis()
    if basis.stand_ins:
        warnings.append(
            "The networks behind these numbers are not the benchmark's: compare the rows with one "
            "another, and with nothing else."
        )
    if ours.manifest.missing:
        warnings.append(f"{ours.manifest.missing} scores of the suite are missing.")
    total, still = cells.get((contender, "Total")), cells.get((COPY, "Total"))
    if total is not None and still is not None and still.mean >= total.mean:
        warnings.append(
            f"A still copy of the input has a Total of {100 * still.mean:.2f}, {contender} "
            f"{100 * total.mean:.2f}: read the dynamic degree beside it."
        )
    return warnings
