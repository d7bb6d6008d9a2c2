"""What an evaluation found: the one thing that tables, LaTeX, CSV and the page are written from.

It knows no file format and measures nothing; `summary.py` makes it from scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from pusa.evaluation.manifest import Manifest
from pusa.evaluation.published import Published
from pusa.evaluation.stats import Contrast, Interval
from pusa.metrics.registry import Better

# contender: what the evaluation is about; baseline: what it is held against; control: needs no
# model and frames the table (a still picture, the truth); other: a further row.
Role = Literal["contender", "baseline", "control", "other"]


@dataclass(frozen=True)
class Column:
    """One number of the table. group: its heading ("totals", "I2V", "Quality", "truth", ...).

    scale: values are shown times this, 100 for the fractions of VBench. note: what a reader must
    know of it, such as the network behind it; "" for nothing.
    """

    name: str
    group: str
    better: Better
    scale: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class System:
    """One row of the table. about: what it is, in a line. manifest: None for controls.

    plan: the sigmas (S+1, F) that its videos were sampled with; None where there are none.
    """

    name: str
    role: Role
    about: str
    manifest: Manifest | None
    plan: Tensor | None


@dataclass(frozen=True)
class Item:
    """A prompt of the suite. kind: its image's type in VBench, or "". image: what is given."""

    index: int
    stem: str
    text: str
    kind: str
    image: Path


@dataclass(frozen=True)
class Shot:
    """A system's video of an item, with its value in every column that it has one in, unscaled."""

    system: str
    index: int
    sample: int
    path: Path
    values: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Two systems on one column, paired by prompt. contrast.difference: first - second.

    p: two-sided, of a permutation test. detectable: the smallest true difference that a suite of
    this size would find in 4 of 5 cases. None where there are too few prompts to say.
    """

    first: str
    second: str
    contrast: Contrast
    p: float | None
    detectable: float | None


@dataclass(frozen=True)
class Result:
    """All of it. title: what it may be called, see `naming`; stem: the same as a file's name.

    facts: what was run, by name, in the order to be shown. cells: (system, column) -> interval;
    none where a column does not apply. missing: dimensions that were not measured, and why.
    retention: what the contender must not lose, measured elsewhere, contender first. published:
    rows of the paper to stand beside ours. warnings: sentences that every output must carry.
    """

    title: str
    stem: str
    facts: Mapping[str, str]
    columns: tuple[Column, ...]
    systems: tuple[System, ...]
    items: tuple[Item, ...]
    shots: tuple[Shot, ...]
    cells: Mapping[tuple[str, str], Interval]
    comparisons: tuple[Comparison, ...]
    missing: Mapping[str, str]
    retention: tuple[Contrast, ...]
    published: tuple[Published, ...]
    warnings: tuple[str, ...]

    @property
    def rivals(self) -> tuple[str, str]:
        """Names of the contender and the baseline, as retention has them."""
        contender, baseline = self.system("contender"), self.system("baseline")
        assert contender is not None
        assert baseline is not None
        return contender.name, baseline.name

    def system(self, role: Role) -> System | None:
        """The first of a role; None if there is none."""
        return next((system for system in self.systems if system.role == role), None)
