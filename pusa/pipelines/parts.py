"""Which share of a work is this process's, where several divide it without knowing one another."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

ARRAY = "array"
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Every `count`-th piece, from `index` on."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"part {self.index}/{self.count} is none; write 0/4 to 3/4.")

    def of(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.index :: self.count]


def read_part(text: str | None) -> Part:
    """All of it (None), "I/N", or "array": the share of this task of a SLURM array job.

    ValueError for another text, outside an array, and for an array with gaps: what its missing
    tasks would have done stayed undone.
    """
    if text is None:
        return Part()
    if text == ARRAY:
        return _of_array()
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        raise ValueError(f"part {text} is not I/N, as 0/4, nor {ARRAY}.") from None
    return Part(index, count)


def _of_array() -> Part:
    try:
        task, first, last, step, count = (
            int(os.environ[f"SLURM_ARRAY_TASK_{name}"])
            for name in ("ID", "MIN", "MAX", "STEP", "COUNT")
        )
    except KeyError as missing:
        raise ValueError(f"part {ARRAY}: no task of a SLURM array job ({missing} unset).") from None
    if count != (last - first) // step + 1:
        raise ValueError(
            f"part {ARRAY}: {count} tasks, {first} to {last}, have gaps; use --array=0-{count - 1}."
        )
    return Part((task - first) // step, count)
