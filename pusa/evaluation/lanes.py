"""The rows of a benchmark on their way: where their videos are, who makes them, their scores."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pusa.atomic import write_json
from pusa.evaluation.backbones.registry import BACKBONES, SOURCES, Source, choose
from pusa.evaluation.entries import Entry
from pusa.evaluation.makers import (
    Bars,
    ControlMaker,
    Maker,
    ModelMaker,
    Outdated,
    Size,
    Work,
    is_made,
)
from pusa.evaluation.manifest import (
    Manifest,
    Resize,
    compare_manifests,
    read_manifest,
    write_manifest,
)
from pusa.evaluation.metrics.catalogue import DIMENSIONS, build
from pusa.evaluation.metrics.dimension import Dimension
from pusa.evaluation.metrics.ledger import Job, measure, video_scores
from pusa.evaluation.naming import BackboneRecord
from pusa.evaluation.official import read_results
from pusa.evaluation.presence import require_complete
from pusa.evaluation.provenance import (
    NO_NETWORK,
    Setting,
    manifest_of_model,
    manifest_of_results,
    manifest_of_videos,
    require_alike,
)
from pusa.evaluation.quiet import quiet
from pusa.evaluation.scoring import VideoScore
from pusa.evaluation.vbench_suite import PromptSuite, SuiteVideo
from pusa.pipelines import produce
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.parts import Part
from pusa.pipelines.studio import Memory
from pusa.pipelines.tasks import Task

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"  # beside the videos that it is of
VIDEOS = "videos.json"  # their names: the folder may hold others of an earlier, larger suite


@dataclass(frozen=True)
class Networks:
    """Behind the dimensions. source: the "benchmark"'s own, or those "standin"s that packages ship;
    folder, pins, device: see `backbones.registry.load`; device "auto": a GPU if there is one."""

    source: Source = "standin"
    folder: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict)
    resize: Resize = "board"
    device: str = "auto"

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(
                f"suite.networks.source={self.source!r} is none of {', '.join(SOURCES)}."
            )
        files = {file.path for backbone in BACKBONES.values() for file in backbone.files}
        unknown = sorted(set(self.pins) - files)
        if unknown:
            raise ValueError(
                f"suite.networks.pins: {', '.join(unknown)}: no file of a network; they are "
                f"{', '.join(sorted(files))}."
            )


@dataclass(frozen=True)
class Tools:
    """What videos are made with, unless an entry has its own. configs: of each entry its model,
    sampler and memory as plain values, for sidecars."""

    model: Model
    task: Task
    sampler: Sampler
    memory: Memory
    configs: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Lane:
    """A row. about: what it is, in a line; place: the folder of its videos; works: those that it
    has; maker: None for finished ones; manifest: None for controls; imported: scores that others
    measured, or None."""

    name: str
    about: str
    place: Path
    works: Sequence[Work]
    maker: Maker | None
    manifest: Manifest | None
    imported: Sequence[VideoScore] | None = None


def dimensions_of(
    networks: Networks, wanted: Sequence[str]
) -> tuple[dict[str, Dimension], dict[str, str]]:
    """Those of `wanted` that can be measured, and why the others cannot: they have no stand-in.

    ValueError for those whose files or packages are not there, with where to get them.
    """
    device = networks.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    ready, missing, faults = {}, {}, []
    for name in wanted:
        try:
            if DIMENSIONS[name].kind is not None:
                choose(name, networks.source)
        except ValueError as error:
            missing[name] = str(error)
            continue
        try:
            ready[name] = build(
                name, networks.source, networks.folder, device, networks.resize, networks.pins
            )
        except (ImportError, ValueError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ValueError(
            "\n  ".join(["these dimensions cannot be measured here:", *faults])
            + "\nLeave some out with suite.dimensions=[...], or take suite.networks.source=standin."
        )
    return ready, missing


def record_of(dimension: Dimension) -> BackboneRecord:
    """The network behind a dimension, as manifests have it."""
    backbone = dimension.backbone
    if backbone is None:
        return BackboneRecord(NO_NETWORK, "", True)
    return BackboneRecord(backbone.id, backbone.sha256, backbone.comparable)


def lanes_of(
    tools: Tools, rows: Mapping[str, Entry], controls: Sequence[str], contender: str,
    suite: PromptSuite, setting: Setting, size: Size, folder: Path, incomplete: bool,
) -> list[Lane]:  # fmt: skip
    """Entries in their order, then the controls; nothing is made. folder: of all rows' videos.

    ValueError for what cannot be made, and for videos or results of others that do not fit.
    """
    # First samples come first, so that a control, which has these alone, and the video that it is
    # made from are in one part.
    videos = sorted(suite.videos(setting.backbones), key=lambda v: v.sample)

    def works(place: Path) -> list[Work]:
        return [
            Work(v, suite.image(v.prompt), setting.seeds[v.sample], place / v.name) for v in videos
        ]

    lanes = []
    for name, entry in rows.items():
        place = Path(entry.videos) if entry.videos else folder / name
        if entry.results:
            scores, manifest = _imported(name, entry.results, suite, setting, incomplete)
            lanes.append(Lane(name, entry.describe(), place, (), None, manifest, scores))
        elif entry.videos:
            missing, manifest = _of_finished(place, name, setting, videos, suite, incomplete)
            there = [work for work in works(place) if work.path.name not in missing]
            lanes.append(Lane(name, entry.describe(), place, there, None, manifest))
        else:
            maker = ModelMaker(
                entry, entry.model_of(tools.model), entry.sampler_of(tools.sampler), tools.task,
                tools.memory, size, tools.configs[name],
            )  # fmt: skip
            maker.check(works(place)[0])
            manifest = manifest_of_model(
                setting, maker.model, maker.sampler, tools.task, maker.loras
            )
            lanes.append(Lane(name, entry.describe(), place, works(place), maker, manifest))
    ours = next(lane for lane in lanes if lane.name == contender)
    return lanes + [_control(name, ours, works(folder / name), folder, size) for name in controls]


def check_alike(
    lanes: Sequence[Lane], contender: str, setting: Setting, allow: Sequence[str]
) -> dict[str, list[str]]:
    """By row, in what it differs from the contender, in words. ValueError, with the row's name, if
    the two are not to be compared, and for finished videos that differ among themselves."""
    ours = next(lane.manifest for lane in lanes if lane.name == contender)
    assert ours is not None
    found = {}
    for lane in lanes:
        if lane.manifest is not None and lane.maker is None:
            require_alike(lane.manifest, [work.path for work in lane.works], allow)
        if lane.name == contender:
            continue
        # Of controls nothing is known but how they are measured.
        theirs = lane.manifest or replace(ours, backbones=setting.backbones, resize=setting.resize)
        try:
            found[lane.name] = [str(c) for c in compare_manifests(ours, theirs, allow)]
        except ValueError as error:
            raise ValueError(f"{contender} and {lane.name}: {error} (suite.allow)") from error
    return {name: changes for name, changes in found.items() if changes}


def generate(
    lanes: Sequence[Lane], folder: Path, part: Part, progress: Bars, overwrite: bool
) -> None:
    """Make this part's videos that are missing, row by row. folder: of all rows' videos.

    ValueError, before any is made, for videos that a model made otherwise. Controls follow the
    videos that they are made from.
    """
    todo = {lane.name: _unmade(lane, part, overwrite) for lane in lanes if lane.manifest}
    for lane in lanes:
        missing = todo[lane.name] if lane.manifest else _unmade(lane, part, overwrite=True)
        log.info("%s: %d videos, %d to be made.", lane.name, len(lane.works), len(missing))
        if missing:  # a manifest is true of all videos or it is not there
            (folder / lane.name / MANIFEST).unlink(missing_ok=True)
        if lane.maker is not None:
            _make(lane.maker, missing, progress(f"{lane.name}: videos"))


def write_records(lanes: Sequence[Lane], folder: Path) -> None:
    """What tells other programs of rows that are made and scored; folder: of all rows' videos."""
    for lane in lanes:
        if lane.manifest is not None and lane.imported is None:
            write_json(folder / lane.name / VIDEOS, [work.path.name for work in lane.works])
            write_manifest(folder / lane.name / MANIFEST, lane.manifest)


def _unmade(lane: Lane, part: Part, overwrite: bool) -> list[Work]:
    """This part's works of a lane that have no video as it would be made now."""
    if lane.maker is None:
        return []
    missing, outdated = [], []
    for work in part.of(list(lane.works)):
        try:
            missing += [] if is_made(lane.maker, work) else [work]
        except Outdated as error:
            outdated.append(error)
            missing.append(work)
    if outdated and not overwrite:
        raise ValueError(
            f"{outdated[0]}, as were {len(outdated)} videos of {lane.name!r} in all; choose "
            "another name= or suite.output=, or make them again: overwrite=true."
        )
    return missing


def _make(maker: Maker, works: Sequence[Work], bar: Callable[[Iterable], Iterable]) -> None:
    for number, work in enumerate(bar(works)):
        # What `produce` says of a video is said of the first one: the others are like it.
        with quiet(produce.__name__) if number else nullcontext():
            maker.make(work)
    if isinstance(maker, ModelMaker):
        maker.release()


def score(
    lane: Lane, dimensions: Mapping[str, Dimension], folder: Path, part: Part, progress: Bars
) -> list[VideoScore]:
    """This part's scores of a lane; those that are known are not measured again."""
    if lane.imported is not None:
        return list(lane.imported)
    jobs = [
        Job(
            work.path, work.image, work.video.prompt.text,
            tuple(d for d in work.video.prompt.dimensions if d in dimensions),
        )
        for work in lane.works
    ]  # fmt: skip
    for dimension in dimensions.values():
        dimension.reset()

    def shown(items: Sequence, what: str, /) -> Iterable:
        return progress(f"{lane.name}: {what}")(items)

    rows = measure(dimensions, jobs, folder / f"{lane.name}.jsonl", shown, part)
    names = {w.path.name: (w.video.prompt.stem, w.video.sample) for w in lane.works}
    return video_scores(rows, names)


def _control(name: str, ours: Lane, works: list[Work], folder: Path, size: Size) -> Lane:
    """One video of a prompt; shuffled: of each first one that the contender has."""
    firsts = [work for work in works if work.video.sample == 0]
    if name == "frame shuffle":
        if ours.imported is not None:
            raise ValueError(
                f"{name}: {ours.name} has results and no videos to shuffle; leave it out of "
                "suite.controls."
            )
        there = {work.path.name for work in ours.works}
        firsts = [work for work in firsts if work.path.name in there]
    maker = ControlMaker(name, size, lambda work: ours.place / work.path.name)
    return Lane(name, "", folder / name, firsts, maker, None)


def _imported(
    name: str, results: str, suite: PromptSuite, setting: Setting, incomplete: bool
) -> tuple[list[VideoScore], Manifest]:
    found = read_results(results, suite.prompts)
    scores = [s for s in found.videos if s.dimension in setting.backbones]
    there = {(s.prompt, s.sample, s.dimension) for s in scores}
    wanted = {
        (v.prompt.stem, v.sample, d)
        for v in suite.videos(setting.backbones)
        for d in v.prompt.dimensions
        if d in setting.backbones
    }
    if there - wanted:
        raise ValueError(
            f"{name}: {results} has {len(there - wanted)} scores that the suite does not ask for; "
            f"are there more samples than the {len(setting.seeds)} of suite.seeds?"
        )
    missing = {(prompt, sample) for prompt, sample, _ in wanted - there}
    if missing and not incomplete:
        dimensions = sorted({dimension for *_, dimension in wanted - there})
        raise ValueError(
            f"{name}: {results} lacks scores of {len(missing)} videos, in {', '.join(dimensions)}; "
            "leave those out of suite.dimensions, or allow it: suite.incomplete=true."
        )
    return scores, manifest_of_results(setting, name, found.source, len(missing))


def _of_finished(
    place: Path,
    name: str,
    setting: Setting,
    videos: list[SuiteVideo],
    suite: PromptSuite,
    incomplete: bool,
) -> tuple[Collection[str], Manifest]:
    """Names of videos that are missing; what is known of the others."""
    found = require_complete(place, videos, incomplete, suite.videos())
    if (place / MANIFEST).is_file():
        manifest = replace(
            read_manifest(place / MANIFEST), missing=len(found.missing), resize=setting.resize,
            backbones=setting.backbones,
        )  # fmt: skip
        return found.missing, manifest
    first = next(place / v.name for v in videos if v.name not in found.missing)
    return found.missing, manifest_of_videos(setting, name, first, len(found.missing))
