"""A study: several runs of training, each with several seeds, measured alike on held-out toy clips.

Resumable: what is measured is kept beside each run, until its weights change. The table that ships
(data/replica/<study>.csv) stands in for runs that are not here.
"""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, cast

from pusa.atomic import write_text
from pusa.evaluation.replica import Bars
from pusa.evaluation.study_measure import (
    BASE,
    UNTRAINED,
    Setting,
    Tools,
    Values,
    finite,
    is_finished,
    is_lora,
    measure,
    result_of,
)
from pusa.evaluation.study_pictures import Picture, write_picture
from pusa.evaluation.suite import toy_suite
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.parts import Part
from pusa.pipelines.prepare import Source
from pusa.pipelines.tasks import Task

log = logging.getLogger(__name__)
NAMES = tuple(field.name for field in fields(Setting))
KEYS = ("variant", "seed", *NAMES, "clip")
MARK = "mark"
Key = tuple[str, int, Setting]


@dataclass(frozen=True)
class Study:
    """What experiment=replica/... says of its runs and of what is measured; see _recipe.yaml.

    variants, seeds: as lists, or joined by commas. settings: rows of lists, each the product of
    them; what a row leaves out is as the study has it. controls: what needs no training and stands
    beside the runs. folder: of the runs, <variant>/seed<seed>; tables: where <name>.csv goes; page:
    what is made of the tables of all studies; picture: beside it, in images.
    """

    name: str
    variants: Sequence[str] | str
    seeds: Sequence[int] | str | int
    settings: Sequence[Mapping[str, Any]]
    tasks: Mapping[str, Task]
    folder: str
    tables: str
    page: str
    task: str = "i2v"
    strength: float = 1.0
    multiplier: float = 0.0
    num_steps: int = 10
    encode: str = "repeated"
    at_step: int | None = None
    controls: Sequence[str] = (BASE,)
    picture: Picture | None = None

    def __post_init__(self):
        for name, kind in (("variants", str), ("seeds", int)):
            value = getattr(self, name)
            parts = str(value).split(",") if isinstance(value, str | int) else value
            try:
                object.__setattr__(self, name, tuple(kind(part) for part in parts))
            except ValueError:
                raise ValueError(f"study.{name}={value}: expected numbers, as [0,1,2].") from None
        strange = set(self.controls) - set(UNTRAINED)
        if strange:
            raise ValueError(
                f"study.controls: {min(strange)!r} is unknown; use {', '.join(UNTRAINED)}."
            )
        if not self.settings:
            raise ValueError("study.settings is empty; say what to measure.")
        for row in self.settings:
            for key in row:
                if key not in NAMES:
                    raise ValueError(f"study.settings: {key!r} is unknown; use {', '.join(NAMES)}.")
        for setting in self.all_settings():
            if setting.task not in self.tasks:
                raise ValueError(f"study.settings: there is no task {setting.task!r}.")

    def all_settings(self) -> list[Setting]:
        found: dict[Setting, None] = {}
        for row in self.settings:
            lists = [row.get(name, getattr(self, name)) for name in NAMES]
            choices = [each if isinstance(each, list | tuple) else [each] for each in lists]
            found |= {Setting(*choice): None for choice in product(*choices)}
        return list(found)

    def units(self) -> list[tuple[str, int]]:
        """What is measured: the controls, and every variant with every seed."""
        seeds = cast(Sequence[int], self.seeds)
        trained = [(variant, seed) for variant in self.variants for seed in seeds]
        return [*((name, 0) for name in self.controls), *trained]

    def missing(self) -> list[Path]:
        """The runs that are not finished."""
        runs = [self.run(variant, seed) for variant, seed in self.units()
                if variant not in UNTRAINED]  # fmt: skip
        return [run for run in runs if not is_finished(run)]

    def run(self, variant: str, seed: int) -> Path:
        return Path(self.folder) / variant.replace(" ", "_") / f"seed{seed}"

    @property
    def table(self) -> Path:
        return Path(self.tables) / f"{self.name}.csv"


def evaluate_study(
    model: Model, sampler: Sampler, study: Study, source: Source, progress: Bars,
    part: Part = Part(),  # noqa: B008 - frozen
) -> Path | None:  # fmt: skip
    """Measure what is missing and write the study's table; returns its path, None for one part of
    several. ValueError for a run that is not there.

    source: of the clips. part: of the runs, which other processes may share at once.
    """
    model.ensure_files()
    source.render(progress)
    items = toy_suite(source.path.parent, source.num_clips)
    vae = model.build_vae().to(model.run_device())
    text_encoder = model.build_text_encoder().to(model.run_device())
    tools = Tools(model, vae, text_encoder, items, dict(study.tasks), sampler)
    shipped = read_rows(study.table)
    rows: list[dict] = []
    for variant, seed in progress(study.name)(part.of(study.units())):
        rows += _of_run(tools, study, variant, seed, shipped)
    if part.count > 1:
        return None
    write_rows(study.table, rows)
    _draw(tools, study)
    return study.table


def _draw(tools: Tools, study: Study) -> None:
    """The study's picture, if it has one and the runs that it shows are here."""
    picture = study.picture
    if picture is None:
        return
    runs = {v: None if v == BASE else study.run(v, 0) for v in picture.variants.values()}
    if not all(run is None or is_finished(run) for run in runs.values()):
        log.info("the picture of %s stays as it is: not all of its runs are here.", study.name)
        return
    results = {v: None if run is None else result_of(run, None) for v, run in runs.items()}
    path = Path(study.page).parent / "images" / f"replica_{study.name}.png"
    plain = Setting(*(getattr(study, name) for name in NAMES))
    write_picture(path, picture, tools, results, plain)


def _of_run(
    tools: Tools, study: Study, variant: str, seed: int, shipped: Sequence[dict]
) -> list[dict]:
    """All rows of a run that the study asks for, in its order."""
    run = study.run(variant, seed)
    if variant not in UNTRAINED and not run.exists():
        return _shipped(tools, study, variant, seed, shipped)
    ledger = run / "measured.csv"
    known = _by_key(read_rows(ledger))
    found: dict[Key, list[dict]] = {}
    for asked in study.all_settings():
        result = None if variant in UNTRAINED else result_of(run, asked.at_step)
        setting = asked.of(variant, result is not None and is_lora(result))
        if variant in UNTRAINED[1:] and setting.task != "i2v":
            continue
        key, mark = (variant, seed, setting), tools.mark(result)
        if not (rows := known.get(key)) or rows[0][MARK] != mark:
            rows = _rows(key, mark, tools, measure(tools, variant, result, setting))
            known[key] = rows
            write_rows(ledger, [row for rows in known.values() for row in rows])
        found[key] = rows
    return [row for rows in found.values() for row in rows]


def _shipped(
    tools: Tools, study: Study, variant: str, seed: int, shipped: Sequence[dict]
) -> list[dict]:
    """What the table has of a run that is not here, if that is all that is asked, and measured
    under the same conditions."""
    rows = [row for row in shipped if (row["variant"], row["seed"]) == (variant, seed)]
    alike = _by_key(row for row in rows if row[MARK].split("-")[0] == tools.conditions)
    of_lora = any(setting.strength is not None for _, _, setting in alike)
    asked = dict.fromkeys(s.of(variant, of_lora) for s in study.all_settings())
    kept = [alike[variant, seed, s] for s in asked if (variant, seed, s) in alike]
    if len(kept) == len(asked):
        log.info("%s, seed %d: is not here; its rows in %s are kept.", variant, seed, study.table)
        return [row for rows in kept for row in rows]
    what = f"{len(asked) - len(kept)} of its {len(asked)} measurements are missing" if rows else ""
    raise ValueError(
        f"{study.run(variant, seed)}: no such run{', and ' if what else ''}{what}; train it first: "
        f"python train.py -m experiment=replica/{study.name} variant={variant} seed={seed}"
    )


def _rows(key: Key, mark: str, tools: Tools, values: Sequence[Values]) -> list[dict]:
    variant, seed, setting = key
    head = {"variant": variant, "seed": seed, **asdict(setting)}
    return [
        {**head, "clip": item.index, MARK: mark}
        | {name: _rounded(finite(value)) for name, value in row.items()}
        for item, row in zip(tools.items, values, strict=True)
    ]


def _rounded(value: float | None) -> float | None:
    """Five digits: clips differ in the second."""
    return None if value is None else float(f"{value:.5g}")


def _by_key(rows: Iterable[dict]) -> dict[Key, list[dict]]:
    found: dict[Key, list[dict]] = {}
    for row in rows:
        setting = Setting(**{name: row[name] for name in NAMES})
        found.setdefault((row["variant"], row["seed"], setting), []).append(row)
    return found


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of measurements: keys, mark, and a column for each metric; empty where there is
    none."""
    metrics = dict.fromkeys(key for row in rows for key in row if key not in (*KEYS, MARK))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*KEYS, MARK, *metrics], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, without what is empty but for the keys; none if there is no file.
    ValueError names a line that is none of a table."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        try:
            return [_read(row) for row in reader]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{reader.line_num}: not a measurement ({error}); delete the line, or the "
                "file: what is missing is measured again."
            ) from error


def _read(row: dict[str, str]) -> dict[str, Any]:
    texts, whole = ("variant", "task", "encode", MARK), ("seed", "num_steps", "at_step", "clip")
    found: dict[str, Any] = {}
    for name, text in row.items():
        if text == "" and name not in KEYS:
            continue
        number = int if name in whole else float
        found[name] = None if text == "" else text if name in texts else number(text)
    return found
