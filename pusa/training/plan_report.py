"""A plan in words and as plain values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pusa.training.fitting import RANKS, Change, Largest
from pusa.training.gpus import ASSUMPTIONS, GIB
from pusa.training.plan import Estimate

SHOWN_CHANGES = 4
ITEMS = (
    "frozen base", "trained", "gathered", "gradients", "optimizer", "optimizer step", "EMA",
    "activations", "modulation", "attention sums", "buckets", "text encoder", "VAE",
    "fragmentation", "CUDA, NCCL",
)  # fmt: skip


@dataclass(frozen=True)
class PlanReport:
    """What `pusa plan` says. by_policy: under every checkpointing policy; largest: None if not
    asked for; changes: if it does not fit, best first."""

    name: str
    estimate: Estimate
    by_policy: Mapping[str, Estimate]
    largest: Largest | None
    changes: Sequence[Change] = ()
    notes: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        return self.estimate.fits

    def text(self) -> str:
        sections = [
            self._head(), self._verdict(), self._memory(), self._policies(), self._around(),
            self._bill(), self._largest(),
            "Assumed\n" + "\n".join(f"  - {line}" for line in (*self.notes, *ASSUMPTIONS)),
        ]  # fmt: skip
        return "\n\n".join(section for section in sections if section)

    def _head(self) -> str:
        job, cluster = self.estimate.job, self.estimate.cluster
        frames, height, width = job.size
        lora = "all weights" if job.lora is None else f"LoRA rank {job.lora.rank}"
        batch, passes = job.batch(cluster.count), job.passes(cluster.count)
        each = f"{batch} clip{'s' * (batch > 1)} each"
        each += f" in {passes} passes" if passes > 1 else ""
        nodes = f"{cluster.nodes} nodes" if cluster.nodes > 1 else "1 node"
        return (
            f"{self.name}: {lora} ({self.estimate.trainable:,} parameters), {frames} frames of "
            f"{height}x{width}\n"
            f"on {cluster.count} x {cluster.gpu.name}, {nodes}; strategy={job.strategy.name}, "
            f"checkpointing={job.checkpointing}, {each}"
        )

    def _verdict(self) -> str:
        estimate = self.estimate
        total, memory = estimate.largest.total / GIB, estimate.cluster.gpu.memory
        need = f"{total:.1f} of {memory:.1f} GiB on rank 0 ({estimate.largest.name})"
        if estimate.fits:
            return f"It fits: {need}."
        lines = [f"It does not fit: {need}."]
        if not self.changes:
            lines.append("No change that is known here makes it fit; take a GPU of more memory.")
        for i, change in enumerate(self.changes[:SHOWN_CHANGES]):
            start = "The cheapest change that does: " if i == 0 else "or "
            other = "; another result" if change.lossy else ""
            new = change.estimate
            lines.append(
                f"{start:>31}{' '.join(change.overrides)}\n{'':31}"
                f"{new.largest.total / GIB:.1f} GiB, {new.hours:.1f} h, ${new.dollars:,.0f}{other}"
            )
        return "\n".join(lines)

    def _memory(self) -> str:
        phases = self.estimate.phases
        names = [name for name in ITEMS if any(name in phase.items for phase in phases)]
        rows = [["GiB on rank 0", *(phase.name for phase in phases)]]
        rows += [[name, *(_gib(phase.items.get(name, 0)) for phase in phases)] for name in names]
        rows.append(["total", *(_gib(phase.total) for phase in phases)])
        return table_of(rows)

    def _policies(self) -> str:
        rows = [["checkpointing", "GiB", "fits", "host GiB/node", "PFLOP/step", "s/step"]]
        for policy, one in self.by_policy.items():
            mark = " <- this plan" if policy == self.estimate.job.checkpointing else ""
            passes = one.job.passes(one.cluster.count)
            rows.append([
                policy, _gib(one.largest.total), "yes" if one.fits else "no",
                _gib(sum(one.host.values())), f"{passes * one.footprint.flops / 1e15:.3g}",
                f"{one.step_seconds:.3g}" + mark,
            ])  # fmt: skip
        return table_of(rows, left=(0, 5))

    def _around(self) -> str:
        nodes = self.estimate.cluster.nodes
        left = [[f"host memory, GiB{' a node' if nodes > 1 else ''}", ""]]
        left += [[name, _gib(value)] for name, value in self.estimate.host.items() if value]
        right = [["disk, GiB", ""]]
        right += [[name, _gib(value)] for name, value in self.estimate.disk.items()]
        return table_of(left) + "\n\n" + table_of(right)

    def _bill(self) -> str:
        one = self.estimate
        parts = ", ".join(f"{name} {value:.3g}" for name, value in one.seconds.items())
        price = one.cluster.hourly / one.cluster.count
        return (
            f"A step takes {one.step_seconds:.3g} s ({parts}): "
            f"{3600 / one.step_seconds:,.0f} steps an hour.\n"
            f"{one.job.max_steps} steps: {one.hours:.1f} hours, ${one.dollars:,.0f} "
            f"at ${price:g} per GPU and hour, {one.cluster.utilisation:.0%} of peak.\n"
            "Encoding, grids and held-out curves come on top."
        )

    def _largest(self) -> str:
        if self.largest is None:
            return ""
        shown = {
            "rank": f"{RANKS[-1]} or more" if self.largest.rank == RANKS[-1] else self.largest.rank,
            "frames": self.largest.frames,
            "resolution": self.largest.resolution and "{}x{}".format(*self.largest.resolution),
        }
        if self.estimate.job.lora is None:
            shown.pop("rank")
        found = ", ".join(f"{name} {value or 'none'}" for name, value in shown.items())
        return f"Largest that fits, all else as it is: {found}."

    def to_json(self) -> dict:
        return {
            "name": self.name,
            "fits": self.ok,
            "plan": _plain(self.estimate),
            "policies": {policy: _plain(one) for policy, one in self.by_policy.items()},
            "largest": None if self.largest is None else vars(self.largest),
            "changes": [
                {"set": list(c.overrides), "lossy": c.lossy, **_plain(c.estimate)}
                for c in self.changes
            ],
            "assumptions": [*self.notes, *ASSUMPTIONS],
        }


def _plain(estimate: Estimate) -> dict:
    """Bytes, seconds, hours and dollars."""
    job, cluster = estimate.job, estimate.cluster
    return {
        "gpu": cluster.gpu.name,
        "gpus": cluster.count,
        "nodes": cluster.nodes,
        "strategy": job.strategy.name,
        "checkpointing": job.checkpointing,
        "rank": None if job.lora is None else job.lora.rank,
        "size": list(job.size),
        "clips_per_pass": job.batch(cluster.count),
        "passes": job.passes(cluster.count),
        "trainable": estimate.trainable,
        "fits": estimate.fits,
        "bytes": {p.name: dict(p.items) | {"total": p.total} for p in estimate.phases},
        "gpu_bytes": round(cluster.gpu.memory * GIB),
        "host_bytes": dict(estimate.host),
        "disk_bytes": dict(estimate.disk),
        "flops": job.passes(cluster.count) * estimate.footprint.flops,
        "seconds": dict(estimate.seconds),
        "steps_per_hour": 3600 / estimate.step_seconds,
        "hours": estimate.hours,
        "dollars": estimate.dollars,
    }


def _gib(value: float) -> str:
    """Two digits where they tell something; a dot for nothing."""
    if not value:
        return "."
    gib = value / GIB
    return f"{gib:.1f}" if gib >= 0.05 else "<0.1"


def table_of(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns as wide as they need to be; the ones in `left` flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def cell(i: int) -> Callable[..., str]:
        return str.ljust if i in left else str.rjust

    lines = ["  ".join(cell(i)(text, widths[i]) for i, text in enumerate(row)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
