"""What else would fit, and what to change if a plan does not: searches over estimates."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from pusa.training.gpus import GIB, Cluster
from pusa.training.plan import Estimate, Job, Planner
from pusa.training.sharding import STRATEGIES
from pusa.weights.lora import LoRA

EXACT = ("none", "every_2", "selective", "blocks", "offload")
POLICIES = (*EXACT, "blocks_half", "offload_half")
RANKS = (1, 2, 4, 8, 16, 32, *range(64, 2049, 64))
MAX_LATENT_FRAMES = 81
RESOLUTIONS = ((240, 416), (320, 576), (480, 832), (480, 848), (544, 960), (704, 1280),
               (720, 1280), (1088, 1920))  # fmt: skip


@dataclass(frozen=True)
class Largest:
    """The largest LoRA rank, number of frames and height x width that fit, each with all else as it
    is asked for; None if none does."""

    rank: int | None
    frames: int | None
    resolution: tuple[int, int] | None


@dataclass(frozen=True)
class Change:
    """What to change, as it is typed, and what comes of it. lossy: another result is trained."""

    overrides: tuple[str, ...]
    estimate: Estimate
    lossy: bool = False


def largest_that(values: Sequence[Any], room: Callable[[Any], float], start: Any) -> Any | None:
    """The last of ascending values that leaves room >= 0, None if the first does not.

    Room falls along the values, nearly on a line: the search follows it from `start`, of which the
    room is known already, so that it asks for few.
    """
    first = min(bisect_left(values, start), len(values) - 1)
    known = {first: room(values[first])}
    end = 0 if known[first] < 0 else len(values) - 1
    if end not in known:
        known[end] = room(values[end])
    fits, fails = max((i for i in known if known[i] >= 0), default=-1), len(values)
    fails = min((i for i in known if known[i] < 0), default=fails)
    while fails - fits > 1 and fits >= 0:
        slope = (known[fits] - known[fails]) / (fails - fits)
        guess = min(max(fits + int(known[fits] / slope), fits + 1), fails - 1)
        known[guess] = room(values[guess])
        fits, fails = (guess, fails) if known[guess] >= 0 else (fits, guess)
        if fits == guess and fails - fits > 1:  # is the next one too much, as the line says?
            known[fits + 1] = room(values[fits + 1])
            fits, fails = (fits + 1, fails) if known[fits + 1] >= 0 else (fits, fits + 1)
    return values[fits] if fits >= 0 else None


def with_rank(job: Job, rank: int) -> Job:
    """alpha grows with it: the trained scale, alpha / rank, stays."""
    lora = job.lora
    assert lora is not None, "asked for with a LoRA only"
    return replace(job, lora=LoRA(rank, lora.alpha * rank / lora.rank, lora.targets, lora.dropout))


def largest(planner: Planner, job: Job, cluster: Cluster) -> Largest:
    """Grids and encoding are left out of the search: both can be had elsewhere."""
    job = replace(job, grid_clips=0, encode_on_gpu=False)

    def room(changed: Job) -> float:
        return planner.estimate(changed, cluster).room

    frames, height, width = job.size
    spec = planner.model.spec
    counts = [spec.num_pixel_frames(n) for n in range(1, MAX_LATENT_FRAMES + 1)]
    legal = [size for size in (*RESOLUTIONS, (height, width)) if _is_legal(planner, size)]
    lora = job.lora
    rank = None
    if lora is not None:
        ranks = sorted({*RANKS, lora.rank})
        rank = largest_that(ranks, lambda n: room(with_rank(job, n)), lora.rank)
    return Largest(
        rank,
        largest_that(counts, lambda n: room(replace(job, size=(n, height, width))), frames),
        _largest_size(legal, lambda size: room(replace(job, size=(frames, *size))), job.size[1:]),
    )


def _largest_size(
    sizes: Sequence[tuple[int, int]], room: Callable[[tuple[int, int]], float], own: tuple
) -> tuple[int, int] | None:
    """As `largest_that`, along the area."""
    areas = {height * width: (height, width) for height, width in sizes}
    ordered = sorted(areas)
    found = largest_that(ordered, lambda area: room(areas[area]), own[0] * own[1])
    return None if found is None else areas[found]


def _is_legal(planner: Planner, size: tuple[int, int]) -> bool:
    try:
        planner.model.latent_shape(None, *size)
    except ValueError:
        return False
    return True


def policies(planner: Planner, job: Job, cluster: Cluster) -> dict[str, Estimate]:
    """The job under every checkpointing policy, its own included."""
    return {
        policy: planner.estimate(replace(job, checkpointing=policy), cluster)
        for policy in dict.fromkeys((*POLICIES, job.checkpointing))
    }


def changes(planner: Planner, job: Job, cluster: Cluster, found: Largest) -> list[Change]:
    """Everything known to help a job that does not fit. First what leaves the result as it is
    (cheapest run first, of equal ones the smaller change), then what does not."""
    same = [c for c in _same_result(planner, job, cluster) if c.estimate.fits]
    lossy = list(_lossy(planner, job, cluster, found))
    same.sort(key=lambda change: (round(change.estimate.dollars, 2), len(change.overrides)))
    return same + sorted(lossy, key=lambda change: change.estimate.dollars)


def _same_result(planner: Planner, job: Job, cluster: Cluster) -> Iterator[Change]:
    """Other ways to compute the same steps: policy, strategy, passes, number of GPUs. Clips are
    encoded on the CPU if a GPU cannot."""
    encode = next((p for p in planner.estimate(job, cluster).phases if p.name == "encode"), None)
    on_gpu = encode is not None and encode.total <= cluster.gpu.memory * GIB
    for count in (cluster.count, 2 * cluster.count, 4 * cluster.count):
        if job.samples % count or (count > cluster.per_node and count % cluster.per_node):
            continue
        wider = replace(cluster, count=count)
        passes = {None, 1} if count == cluster.count and job.batch(count) > 1 else {None}
        for policy, strategy, one in product(EXACT, STRATEGIES.values(), passes):
            micro = one or job.micro_batch
            if strategy.stage == 3 and planner.model.storage is not None:
                continue  # refused, see check_storage
            if (strategy.name == "single" and count > 1) or (job.samples // count) % (micro or 1):
                continue
            changed = replace(
                job, checkpointing=policy, strategy=strategy, micro_batch=micro,
                encode_on_gpu=on_gpu,
            )  # fmt: skip
            words = _words(job, changed, cluster, wider)
            if words:
                yield Change(words, planner.estimate(changed, wider))


def _words(job: Job, changed: Job, cluster: Cluster, wider: Cluster) -> tuple[str, ...]:
    words = []
    if changed.checkpointing != job.checkpointing:
        words.append(f"model.backbone.checkpointing={changed.checkpointing}")
    if changed.strategy != job.strategy:
        words.append(f"strategy={changed.strategy.name}")
    if changed.micro_batch != job.micro_batch:
        words.append(f"micro_batch={changed.micro_batch}")
    if changed.encode_on_gpu != job.encode_on_gpu:
        words.append("model.device=cpu")
    if wider.count != cluster.count:
        words.append(f"--gpus {wider.count}")
    return tuple(words)


def _lossy(planner: Planner, job: Job, cluster: Cluster, found: Largest) -> Iterator[Change]:
    frames, height, width = job.size
    options: list[tuple[tuple[str, ...], Job]] = []
    if job.grid_clips:
        options.append((("callbacks.grid=null",), replace(job, grid_clips=0)))
    if found.rank is not None and job.lora is not None and found.rank < job.lora.rank:
        options.append(((f"lora.rank={found.rank}",), with_rank(job, found.rank)))
    if found.frames is not None and found.frames < frames:
        size = (found.frames, height, width)
        options.append(((f"model.num_frames={found.frames}",), replace(job, size=size)))
    if found.resolution is not None and found.resolution < (height, width):
        words = (f"model.height={found.resolution[0]}", f"model.width={found.resolution[1]}")
        options.append((words, replace(job, size=(frames, *found.resolution))))
    for words, changed in options:
        estimate = planner.estimate(changed, cluster)
        if estimate.fits:
            yield Change(words, estimate, lossy=words != ("callbacks.grid=null",))
