"""What each process holds of weights, gradients and optimizer under a strategy, in closed form.

The strategies are those of configs/strategy. Activations do not depend on them; see footprint.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from pusa.models.stored import stored_layers
from pusa.weights.lora import LoRA, match_targets

FLOAT32 = 4
BUCKET = 200_000_000  # elements; what strategy.py sets (a test compares), without its imports
MAX_LIVE = 1_000_000_000  # elements; DeepSpeed's default of stage3_max_live_parameters
PREFETCH = 50_000_000  # and of stage3_prefetch_bucket_size


@dataclass(frozen=True)
class Weights:
    """Bytes and elements of the frozen base, and elements of what trains, which is float32."""

    frozen_bytes: int
    frozen: int
    trainable: int

    @property
    def trainable_bytes(self) -> int:
        return FLOAT32 * self.trainable

    @classmethod
    def of(
        cls, backbone: nn.Module, lora: LoRA | None, frozen_size: int, stored: bool = False
    ) -> "Weights":
        """backbone: without adapter, may be on meta; frozen_size: bytes of an element of the frozen
        base, but for what the backbone keeps in float32. lora None: all weights train. stored: the
        blocks' linear layers are 8-bit numbers with a scale per row."""
        named = list(backbone.named_parameters())
        if lora is None:
            return cls(0, 0, sum(p.numel() for _, p in named))
        keep = getattr(backbone, "keep_float32", ())
        packed = {f"{name}.weight" for name in stored_layers(backbone)} if stored else set()

        def held(name: str, parameter: nn.Parameter) -> int:
            if name in packed:
                return parameter.numel() + FLOAT32 * parameter.shape[0]
            kept = any(part in name for part in keep)
            return parameter.numel() * (FLOAT32 if kept else frozen_size)

        frozen = sum(p.numel() for _, p in named)
        frozen_bytes = sum(held(name, p) for name, p in named)
        return cls(frozen_bytes, frozen, num_lora_parameters(backbone, lora))


def check_storage(storage: str | None, lora: LoRA | None, stage: int) -> None:
    """ValueError if a base that is kept in 8 bits (storage) cannot be trained so."""
    if storage is None:
        return
    if lora is None:
        raise ValueError(
            f"model.storage={storage} is for a frozen base, and lora=none trains all weights; set "
            "model.storage=null, or train a LoRA (lora=vta)."
        )
    if stage == 3:
        raise ValueError(
            f"model.storage={storage} is kept whole by every process, and ZeRO-3 divides the "
            "weights; use strategy=zero2, or model.storage=null."
        )


def num_lora_parameters(backbone: nn.Module, lora: LoRA) -> int:
    """rank * (inputs + outputs), over the layers that are adapted."""
    layers = dict(backbone.named_modules())
    names = {name for names in match_targets(backbone, lora).values() for name in names}
    return lora.rank * sum(sum(_matrix(layers[name])) for name in names)


def _matrix(layer: nn.Module) -> tuple[int, int]:
    assert isinstance(layer, nn.Linear), layer  # match_targets gives no others
    return layer.in_features, layer.out_features


@dataclass(frozen=True)
class Strategy:
    """stage: of ZeRO, 0 without. The offloads move state to host memory."""

    name: str
    stage: int = 0
    offload_optimizer: bool = False
    offload_params: bool = False


STRATEGIES: Mapping[str, Strategy] = MappingProxyType({
    strategy.name: strategy
    for strategy in (
        Strategy("single"), Strategy("ddp"), Strategy("zero1", 1), Strategy("zero2", 2),
        Strategy("zero3", 3), Strategy("zero2_offload", 2, True),
        Strategy("zero3_offload", 3, True, True),
    )
})  # fmt: skip


def strategy_named(name: str, ranks: int) -> Strategy:
    """ValueError if there is none of that name, or if it is not one for so many processes."""
    if name not in STRATEGIES:
        raise ValueError(f"strategy={name} is unknown; use one of {', '.join(STRATEGIES)}.")
    if name == "single" and ranks > 1:
        raise ValueError(f"strategy=single is one process, not {ranks}; use zero2 (--strategy).")
    return STRATEGIES[name]


@dataclass(frozen=True)
class Shares:
    """Bytes of one process.

    base, trainable: weights on the GPU; gathered: of other processes' weights, in passing;
    gradient_share: part of the gradients it keeps; early: whether all of them are allocated before
    the backward pass; optimizer: float32 masters and two moments; buffers: of communication;
    step: what the optimizer step needs for a moment; host: pinned in host memory;
    exchanged, copied: bytes per step between GPUs, and between GPU and host.
    """

    base: int
    trainable: int
    gathered: int
    gradient_share: float
    early: bool
    optimizer: int
    buffers: int
    step: int
    host: int
    exchanged: int
    copied: int

    @property
    def weights(self) -> int:
        return self.base + self.trainable + self.gathered


def shares(weights: Weights, strategy: Strategy, ranks: int, passes: int = 1) -> Shares:
    """Under DeepSpeed the trainable weights exist twice: as the network's and as flat masters.

    passes: of a step, each of which gathers the divided weights of stage 3 anew.
    """
    stage, train = strategy.stage, weights.trainable_bytes
    part = -(-train // ranks)
    masters = part if stage else 0
    moments = 2 * (part if stage else train)
    base = -(-weights.frozen_bytes // ranks) if stage == 3 else weights.frozen_bytes
    whole = weights.frozen_bytes + train
    elements = weights.frozen + weights.trainable
    live = min(1.0, (MAX_LIVE + PREFETCH) / elements) * whole if stage == 3 else 0
    on_host = (masters + moments + part if strategy.offload_optimizer else 0) + (
        base + part if strategy.offload_params else 0
    )
    bucket = FLOAT32 * BUCKET
    # Gradients once, and the updated weights once; or, divided, all weights forward and backward.
    moved = train + (2 * passes * whole if stage == 3 else train)
    copied = 2 * part if strategy.offload_optimizer else 0
    copied += 2 * passes * (base + part) if strategy.offload_params else 0
    # torch's and DeepSpeed's Adam hold one more tensor of the masters' size while they step.
    step = 0 if strategy.offload_optimizer else (part if stage else train)
    return Shares(
        base=0 if strategy.offload_params else base,
        trainable=0 if strategy.offload_params else part if stage == 3 else train,
        gathered=round(live),
        gradient_share=(0 if strategy.offload_optimizer else 1 / ranks) if stage >= 2 else 1.0,
        early=strategy.name == "ddp",  # as views of its buckets
        optimizer=0 if strategy.offload_optimizer else masters + moments,
        buffers=2 * bucket if stage >= 1 else 0,
        step=step,
        host=on_host,
        exchanged=round(moved * (ranks - 1) / ranks),
        copied=copied,
    )
