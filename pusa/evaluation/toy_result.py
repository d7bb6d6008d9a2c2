"""The toy suite's rows as a `Result`: the same tables, statistics and page as any benchmark's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pusa.data import video
from pusa.data.hashing import content_key
from pusa.evaluation.compare import CRF, FPS, video_path
from pusa.evaluation.manifest import Manifest
from pusa.evaluation.provenance import Setting
from pusa.evaluation.results import Column, Item, Result, Role, Shot, System
from pusa.evaluation.score import Row, fingerprint
from pusa.evaluation.scoring import VideoScore
from pusa.evaluation.stats import Contrast
from pusa.evaluation.suite import SUITE_NAME, SuiteItem
from pusa.evaluation.summary import cells_of, compare_systems
from pusa.metrics import registry

STEM = "toy_suite"
CONTENDER, BASELINE = "VTA", "base"


def setting_of(items: Sequence[SuiteItem], seeds: Sequence[int]) -> Setting:
    """What all systems of a toy evaluation have in common."""
    scene = items[0].scene
    marks = [mark for item in items for mark in (item.caption, fingerprint(item.path))]
    return Setting(
        suite=SUITE_NAME, prompts=content_key(*(item.caption for item in items)),
        images=content_key(*marks), seeds=tuple(seeds), height=scene.height, width=scene.width,
        num_frames=scene.num_frames, fps=FPS, crf=CRF, resize="board", backbones={},
    )  # fmt: skip


def result_of(
    folder: Path, rows: Sequence[Row], items: Sequence[SuiteItem], systems: Sequence[System],
    facts: Mapping[str, str], retention: Sequence[Contrast],
) -> Result:  # fmt: skip
    """rows: as compare() returned them; retention: contender first."""
    columns = tuple(
        Column(name, _subject(name), registry.lookup(name).better)
        for name in dict.fromkeys(row.metric for row in rows)
    )
    scores: dict[str, list[VideoScore]] = {system.name: [] for system in systems}
    for row in rows:
        if row.value is not None:
            score = VideoScore(row.metric, f"{row.index:04d}", row.seed, row.value)
            scores[row.system].append(score)
    cells = cells_of(scores, columns)
    pairs = [(CONTENDER, BASELINE)]
    pairs += [(CONTENDER, s.name) for s in systems if s.role == "control"]
    return Result(
        title=SUITE_NAME, stem=STEM, facts=facts, columns=columns, systems=tuple(systems),
        items=tuple(_item(folder, item) for item in items), shots=_shots(folder, rows),
        cells=cells, comparisons=tuple(compare_systems(scores, columns, pairs, cells)),
        missing={}, retention=tuple(retention), published=(), warnings=(),
    )  # fmt: skip


def system(name: str, about: str, manifest: Manifest | None, plan) -> System:
    roles: Mapping[str, Role] = {CONTENDER: "contender", BASELINE: "baseline"}
    return System(name, roles.get(name, "control"), about, manifest, plan)


def _subject(metric: str) -> str:
    return registry.lookup(metric).function.__module__.rpartition(".")[2]


def _item(folder: Path, item: SuiteItem) -> Item:
    """With its first frame as a picture."""
    image = folder / "images" / f"{item.index:04d}.png"
    if not image.is_file():
        image.parent.mkdir(parents=True, exist_ok=True)
        video.write_image(image, item.condition_image())
    return Item(item.index, f"{item.index:04d}", item.caption, "", image)


def _shots(folder: Path, rows: Sequence[Row]) -> tuple[Shot, ...]:
    values: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in rows:
        found = values.setdefault((row.system, row.index, row.seed), {})
        if row.value is not None:
            found[row.metric] = row.value
    return tuple(
        Shot(system, index, seed, video_path(folder, system, seed, index), found)
        for (system, index, seed), found in values.items()
    )
