"""The goals that were set before anything was measured, and whether a row meets them: computed from
its raw numbers."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Peaks = dict[str, float]  # dtype -> best FLOP per second of a matrix product
SMALL, WIDEST = "384x6", "1536x6"
GIB = 2**30
MERGED = "load as bfloat16 + merge a LoRA"  # the job on a checkpoint that has the goals


@dataclass(frozen=True)
class Goal:
    """text: for people; concerns: whether a row is measured by it; value: of the row; limit: at
    least (sign ">=", ">") or at most ("<=")."""

    text: str
    concerns: Callable[[Row], bool]
    value: Callable[[Row, Peaks], float]
    sign: str
    limit: float

    def met(self, value: float) -> bool:
        return {">=": value >= self.limit, ">": value > self.limit, "<=": value <= self.limit}[
            self.sign
        ]


def median(row: Row, who: str) -> float:
    return statistics.median(row["seconds"][who])


def times_faster(row: Row, peaks: Peaks | None = None) -> float:
    """diffusers' median / ours."""
    return median(row, "diffusers") / median(row, "ours")


def times_faster_at_best(row: Row) -> float:
    return min(row["seconds"]["diffusers"]) / min(row["seconds"]["ours"])


def times_faster_at_most(row: Row, peaks: Peaks) -> float:
    """As `times_faster`, if ours took its FLOPs at the rate of the best matrix product."""
    return median(row, "diffusers") / (row["flop"]["ours"] / peaks[row["dtype"]])


def memory_ratio(row: Row, peaks: Peaks | None = None) -> float:
    """Our peak / diffusers'."""
    return row["bytes"]["ours"] / row["bytes"]["diffusers"]


def share(row: Row, peaks: Peaks, who: str = "ours") -> float:
    """Of the machine's best matrix product in this dtype, attained in the median round."""
    return row["flop"][who] / median(row, who) / peaks[row["dtype"]]


def file_excess(row: Row, peaks: Peaks | None = None) -> float:
    """GiB beyond two shards that a job on a checkpoint held at once, less imports and result."""
    taken = row["peak_gb"] - row["imports_gb"] - row["result_gb"] - 2 * row["shard_gb"]
    return taken * 1e9 / GIB


def file_time(row: Row, peaks: Peaks | None = None) -> float:
    """Of the seconds that its peer takes: to read every byte once or, of files, to write it too."""
    return row["job_seconds"] / row["read_seconds"]


def _of(case: str, **fields: Any) -> Callable[[Row], bool]:
    """Rows of a case; a field is a value, or several that will do."""

    def concerns(row: Row) -> bool:
        return row["case"] == case and all(
            row[name] in value if isinstance(value, tuple) else row[name] == value
            for name, value in fields.items()
        )

    return concerns


GOALS = (
    Goal("forward, a timestep per frame, eager, 5 and 21 frames: times faster",
         _of("forward", detail="per frame", mode="eager", frames=(5, 21)),
         times_faster, ">=", 1.6),
    Goal("forward, a timestep per frame, compiled: times faster",
         _of("forward", detail="per frame", mode="compiled"), times_faster, ">", 1.0),
    Goal("forward, a timestep per clip, eager: times faster",
         _of("forward", detail="per clip", mode="eager"), times_faster, ">=", 1.0),
    Goal("LoRA step, eager, blocks kept or recomputed: times faster",
         _of("lora", mode="eager"), times_faster, ">=", 1.25),
    Goal("LoRA step, compiled, blocks kept or recomputed: times faster",
         _of("lora", mode="compiled"), times_faster, ">", 1.0),
    Goal("LoRA step, blocks recomputed, small model: memory, ours / diffusers'",
         _of("lora", detail="blocks", mode="eager", width=SMALL), memory_ratio, "<=", 0.62),
    Goal("14B step on fake tensors, blocks recomputed: memory, ours / diffusers'",
         _of("trace", detail="blocks"), memory_ratio, "<=", 0.65),
    Goal("the same from inputs in bfloat16, as diffusers' are (checkpointing=blocks_half)",
         _of("trace", detail="blocks_half"), memory_ratio, "<=", 0.65),
    Goal("forward, a timestep per frame, eager: memory, ours / diffusers'",
         _of("forward", detail="per frame", mode="eager"), memory_ratio, "<=", 0.40),
    Goal("forward, widest model, 21 frames: share of the matrix product's best",
         _of("forward", detail="per frame", mode="eager", width=WIDEST, frames=21),
         share, ">=", 0.40),
    Goal("LoRA step, widest model, 21 frames: share of the matrix product's best",
         _of("lora", mode="eager", width=WIDEST, frames=21), share, ">=", 0.25),
    Goal("loading and merging: GiB of memory beyond two shards",
         _of("files", detail=MERGED),
         file_excess, "<=", 1.0),
    Goal("loading and merging: time, of reading the files once",
         _of("files", detail=MERGED),
         file_time, "<=", 1.5),
)  # fmt: skip


def verdicts(row: Row, peaks: Peaks) -> str:
    """What the goals say of one row, for its line in a table."""
    words = []
    for goal in GOALS:
        if goal.concerns(row):
            word = "met" if goal.met(goal.value(row, peaks)) else "missed"
            words.append(f"{goal.sign} {goal.limit:g}: {word}")
    return ", ".join(words)


@dataclass(frozen=True)
class Verdict:
    """A goal over all rows that it concerns: how many meet it, and the worst value."""

    goal: Goal
    met: int
    rows: int
    worst: float | None

    @property
    def word(self) -> str:
        if not self.rows:
            return "not measured"
        return "met" if self.met == self.rows else "missed"


def judge(rows: Iterable[Row], peaks: Peaks) -> list[Verdict]:
    rows = list(rows)
    found = []
    for goal in GOALS:
        values = [goal.value(row, peaks) for row in rows if goal.concerns(row)]
        worst = (max if goal.sign == "<=" else min)(values) if values else None
        found.append(Verdict(goal, sum(map(goal.met, values)), len(values), worst))
    return found
