"""The end of a benchmark: from scores and manifests to a `Result` and its files."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pusa.evaluation.lanes import Lane
from pusa.evaluation.makers import ModelMaker
from pusa.evaluation.manifest import Manifest
from pusa.evaluation.metrics.catalogue import DIMENSIONS
from pusa.evaluation.naming import BackboneRecord, Basis, common, file_stem, title
from pusa.evaluation.provenance import UNKNOWN
from pusa.evaluation.published import published
from pusa.evaluation.results import Column, Item, Result, Role, Shot, System
from pusa.evaluation.scoring import KNOWN, QUANTITIES, SCALES, VideoScore
from pusa.evaluation.stats import Interval
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
    contender: str, baseline: str | None, backbones: Mapping[str, BackboneRecord],
    missing: Mapping[str, str], changes: Mapping[str, Sequence[str]], table: str,
) -> Result:  # fmt: skip
    """backbones: of what is measured here; missing: dimensions by why they were not measured;
    changes: by row, in what it differs from the contender; table: of the paper, to stand beside, or
    "".
    """
    ours = next(lane for lane in lanes if lane.name == contender)
    assert ours.manifest is not None
    systems = tuple(_system(lane, contender, baseline) for lane in lanes)
    columns = columns_of(ours.manifest.backbones, scores[contender])
    cells = cells_of(scores, columns)
    rows = [s.name for s in systems if s.role in ("contender", "other")]
    pairs = [(row, baseline) for row in rows if baseline is not None]
    pairs += [(contender, s.name) for s in systems if s.role == "control"]
    basis = _basis(lanes, backbones)
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
        warnings=tuple(_warnings(cells, lanes, contender, basis)),
    )


def columns_of(
    backbones: Mapping[str, BackboneRecord], scores: Sequence[VideoScore]
) -> tuple[Column, ...]:
    """The dynamic degree stands beside the total, since what does not move scores well."""
    totals = [q for q in QUANTITIES[::-1] if has(scores, q)]
    dimensions = [d for d in KNOWN if has(scores, d)]
    order = [*totals[:1], "dynamic_degree", *totals[1:], *dimensions]
    names = [n for n in dict.fromkeys(order) if n in (*totals, *dimensions)]
    return tuple(Column(n, _group(n), "higher", 100.0, _note(n, backbones)) for n in names)


def plan_of(model: Model, sampler: Sampler, task: Task, num_frames: int) -> Tensor:
    """The sigmas (S, F) that the network is told, call by call, when a task is sampled."""
    timing = Timing(model.spec, num_frames, model.fps)
    given = multipliers_of(place_unseen(task, timing))
    calls = schedule_of(model, sampler, given, num_frames).calls
    return torch.tensor([call.levels for call in calls])


def _basis(lanes: Sequence[Lane], backbones: Mapping[str, BackboneRecord]) -> Basis:
    """What the whole table stands on, its controls too."""
    bases = [lane.manifest.basis() for lane in lanes if lane.manifest is not None]
    controls = any(lane.manifest is None for lane in lanes)
    return common([*bases, *[Basis(backbones, public=True, complete=True)] * controls])


def _group(name: str) -> str:
    if name in QUANTITIES:
        return "totals"
    return SCALES[name].group if name in SCALES else "no total"


def _note(name: str, backbones: Mapping[str, BackboneRecord]) -> str:
    record = backbones.get(name)
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


def _facts(
    manifest: Manifest, lanes: Sequence[Lane], changes: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Of the contender what is known: of finished videos or results it is less."""
    facts = {
        "suite": f"{manifest.suite} (prompts {manifest.prompts[:12]}), "
        f"seeds {', '.join(map(str, manifest.seeds))}"
    }
    if manifest.num_steps:
        facts |= {
            "model": f"{manifest.model} (weights {manifest.weights[:12]}), {manifest.dtype}",
            "task": manifest.task,
            "sampling": f"{manifest.num_steps} steps of {manifest.sampler}, guidance "
            f"{manifest.guidance_scale:g}, shift {manifest.shift:g}",
        }
    if manifest.num_frames:
        quality = f", {manifest.codec}, crf {manifest.crf}" if manifest.crf >= 0 else ""
        facts["videos"] = (
            f"{manifest.num_frames} frames of {manifest.width}x{manifest.height} at "
            f"{manifest.fps:g} per second{quality}"
        )
    facts["frames are resized"] = manifest.resize
    facts |= {lane.name: lane.about for lane in lanes if lane.manifest is not None}
    for name, differences in changes.items():
        facts[f"{name} differs from the contender in"] = "; ".join(differences)
    return facts if manifest.hardware == UNKNOWN else facts | {"made on": manifest.hardware}


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


def _warnings(
    cells: Mapping[tuple[str, str], Interval], lanes: Sequence[Lane], contender: str, basis: Basis
) -> list[str]:
    warnings = []
    if not all(record.comparable for record in basis.backbones.values()):
        warnings.append(
            "The networks behind these numbers are not the benchmark's: compare the rows with one "
            "another, and with nothing else."
        )
    elif basis.stand_ins:
        warnings.append(f"Without {', '.join(basis.stand_ins)} this is not the benchmark.")
    for lane in lanes:
        if lane.manifest is not None and lane.manifest.missing:
            warnings.append(f"{lane.name}: {lane.manifest.missing} videos are missing.")
    total, still = cells.get((contender, "Total")), cells.get((COPY, "Total"))
    if total is not None and still is not None and still.mean >= total.mean:
        warnings.append(
            f"A still copy of the input has a Total of {100 * still.mean:.2f}, {contender} "
            f"{100 * total.mean:.2f}: read the dynamic degree beside it."
        )
    return warnings
