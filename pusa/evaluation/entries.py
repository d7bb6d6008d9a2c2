"""The rows of a benchmark as a config names them: models, or videos and results of others."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.loras import RESULT, Strength, parse_lora

WHOLE = "model.safetensors"  # of a run that trains all weights


@dataclass(frozen=True)
class Training:
    """A run of train.py that rows are of.

    overrides: what train.py is given; folder: the run's; about: what it trains, in words; experts:
    its networks, a run each in folder/high and folder/low, () if it is one; whole: all weights are
    trained, so that what is exported is a model.
    """

    overrides: str
    folder: str
    about: str = ""
    experts: tuple[str, ...] = ()
    whole: bool = False

    def __post_init__(self):
        object.__setattr__(self, "experts", tuple(self.experts))

    def exported(self, checkpoint: int) -> str:
        """Where a checkpoint's weights are looked for: a file or, of two experts, a folder."""
        folder = Path(self.folder, "exported", str(checkpoint))
        return str(folder if self.experts else folder / (WHOLE if self.whole else RESULT))

    def files(self, checkpoint: int) -> list[str]:
        exported = Path(self.exported(checkpoint))
        return [str(exported / e / RESULT) for e in self.experts] or [str(exported)]

    def commands(self, checkpoint: int) -> list[str]:
        """What makes those files."""
        exported = Path(self.exported(checkpoint))
        pairs = [(Path(self.folder, e), exported / e) for e in self.experts]
        pairs = pairs or [(Path(self.folder), exported.parent)]
        exports = [f"pusa export {run} {to} --checkpoint {checkpoint}" for run, to in pairs]
        return [f"python train.py {self.overrides}", *exports]


@dataclass(frozen=True)
class Entry:
    """One row. What is left out is the evaluation's own.

    lora, strength: as of `pusa generate`; num_steps: of sampling; weights: of the network, where it
    was trained whole; model: another one. Instead of lora or weights, trained_by: the run that they
    are of (a mapping of a `Training`'s fields will do), and checkpoint: after which of its steps.
    Instead of all these, videos: a folder with files of the suite's names, or results: VBench's
    *_eval_results.json, or a folder of them. about: a line for readers; made_by: the command that
    trains it, told if its file is missing; without: why it cannot be made here, "" if it can, or if
    it is handed in after all.
    """

    lora: tuple[str, ...] = ()
    strength: Strength = 1.0
    num_steps: int | None = None
    weights: str | None = None
    model: Model | None = None
    trained_by: Training | None = None
    checkpoint: int | None = None
    videos: str | None = None
    results: str | None = None
    about: str = ""
    made_by: str = ""
    without: str = ""

    def __post_init__(self):
        lora = self.lora or ()
        object.__setattr__(self, "lora", (lora,) if isinstance(lora, str) else tuple(lora))
        if self.videos and self.results:
            raise ValueError("an entry has videos or results, not both.")
        foreign = self.videos or self.results
        run = self.trained_by
        if run is not None and foreign:  # which stand in place of its training and its sampling
            object.__setattr__(self, "strength", 1.0)
            object.__setattr__(self, "num_steps", None)
        if run is not None:
            run = Training(**run) if isinstance(run, Mapping) else run
            object.__setattr__(self, "trained_by", run)
            self._take_weights(run)
        if self.lora or self.weights or foreign:
            object.__setattr__(self, "without", "")
        sampled = self.lora or self.num_steps or self.weights or self.model or self.strength != 1.0
        if foreign and sampled:
            raise ValueError(
                f"{foreign}: what is finished has no lora, strength, num_steps, weights or model."
            )

    def _take_weights(self, run: Training) -> None:
        """The run's, unless others are given."""
        if type(self.checkpoint) is not int or self.checkpoint < 1:
            raise ValueError(
                f"checkpoint={self.checkpoint!r}: a row that is trained_by {run.overrides} names "
                "the step of one of its checkpoints."
            )
        exported = run.exported(self.checkpoint)
        key, value = ("weights", exported) if run.whole else ("lora", (exported,))
        given = self.lora or self.weights or self.videos or self.results
        if given and given != value:
            object.__setattr__(self, "trained_by", None)
        else:
            object.__setattr__(self, key, value)

    @property
    def is_sampled(self) -> bool:
        return not (self.videos or self.results)

    def model_of(self, model: Model) -> Model:
        """The model that it samples with, given the evaluation's own."""
        own = self.model or model
        return own if self.weights is None else replace(own, weights=self.weights)

    def sampler_of(self, sampler: Sampler) -> Sampler:
        return sampler if self.num_steps is None else replace(sampler, num_steps=self.num_steps)

    def missing(self) -> list[str]:
        """Files that it names and that are not there."""
        if self.trained_by is not None and self.checkpoint is not None:
            named = self.trained_by.files(self.checkpoint)
            return [path for path in named if not Path(path).exists()]
        named = [parse_lora(text)[1] for text in self.lora]
        named += [path for path in (self.weights, self.videos, self.results) if path]
        return [path for path in named if not Path(path).exists()]

    def describe(self) -> str:
        """What it is, in a line."""
        if self.about:
            return self.about
        if not self.is_sampled:
            return f"{self.videos or self.results}"
        factor = self.strength
        if isinstance(factor, Mapping):
            shown = ", ".join(f"{expert} {value:g}" for expert, value in factor.items())
        else:
            shown = f"{factor:g}"
        run = self.trained_by
        what = "no LoRA" if run is None else f"{run.about}, {self.checkpoint} iterations"
        if run is None and self.lora:
            what = ", ".join(self.lora)
        parts = [what, f"strength {shown}"] if self.lora else [what]
        return ", ".join(parts + ([f"{self.num_steps} steps"] if self.num_steps else []))


def read_entry(name: str, row: Entry | Mapping) -> Entry:
    """A row of a config. ValueError for a key that there is none of."""
    if isinstance(row, Entry):
        return row
    known = [f.name for f in fields(Entry)]
    unknown = [key for key in row if key not in known]
    if unknown:
        raise ValueError(
            f"suite.entries.{name}: {', '.join(unknown)}: unknown; a row has {', '.join(known)}."
        )
    return Entry(**row)


def _remedy(entry: Entry, name: str) -> str:
    if entry.is_sampled:
        return f"train it first, with train.py and the same name={name}"
    return "name the folder of its finished videos, or VBench's results"


def check_entries(entries: Mapping[str, Entry], name: str) -> None:
    """ValueError that lists every file that is not there, with what makes it."""
    lines, commands, rows = [], dict[str, None](), dict[str, list[str]]()
    for row, entry in entries.items():
        for path in entry.missing():
            if entry.trained_by is not None and entry.checkpoint is not None:
                commands |= dict.fromkeys(entry.trained_by.commands(entry.checkpoint))
                rows.setdefault(path, []).append(row)
            else:
                remedy = entry.made_by or _remedy(entry, name)
                lines.append(f"{row}: {path}: not there; {remedy}.")
    lines += [f"{', '.join(of)}: {path}: not there." for path, of in rows.items()]
    if commands:
        trains = [c for c in commands if c.startswith("python train.py")]
        lines.append(
            "Train (its file says on which GPUs, with which clips; give it the same model=) and "
            "export:"
        )
        lines += trains
        lines += [command for command in commands if command not in trains]
    if lines:
        raise ValueError("\n  ".join(lines) if len(lines) == 1 else "\n  ".join(["", *lines]))
