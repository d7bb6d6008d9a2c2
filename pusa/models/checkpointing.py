"""Activation checkpointing: which blocks are recomputed in the backward pass, and where their input
waits meanwhile. Knows nothing of what a block does."""

import re
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

CHECKPOINT_POLICIES = ("none", "blocks", "every_K", "offload")


@dataclass(frozen=True)
class Checkpointing:
    """Block i is recomputed if i is a multiple of `every`; with every = 0 none is.

    A recomputed block keeps nothing but its arguments. With `offload`, the first of them, the
    residual stream (B, F, S, D), waits in host memory. The others are small or shared by all
    blocks (text, per-frame modulation, rope) and stay on the device.
    """

    every: int = 0
    offload: bool = False

    @classmethod
    def named(cls, policy: str) -> "Checkpointing":
        """The policy of a name in CHECKPOINT_POLICIES, ValueError for any other.

        "none" keeps all activations; "blocks" recomputes every block; "every_K", such as "every_2",
        recomputes every K-th block, a K-th part of them, beginning with the first (K >= 2);
        "offload" is "blocks" with their inputs in host memory.
        """
        plain = {"none": cls(), "blocks": cls(every=1), "offload": cls(every=1, offload=True)}
        if policy in plain:
            return plain[policy]
        number = re.fullmatch(r"every_([1-9][0-9]*)", policy)
        if number is None or int(number[1]) < 2:
            raise ValueError(
                f"checkpointing={policy!r} is unknown; use one of {', '.join(CHECKPOINT_POLICIES)} "
                "with K of 2 or more, such as every_2."
            )
        return cls(every=int(number[1]))

    def run(self, block: nn.Module, index: int, stream: Tensor, *arguments: Any) -> Any:
        """block(stream, *arguments) as the index-th block; without grad nothing is checkpointed."""
        if not torch.is_grad_enabled() or not self.every or index % self.every:
            return block(stream, *arguments)
        with HostMemory(stream) if self.offload else nullcontext():
            return checkpoint(block, stream, *arguments, use_reentrant=False)


class HostMemory(saved_tensors_hooks):
    """While it is entered, autograd saves `stream` as a copy in host memory, all else as it is.

    From CUDA the copy is pinned and asynchronous in both directions, ordered by the stream of the
    computation. `checkpoint` has hooks of its own within the block: only its arguments come here.
    """

    def __init__(self, stream: Tensor):
        device, pinned = stream.device, stream.is_cuda
        moved = weakref.ref(stream)  # the graph keeps these hooks, which must not keep the stream

        def pack(tensor: Tensor) -> tuple[bool, Tensor]:
            if tensor is not moved():
                return False, tensor
            # empty_like keeps the strides, on which the bits of later sums depend.
            host = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
            return True, host.copy_(tensor.detach(), non_blocking=pinned)

        def unpack(packed: tuple[bool, Tensor]) -> Tensor:
            on_host, tensor = packed
            return tensor.to(device, non_blocking=pinned) if on_host else tensor

        super().__init__(pack, unpack)
