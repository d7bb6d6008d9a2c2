"""The rows of a benchmark as a config names them: models, or videos and results of others."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.loras import Strength, parse_lora


@dataclass(frozen=True)
class Entry:
    """One row. What is left out is the evaluation's own.

    lora, strength: as of `pusa generate`; num_steps: of sampling; weights: of the network, where it
    was trained whole; model: another one. Instead of all these, videos: a folder with files of the
    suite's names, or results: VBench's *_eval_results.json, or a folder of them.
    about: a line for readers; made_by: the command that trains it, told if its file is missing;
    without: why it cannot be made here, "" if it can.
    """

    lora: tuple[str, ...] = ()
    strength: Strength = 1.0
    num_steps: int | None = None
    weights: str | None = None
    model: Model | None = None
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
        if foreign and (self.lora or self.num_steps or self.weights or self.model):
            raise ValueError(f"{foreign}: what is finished has no lora, num_steps or weights.")

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
        loras = f"{', '.join(self.lora)}, strength {shown}" if self.lora else "no LoRA"
        return loras + (f", {self.num_steps} steps" if self.num_steps else "")


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


def check_entries(entries: Mapping[str, Entry], name: str) -> None:
    """ValueError that lists every file that is not there, with what makes it."""
    lines = []
    for row, entry in entries.items():
        for path in entry.missing():
            remedy = entry.made_by or f"train it first, with train.py and the same name={name}"
            lines.append(f"{row}: {path}: not there; {remedy}.")
    if lines:
        raise ValueError("\n  ".join(lines) if len(lines) == 1 else "\n  ".join(["", *lines]))
