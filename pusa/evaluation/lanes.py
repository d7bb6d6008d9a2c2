"""The rows of a benchmark on their way: where their videos are, who makes them, their scores."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pusa.evaluation.backbones.registry import Source, choose
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
    Setting,
    manifest_of_model,
    manifest_of_results,
    manifest_of_videos,
)
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


@dataclass(frozen=True)
class Networks:
    """Behind the dimensions. source: the "benchmark"'s own, or those "standin"s that packages ship;
    folder, pins, device: see `backbones.registry.load`; device "auto": a GPU if there is one."""

    source: Source = "standin"
    folder: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict)
    resize: Resize = "board"
    device: str = "auto"


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
        return BackboneRecord("none needed", "", True)
    return BackboneRecord(backbone.id, backbone.sha256, backbone.comparable)


def lanes_of(
    tools: Tools, rows: Mapping[str, Entry], controls: Sequence[str], contender: str,
    suite: PromptSuite, setting: Setting, size: Size, folder: Path, incomplete: bool,
) -> list[Lane]:  # fmt: skip
    """Entries in their order, then the controls; nothing is made, foreign videos are checked."""
    videos = suite.videos(setting.backbones)

    def works(place: Path, samples: int | None = None) -> list[Work]:
        return [
            Work(v, suite.image(v.prompt), setting.seeds[v.sample], place / v.name)
            for v in videos
            if samples is None or v.sample < samples
        ]

    lanes = []
    for name, entry in rows.items():
        place = Path(entry.videos) if entry.videos else folder / name
        if entry.results:
            scores, manifest = _imported(entry, suite, setting)
            lanes.append(Lane(name, entry.describe(), place, (), None, manifest, scores))
        elif entry.videos:
            manifest = _of_finished(place, name, setting, videos, incomplete)
            there = [work for work in works(place) if work.path.is_file()]
            lanes.append(Lane(name, entry.describe(), place, there, None, manifest))
        else:
            maker = ModelMaker(
                entry, entry.model_of(tools.model), entry.sampler_of(tools.sampler), tools.task,
                tools.memory, size, tools.configs[name],
            )  # fmt: skip
            manifest = manifest_of_model(
                setting, maker.model, maker.sampler, tools.task, maker.loras
            )
            lanes.append(Lane(name, entry.describe(), place, works(place), maker, manifest))
    theirs = next(lane.place for lane in lanes if lane.name == contender)
    for name in controls:
        place = folder / name
        maker = ControlMaker(name, size, lambda work: theirs / work.path.name)
        lanes.append(Lane(name, "", place, works(place, samples=1), maker, None))
    return lanes


def check_alike(
    lanes: Sequence[Lane], contender: str, baseline: str | None, allow: Sequence[str]
) -> list[str]:
    """What differs between the two, in words. ValueError if they are not to be compared."""
    manifests = {lane.name: lane.manifest for lane in lanes}
    ours, theirs = manifests[contender], manifests.get(baseline or "")
    if ours is None or theirs is None:
        return []
    return [str(change) for change in compare_manifests(ours, theirs, allow)]


def generate(lane: Lane, part: Part, progress: Bars, overwrite: bool) -> None:
    """Make this part's videos of a lane that are missing. ValueError for those made otherwise."""
    if lane.maker is None:
        return
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
    log.info("%s: %d videos, %d to be made.", lane.name, len(lane.works), len(missing))
    for number, work in enumerate(progress(f"{lane.name}: videos")(missing)):
        with _told(once=number == 0):
            lane.maker.make(work)
    if isinstance(lane.maker, ModelMaker):
        lane.maker.release()
    if lane.manifest is not None:
        write_manifest(lane.place / MANIFEST, lane.manifest)


@contextmanager
def _told(once: bool) -> Iterator[None]:
    """What `produce` says of a video is said of the first one: the others are like it."""
    speaker = logging.getLogger(produce.__name__)
    level = speaker.level
    speaker.setLevel(level if once else logging.WARNING)
    try:
        yield
    finally:
        speaker.setLevel(level)


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


def _imported(
    entry: Entry, suite: PromptSuite, setting: Setting
) -> tuple[list[VideoScore], Manifest]:
    assert entry.results is not None
    found = read_results(entry.results, suite.prompts)
    wanted = {(p.stem, d) for p in suite.prompts for d in p.dimensions}
    scores = [s for s in found.videos if s.dimension in setting.backbones]
    expected = sum(d in setting.backbones for _, d in wanted) * len(setting.seeds)
    records = {name: BackboneRecord(found.source, "", True) for name in found.means}
    missing = max(0, expected - len(scores))
    return scores, manifest_of_results(setting, entry.describe(), records, missing)


def _of_finished(
    place: Path, name: str, setting: Setting, videos: list[SuiteVideo], incomplete: bool
) -> Manifest:
    found = require_complete(place, videos, incomplete)
    if (place / MANIFEST).is_file():
        return read_manifest(place / MANIFEST)
    first = next(place / v.name for v in videos if v.name not in found.missing)
    return manifest_of_videos(setting, name, first, len(found.missing))
