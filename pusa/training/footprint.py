"""What a training step holds and computes, without computing it: the real network runs, forward and
backward, on fake tensors, and a ledger counts the bytes of every storage while it lives. Knows
nothing of GPUs, of ranks and of the optimizer."""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from pusa.diffusion.flow import FlowMatching
from pusa.models.stored import store_layers
from pusa.pipelines.build import PRECISIONS, Model
from pusa.types import Text
from pusa.weights.lora import LoRA, inject_lora

# A second "CPU" stands for the GPU: what a policy moves to the first is in host memory, and no
# table that the models cache by device is mistaken for a real one.
DEVICE = torch.device("cpu", 1)
_FAKE = FakeTensorMode()  # one for all traces, because the models' cached tables belong to it
_aten = torch.ops.aten
_FLASH = _aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = _aten._scaled_dot_product_flash_attention_for_cpu_backward
_IN_PLACE: dict[Any, Any] = {
    _aten.addmm_: _aten.addmm,
    _aten.baddbmm_: _aten.baddbmm,
}  # torch counts no such
TRAINER_PRECISIONS: Mapping[str, bool] = MappingProxyType({"bf16-mixed": True, "32-true": False})


@dataclass(frozen=True)
class Work:
    """What one process computes on: clips of a pass, latent shape (C, F, h, w), text, precision."""

    batch: int
    shape: tuple[int, int, int, int]
    text_len: int
    text_dim: int
    autocast: bool = True


@dataclass(frozen=True)
class Moment:
    """One part of a step: the most bytes of activations (all that is no weight and no gradient of
    one) and, apart from them, in host memory, that were alive; and the gradients at its end."""

    activations: int
    gradients: int = 0
    host: int = 0


@dataclass(frozen=True)
class Footprint:
    """One pass over a network of `depth` blocks.

    forward: until the loss; backward: loss and head, then one part per block, last block first.
    modulation: activations per frame instead of per token, at the fullest moment; workspace:
    float32 sums of a GPU's attention backward, which torch does not show; flops: a multiply-add
    counts two.
    """

    depth: int
    forward: Moment
    backward: tuple[Moment, ...]
    modulation: int
    workspace: int
    forward_flops: float
    backward_flops: float

    @property
    def flops(self) -> float:
        return self.forward_flops + self.backward_flops

    @property
    def host(self) -> int:
        """The most bytes in host memory at once."""
        return max(moment.host for moment in (self.forward, *self.backward))

    def fullest(self, share: float = 1.0, fixed: bool = False) -> Moment:
        """The moment that needs most, where a process keeps `share` of the gradients; fixed: all of
        them are there from the beginning. Its gradients are what the process keeps."""
        parts = (self.forward, *self.backward)
        total = max(part.gradients for part in parts)
        moments = [
            replace(part, gradients=round(share * (total if fixed else part.gradients)))
            for part in parts
        ]
        return max(moments, key=lambda m: m.activations + m.gradients)


class Ledger(TorchDispatchMode):
    """Counts the bytes of storages that operations make, while they live, and the FLOPs.

    owned: storages that are no activations (the weights). frames: (B, F), by which a tensor per
    frame is told from one per token.
    """

    def __init__(self, owned: set[int], frames: tuple[int, int]):
        super().__init__()
        self._owned, self._frames = owned, frames
        self._sizes: dict[int, tuple[str, int]] = {}  # storage -> (purpose, bytes)
        self._live = {"activations": 0, "gradients": 0, "host": 0, "modulation": 0}
        self._peak = self._host_peak = 0
        self.workspace = self.modulation = 0
        self._most = 0
        self.flops = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        moving = any(value.device == DEVICE for value in given)
        for value in (*given, *tree_iter(out)):  # given: tables that a cache held before
            if isinstance(value, Tensor) and (moving or value.device == DEVICE):
                self._note(value)
        self._count(func, args, kwargs or {}, out)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._owned or key in self._sizes:
            return
        if tensor.device != DEVICE:
            purpose = "host"
        else:
            purpose = "modulation" if self._per_frame(tensor) else "activations"
        self._sizes[key] = (purpose, storage.nbytes())
        self._live[purpose] += storage.nbytes()
        weakref.finalize(storage, self._drop, key)
        self._host_peak = max(self._host_peak, self._live["host"])
        self._observe()

    def _observe(self) -> None:
        now = self._live["activations"] + self._live["modulation"]
        self._peak = max(self._peak, now)
        if now > self._most:
            self._most, self.modulation = now, self._live["modulation"]

    def _per_frame(self, tensor: Tensor) -> bool:
        few = (
            tensor.ndim >= 3
            and tensor.numel() <= 8 * math.prod(tensor.shape[:2]) * tensor.shape[-1]
        )
        return few and tuple(tensor.shape[:2]) == self._frames

    def _drop(self, key: int) -> None:
        purpose, size = self._sizes.pop(key)
        self._live[purpose] -= size

    def _count(self, func, args, kwargs, out) -> None:
        packet: Any = getattr(func, "_overloadpacket", None)
        if packet is _FLASH:
            self.flops += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif packet is _FLASH_BACKWARD:
            self.flops += sdpa_backward_flop_count(*(x.shape for x in args[:4]))
            query = args[1]
            self.workspace = max(self.workspace, 4 * query.numel() + 4 * query[..., 0].numel())
        elif (counted := _IN_PLACE.get(packet, packet)) in flop_registry:
            self.flops += flop_registry[counted](*args, **kwargs, out_val=out)

    def is_gradient(self, tensor: Tensor) -> None:
        """The tensor has become a weight's gradient."""
        key = tensor.untyped_storage()._cdata
        purpose, size = self._sizes.get(key, ("gradients", 0))
        if purpose != "gradients":
            self._live[purpose] -= size
            self._live["gradients"] += size
            self._sizes[key] = ("gradients", size)

    def end_part(self) -> Moment:
        """What happened since the last call."""
        moment = Moment(self._peak, self._live["gradients"], self._host_peak)
        self._peak = self._live["activations"] + self._live["modulation"]
        self._host_peak = self._live["host"]
        return moment


class _FullCaptions(TorchFunctionMode):
    """Answers what a model asks of the text's mask, which is not known here: no padding."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__bool__ or (func is Tensor.item and args[0].dtype == torch.bool):
            return True
        return func(*args, **(kwargs or {}))


@contextmanager
def traced(module: nn.Module, frames: tuple[int, int]) -> Iterator[Ledger]:
    """Inside the block the module, built on meta, is a fake one on DEVICE, and a ledger is kept."""
    with _FAKE:
        _to_fake(module)
        owned = {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers())}
        with Ledger(owned, frames) as ledger, _FullCaptions():
            yield ledger


def _to_fake(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                value = torch.empty(parameter.shape, dtype=parameter.dtype, device=DEVICE)
                part._parameters[name] = nn.Parameter(value, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)


def outline(model: Model, lora: LoRA | None, **changes: Any) -> nn.Module:
    """The network on meta as it trains: frozen in the model's dtype and storage with a float32
    adapter, or (lora=None) all of it in float32. changes: of the constructor's arguments."""
    with torch.device("meta"):
        backbone = model.backbone(**changes)
    keep = getattr(backbone, "keep_float32", ())
    dtype = torch.float32 if lora is None else PRECISIONS[model.dtype]
    for name, parameter in backbone.named_parameters():
        kept = any(part in name for part in keep)
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    if lora is not None:
        if model.storage is not None:
            store_layers(backbone, model.storage)
        with torch.device("meta"):
            inject_lora(backbone, lora)
    return backbone.train()


def run_step(backbone: nn.Module, flow: FlowMatching, work: Work) -> Footprint:
    """Trace one forward and backward pass of a network from `outline`."""
    frames = (work.batch, work.shape[1])
    blocks: Any = backbone.blocks
    parts: list[Moment] = []
    with traced(backbone, frames) as ledger:
        for block in blocks:
            block.register_forward_hook(_mark_backward(lambda: parts.append(ledger.end_part())))
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: ledger.is_gradient(p.grad))
        loss = _loss(backbone, flow, work)
        forward, forward_flops = ledger.end_part(), ledger.flops
        loss.backward()
        parts.append(ledger.end_part())
        return Footprint(
            len(blocks), forward, tuple(parts), ledger.modulation, ledger.workspace,
            forward_flops, ledger.flops - forward_flops,
        )  # fmt: skip


def _mark_backward(reached: Callable[[], None]):
    """Forward hook: calls `reached` when the gradient of a block's output is complete.

    The forward that a checkpoint repeats comes without a graph behind its output and is not marked
    a second time.
    """
    marked = False

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal marked
        stream = output[0] if isinstance(output, tuple) else output
        if not marked and stream.requires_grad:
            marked = True
            stream.register_hook(lambda gradient: reached())

    return hook


def _inputs(work: Work) -> tuple[Tensor, Tensor, Text]:
    """Latents, sigma and full captions, fake."""
    latents = torch.empty(work.batch, *work.shape, device=DEVICE)
    sigma = torch.empty(work.batch, work.shape[1], device=DEVICE)
    mask = torch.empty(work.batch, work.text_len, dtype=torch.bool, device=DEVICE)
    return latents, sigma, Text(torch.empty(*mask.shape, work.text_dim, device=DEVICE), mask)


def _loss(backbone: nn.Module, flow: FlowMatching, work: Work) -> Tensor:
    """As the training step has it."""
    clean, sigma, text = _inputs(work)
    noise = torch.empty_like(clean)
    noisy = flow.add_noise(clean, noise, sigma)
    with torch.autocast("cpu", torch.bfloat16, enabled=work.autocast):
        velocity = backbone(noisy, sigma, text)
    return flow.loss(velocity, clean, noise, sigma)


def run_forward(backbone: nn.Module, work: Work) -> Footprint:
    """Trace one evaluation without gradients, as sampling does."""
    with traced(backbone, (work.batch, work.shape[1])) as ledger, torch.no_grad():
        latents, sigma, text = _inputs(work)
        with torch.autocast("cpu", torch.bfloat16, enabled=work.autocast):
            backbone(latents, sigma, text)
        blocks: Any = backbone.blocks
        moment = ledger.end_part()
        return Footprint(len(blocks), moment, (), ledger.modulation, 0, ledger.flops, 0.0)


def run_module(module: nn.Module, call: Callable[[nn.Module], Any]) -> Footprint:
    """Trace `call(module)` without gradients, for VAEs and text encoders built on meta."""
    with traced(module, (0, 0)) as ledger, torch.no_grad():
        call(module)
        return Footprint(0, ledger.end_part(), (), 0, 0, ledger.flops, 0.0)


def period(checkpointing: str) -> int:
    """After how many blocks a policy repeats itself."""
    every = checkpointing.removesuffix("_half").removeprefix("every_")
    return int(every) if every.isdigit() else 1


def step_footprint(
    model: Model, lora: LoRA | None, work: Work, checkpointing: str, num_layers: int
) -> Footprint:
    """Of a network of many blocks, from two shallow ones: every byte grows by the same amount per
    period of blocks (tests/training/test_footprint.py compares with the whole network)."""
    every = period(checkpointing)
    run = partial(_shallow, model, lora, work, checkpointing)
    shallow = 2 * every + 1  # a period below the loss, another above the first block, which differs
    shallow += (num_layers - shallow) % every
    if num_layers <= shallow + every:
        return run(num_layers)
    return _deepened(run(shallow), run(shallow + every), num_layers, every)


def _shallow(
    model: Model, lora: LoRA | None, work: Work, checkpointing: str, depth: int
) -> Footprint:
    backbone = outline(model, lora, num_layers=depth, checkpointing=checkpointing)
    return run_step(backbone, model.flow, work)


def _deepened(a: Footprint, b: Footprint, depth: int, every: int) -> Footprint:
    """The parts near the loss and those near the input, each continued along its own line."""
    times = (depth - a.depth) // (b.depth - a.depth)

    def line(x: float, y: float) -> Any:
        return x + times * (y - x)

    def moment(x: Moment, y: Moment) -> Moment:
        return Moment(
            line(x.activations, y.activations), line(x.gradients, y.gradients), line(x.host, y.host)
        )

    last = every + 1  # loss and head, and the last blocks
    first = len(a.backward) - last
    parts = [moment(x, y) for x, y in zip(a.backward[:last], b.backward[:last], strict=True)]
    parts += [moment(x, y) for x, y in zip(a.backward[-first:], b.backward[-first:], strict=True)]
    return replace(
        a, depth=depth, forward=moment(a.forward, b.forward), backward=tuple(parts),
        modulation=line(a.modulation, b.modulation),
        workspace=max(a.workspace, b.workspace),
        forward_flops=line(a.forward_flops, b.forward_flops),
        backward_flops=line(a.backward_flops, b.backward_flops),
    )  # fmt: skip
