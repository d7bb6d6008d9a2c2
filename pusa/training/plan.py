"""Whether a run fits its GPUs, how long it takes and what it costs, before anything is rented.

Puts together footprint.py (activations, traced), sharding.py (weights and optimizer, closed form)
and gpus.py (the table and all assumptions).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from pusa.pipelines.build import PRECISIONS, Model
from pusa.training.footprint import Footprint, Work, outline, run_forward, step_footprint
from pusa.training.gpus import (
    COLLECTIVES,
    CONTEXT,
    CPU_ADAM,
    FRAGMENTATION,
    GIB,
    PROCESS,
    WORKER,
    Cluster,
)
from pusa.training.sharding import Shares, Strategy, Weights, check_storage, shares
from pusa.weights.lora import LoRA

BFLOAT16 = 2


@dataclass(frozen=True)
class Job:
    """What is to be trained.

    samples: clips of a step over all processes; micro_batch: of one pass, None for all that a
    process has; size: frames, height and width in pixels; grid_clips: of the sample grids, 0 for
    none; clips: to be cached, None if not known; average: an EMA is kept; encode_on_gpu: or on the
    CPU, as model.device says.
    """

    lora: LoRA | None
    strategy: Strategy
    checkpointing: str
    samples: int
    size: tuple[int, int, int]
    max_steps: int
    micro_batch: int | None = None
    autocast: bool = True
    average: bool = False
    grid_clips: int = 0
    keep_last: int = 2
    num_workers: int = 0
    clips: int | None = None
    encode_on_gpu: bool = True

    def batch(self, ranks: int) -> int:
        """Clips of one pass of one process. ValueError if they cannot be divided so."""
        own, rest = divmod(self.samples, ranks)
        if rest or not own:
            raise ValueError(
                f"batch_size={self.samples} clips a step cannot be divided over {ranks} GPUs; use "
                f"batch_size={max(1, round(self.samples / ranks)) * ranks}, or other --gpus."
            )
        batch = own if self.micro_batch is None else self.micro_batch
        if batch < 1 or own % batch:
            raise ValueError(
                f"micro_batch={self.micro_batch} does not divide the {own} clips of a process."
            )
        return batch

    def passes(self, ranks: int) -> int:
        return self.samples // ranks // self.batch(ranks)


@dataclass(frozen=True)
class Part:
    """A frozen network of the preparing phase: its bytes, and what one clip takes."""

    weights: int
    footprint: Footprint


@dataclass(frozen=True)
class Phase:
    """Bytes on one GPU by what they are for. Modulation is a part of the activations."""

    name: str
    items: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.items.values())


@dataclass(frozen=True)
class Estimate:
    """One job on one cluster. phases: of rank 0, the largest, which also makes grids and exports.

    host: bytes in the memory of one node, by purpose; disk: bytes, by purpose; seconds: of a step,
    by what takes them.
    """

    job: Job
    cluster: Cluster
    phases: tuple[Phase, ...]
    footprint: Footprint
    trainable: int
    host: Mapping[str, int]
    disk: Mapping[str, int]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def largest(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def room(self) -> float:
        """Bytes left on the GPU at the fullest moment; negative if it does not fit."""
        return self.cluster.gpu.memory * GIB - self.largest.total

    @property
    def fits(self) -> bool:
        return self.room >= 0

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def hours(self) -> float:
        return self.job.max_steps * self.step_seconds / 3600

    @property
    def dollars(self) -> float:
        return self.hours * self.cluster.hourly


class Planner:
    """Estimates for one model. A trace takes seconds, so that each is kept.

    vae, text_encoder: of the preparing phase. base_cast: whether the base's files have another
    dtype than it trains in, so that several processes first write a copy for all to map.
    """

    def __init__(self, model: Model, vae: Part, text_encoder: Part, base_cast: bool = True):
        self.model, self.vae, self.text_encoder = model, vae, text_encoder
        self.base_cast = base_cast
        self._plain: nn.Module = outline(model, None)
        self.num_layers = len(list(self._plain.get_submodule("blocks").children()))
        self._steps: dict[tuple, Footprint] = {}

    def estimate(self, job: Job, cluster: Cluster) -> Estimate:
        """ValueError for a job that could not run, as of a size that the model does not take."""
        check_storage(self.model.storage, job.lora, job.strategy.stage)
        ranks = cluster.count
        footprint = self.footprint(job, job.batch(ranks))
        weights = self._weights(job, self.model.storage is not None)
        held = shares(weights, job.strategy, ranks, job.passes(ranks))
        phases = (
            self._start(held, cluster),
            *([self._encode(cluster)] if job.encode_on_gpu else []),
            self._train(job, held, weights, footprint, cluster),
            *([self._grid(job, held, weights, cluster)] if job.grid_clips else []),
            self._export(job, held, weights, cluster),
        )
        return Estimate(
            job, cluster, phases, footprint, weights.trainable,
            self._host(job, held, weights, footprint, cluster), self._disk(job, cluster),
            _seconds(job, held, weights, footprint, cluster),
        )  # fmt: skip

    def _weights(self, job: Job, stored: bool) -> Weights:
        itemsize = PRECISIONS[self.model.dtype].itemsize
        return Weights.of(self._plain, job.lora, itemsize, stored)

    def footprint(self, job: Job, batch: int) -> Footprint:
        """Of one pass with gradients."""
        work = self._work(job, batch)
        key = (job.lora, work, job.checkpointing)
        if key not in self._steps:
            self._steps[key] = step_footprint(
                self.model, job.lora, work, job.checkpointing, self.num_layers
            )
        return self._steps[key]

    def _work(self, job: Job, batch: int) -> Work:
        shape = self.model.latent_shape(*job.size)
        text_dim: int = self._plain.text_dim  # pyright: ignore[reportAssignmentType]
        return Work(batch, shape, self.model.text_len, text_dim, job.autocast)

    def _start(self, held: Shares, cluster: Cluster) -> Phase:
        return _phase("start-up", cluster, {"frozen base": held.base, "trained": held.trainable})

    def _encode(self, cluster: Cluster) -> Phase:
        busy = max(
            self.vae.footprint.forward.activations, self.text_encoder.footprint.forward.activations
        )
        items = {"text encoder": self.text_encoder.weights, "VAE": self.vae.weights}
        return _phase("encode", replace(cluster, count=1), items | {"activations": busy})

    def _train(
        self, job: Job, held: Shares, weights: Weights, footprint: Footprint, cluster: Cluster
    ) -> Phase:
        """The fuller of two moments: in the passes, or in the optimizer's step."""
        early = held.early or job.passes(cluster.count) > 1
        fullest = footprint.fullest(held.gradient_share, early)
        passing = fullest.activations + fullest.gradients + footprint.workspace
        all_gradients = round(held.gradient_share * weights.trainable_bytes)
        stepping = all_gradients + held.step
        items = self._resident(job, held, weights)
        if passing >= stepping:
            items |= {
                "gradients": fullest.gradients,
                "activations": fullest.activations - footprint.modulation,
                "modulation": footprint.modulation,
                "attention sums": footprint.workspace,
            }
        else:
            items |= {"gradients": all_gradients, "optimizer step": held.step}
        return _phase("train", cluster, items | {"buckets": held.buffers})

    def _resident(self, job: Job, held: Shares, weights: Weights) -> dict[str, int]:
        average = held.gradient_share if job.strategy.stage == 3 else 1.0
        return {
            "frozen base": held.base,
            "trained": held.trainable,
            "gathered": held.gathered,
            "optimizer": held.optimizer,
            "EMA": round(average * weights.trainable_bytes) if job.average else 0,
        }

    def _grid(self, job: Job, held: Shares, weights: Weights, cluster: Cluster) -> Phase:
        work = self._work(job, job.grid_clips)
        key = ("grid", job.lora, work)
        if key not in self._steps:
            # Blocks leave nothing behind without gradients: two are as full as all.
            self._steps[key] = run_forward(outline(self.model, job.lora, num_layers=2), work)
        items = self._resident(job, held, weights)
        items["activations"] = self._steps[key].forward.activations
        return _phase("sample grid", cluster, items)

    def _export(self, job: Job, held: Shares, weights: Weights, cluster: Cluster) -> Phase:
        items = self._resident(job, held, weights)
        if job.strategy.stage == 3:
            items["gathered"] = weights.trainable_bytes
        return _phase("export", cluster, items)

    def _host(
        self, job: Job, held: Shares, weights: Weights, footprint: Footprint, cluster: Cluster
    ) -> dict[str, int]:
        """Of one node, all its processes together."""
        ranks = cluster.ranks_per_node
        if self.model.storage is None:
            base = {"base, mapped once": weights.frozen_bytes or weights.trainable_bytes}
        else:
            base = {"base, of each process": ranks * weights.frozen_bytes}
        return base | {
            "activations": ranks * footprint.host,
            "weights, optimizer": ranks * held.host,
            "processes": round(ranks * (PROCESS + 2 * job.num_workers * WORKER)),
        }

    def _disk(self, job: Job, cluster: Cluster) -> dict[str, int]:
        weights = self._weights(job, stored=False)  # in files the base is as it was
        cast = self.base_cast and cluster.count > 1 and self.model.storage is None
        channels, frames, height, width = self.model.latent_shape(*job.size)
        text_dim: int = self._plain.text_dim  # pyright: ignore[reportAssignmentType]
        latents = BFLOAT16 * channels * frames * height * width
        clip = latents + BFLOAT16 * self.model.text_len * text_dim
        cached = f"cache of {job.clips} clips" if job.clips else "cache, per clip"
        checkpoints = f"checkpoints ({job.keep_last} + 1 being written)"
        exported = BFLOAT16 * weights.trainable
        files = weights.frozen_bytes or BFLOAT16 * weights.trainable
        base = weights.frozen_bytes or weights.trainable_bytes
        copies = 4 if job.strategy.stage in (1, 2) else 3  # ZeRO-1 and 2 save their masters, too
        return {
            "base, VAE, text encoder": files + self.vae.weights + self.text_encoder.weights,
            "base, cast for all to map": base if cast else 0,
            cached: clip * (job.clips or 1),
            checkpoints: (job.keep_last + 1) * copies * weights.trainable_bytes,
            "result": exported,
        }


def _phase(name: str, cluster: Cluster, items: Mapping[str, int]) -> Phase:
    kept = {key: value for key, value in items.items() if value}
    kept["fragmentation"] = round(FRAGMENTATION * sum(kept.values()))
    kept["CUDA, NCCL"] = round(CONTEXT + (COLLECTIVES if cluster.count > 1 else 0))
    return Phase(name, kept)


def _seconds(
    job: Job, held: Shares, weights: Weights, footprint: Footprint, cluster: Cluster
) -> dict[str, float]:
    """Of one step, by what takes them."""
    passes = job.passes(cluster.count)
    speed = cluster.gpu.teraflops * 1e12 * cluster.utilisation
    host_link = 1e9 * cluster.gpu.host_link
    parts = {
        "arithmetic": passes * footprint.flops / speed,
        "between GPUs": held.exchanged / cluster.link,
        "to and from the host": (2 * passes * footprint.host + held.copied) / host_link,
    }
    if job.strategy.offload_optimizer:
        parts["Adam on the host"] = weights.trainable / cluster.count / CPU_ADAM
    return {name: seconds for name, seconds in parts.items() if seconds}
