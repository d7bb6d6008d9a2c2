"""The evaluation of every task on the toy suite: videos as users make them, measured against the
truth, the base model and controls. Resumable: videos that are there are kept."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pusa.data import video
from pusa.evaluation.clip_suite import clip_items
from pusa.evaluation.entries import Entry
from pusa.evaluation.replica import Bars, check_trained, model_key
from pusa.evaluation.suite import ClipItem, toy_suite
from pusa.evaluation.systems import codec_roundtrip
from pusa.evaluation.tasks_cases import Case, cases_of, seam_of
from pusa.evaluation.tasks_measure import measure
from pusa.evaluation.tasks_pictures import write_sheet
from pusa.evaluation.tasks_report import BASE, OURS, write_tables
from pusa.evaluation.tasks_systems import Controlled, Producer, Work, all_work, controls_of
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.loras import Strength, place_loras
from pusa.pipelines.parts import Part
from pusa.pipelines.positions import Timing
from pusa.pipelines.prepare import Source
from pusa.pipelines.studio import Studio
from pusa.pipelines.tasks import Task

TRUTH, UNSEEN = (
    "truth",
    ("hold", "codec"),
)  # what pictures of a held frame or the codec show is known
SHEET_SETTINGS, SHEET_COLUMNS = 4, 13  # at most
Maker = Producer | Controlled


@dataclass(frozen=True)
class TaskSuite:
    """What configs/suite/tasks.yaml says; see there."""

    source: Source
    seeds: tuple[int, ...]
    lora: str
    strength: Strength
    output: str
    tasks: Mapping[str, Task]
    num_keyframes: int
    multipliers: tuple[float, ...]
    overlap: int
    segments: int
    chains: tuple[tuple[float, ...], ...]
    num_clips: int | None = None

    def __post_init__(self):
        for name in ("seeds", "multipliers", "chains"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise ValueError(f"suite.{name} is empty; name at least one.")
        if self.source.toy is not None and self.source.num_clips < 2:
            raise ValueError("suite.source.toy.num_clips: a transition needs two clips.")

    def cases(self, timing: Timing) -> list[Case]:
        return cases_of(
            self.tasks, timing, self.num_keyframes, self.multipliers, self.overlap, self.segments,
            self.chains,
        )  # fmt: skip


def evaluate_tasks(
    model: Model, sampler: Sampler, suite: TaskSuite, name: str, progress: Bars,
    part: Part = Part(),  # noqa: B008 - frozen
) -> Path | None:  # fmt: skip
    """Make, measure, report; returns the page of tables. ValueError if the LoRA is not there.

    part: of the clips' videos; one of several makes its share and writes no page.
    """
    check_trained(suite.lora, name)
    model.ensure_files()
    folder = Path(suite.output)
    items = _items(suite, model, folder, progress)
    cases = suite.cases(Timing(model.spec, model.num_frames, model.fps))
    makers = _makers(model, sampler, suite, cases)
    work = all_work(list(makers), items, suite.seeds, folder)
    for one in progress("generate")(part.of(work)):
        makers[one.system, one.case].make(one)
    if part.count > 1:
        return None
    rows = [
        row for one in progress("measure")(work) for row in measure(one, suite.segments, model.fps)
    ]
    for group in dict.fromkeys(case.group for case in cases):
        of_group = [w for w in work if (w.case.group, w.item.index) == (group, items[0].index)]
        _draw(folder / f"tasks_{group}.png", of_group)
    facts = {
        "base": f"{model.name}, {model.weights}",
        "VTA": Entry(lora=(suite.lora,), strength=suite.strength).describe(),
        "sampling": f"{sampler.num_steps} {sampler.method.capitalize()} steps, guidance "
        f"{sampler.guidance_scale:g}, shift {sampler.flow(model.flow).shift:g}",
        "clips": f"{len(items)} {_kind(suite.source)}, seeds {', '.join(map(str, suite.seeds))}",
    }
    return write_tables(folder, rows, cases, facts)


def _items(suite: TaskSuite, model: Model, folder: Path, progress: Bars) -> Sequence[ClipItem]:
    if suite.source.toy is None:
        return clip_items(suite.source, model, folder / "clips", suite.num_clips, progress)
    suite.source.render(progress)
    return toy_suite(suite.source.path.parent, suite.source.num_clips)


def _kind(source: Source) -> str:
    return f"clips of {source.manifest}" if source.toy is None else "held-out toy clips"


def _makers(
    model: Model, sampler: Sampler, suite: TaskSuite, cases: Sequence[Case]
) -> dict[tuple[str, Case], Maker]:
    """By system and case: both models for every case, controls for the first of each group."""
    makers: dict[tuple[str, Case], Maker] = {}
    for name, files, strength in ((BASE, (), 1.0), (OURS, (suite.lora,), suite.strength)):
        loras = place_loras(files, model.experts(), strength)
        producer = Producer(
            model, Studio(model, loras), sampler, files, strength,
            model_key(model, sampler, loras), Path(suite.output) / "media",
        )  # fmt: skip
        makers |= {(name, case): producer for case in cases}
    roundtrip = partial(codec_roundtrip, model.build_vae().to(model.run_device()))
    for case in {case.group: case for case in reversed(cases)}.values():
        for name, control in controls_of(case, roundtrip).items():
            makers[name, case] = Controlled(control, model.fps)
    return makers


def _draw(path: Path, work: Sequence[Work]) -> None:
    """The first clip of a group of cases: the truth, both models at some settings, controls."""
    settings = list(dict.fromkeys(one.case.setting for one in work))
    shown = settings[:: -(-len(settings) // SHEET_SETTINGS)]

    def rank(one: Work) -> tuple[int, int]:
        controls = 0 if one.system == TRUTH else 2
        return controls if one.system not in (BASE, OURS) else 1, settings.index(one.case.setting)

    pictured = {
        f"{one.system} {one.case.setting}" if rank(one)[0] == 1 else one.system: one
        for one in sorted(work, key=rank)
        if one.case.setting in shown and one.seed == work[0].seed and one.system not in UNSEEN
    }
    videos = {name: video.read_frames(one.path)[0] for name, one in pictured.items()}
    length = max(map(len, videos.values()))
    own = {
        name: _kept(one.case, len(videos[name]), one.item.num_frames)
        for name, one in pictured.items()
        if one.system != TRUTH
    }
    write_sheet(path, videos, range(0, length, -(-length // SHEET_COLUMNS)), own)


def _kept(case: Case, length: int, clip: int) -> Collection[int]:
    """Frames of a finished video that are given, or are clips of the user's as they are."""
    if case.kind == "given":
        return case.frames
    if case.kind == "extension":
        return range(seam_of(case))
    if case.kind == "transition":
        return {*range(clip), *range(length - clip, length)}
    return range(clip)
