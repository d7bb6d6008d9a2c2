"""Activation checkpointing: which blocks are recomputed in the backward pass, and where their input
waits meanwhile. Knows nothing of what a block does."""

import re
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

CHECKPOINT_POLICIES = ("none", "blocks", "selective", "every_K", "offload")
HALF = "_half"
_SDPA = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default
    for name in (
        "flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Checkpointing:
    """Block i is recomputed if i is a multiple of `every`; with every = 0 none is.

    A recomputed block keeps nothing but its arguments and, with `attention`, what its
    self-attention made of queries and keys, the longest part of it to compute again. With
    `offload`, the first argument, the residual stream (B, F, S, D), waits in host memory; with
    `half` it waits as bfloat16, so that gradients are those at a rounded stream. The other
    arguments are small or shared by all blocks (text, per-frame modulation, rope) and stay.
    """

    every: int = 0
    offload: bool = False
    attention: bool = False
    half: bool = False

    @classmethod
    def named(cls, policy: str) -> "Checkpointing":
        """The policy of a name in CHECKPOINT_POLICIES, ValueError for any other.

        "none" keeps all activations; "blocks" recomputes every block; "selective" does so but keeps
        the outputs of self-attention; "every_K", such as "every_2", recomputes every K-th block, a
        K-th part of them, beginning with the first (K >= 2); "offload" is "blocks" with their
        inputs in host memory. All but "none" may end in "_half": inputs are kept as bfloat16.
        """
        plain = {
            "none": cls(), "blocks": cls(every=1), "selective": cls(every=1, attention=True),
            "offload": cls(every=1, offload=True),
        }  # fmt: skip
        name = policy.removesuffix(HALF)
        number = re.fullmatch(r"every_([1-9][0-9]*)", name)
        if number is not None and int(number[1]) >= 2:
            found = cls(every=int(number[1]))
        elif name in plain and policy != "none" + HALF:
            found = plain[name]
        else:
            raise ValueError(
                f"checkpointing={policy!r} is unknown; use one of {', '.join(CHECKPOINT_POLICIES)} "
                f"with K of 2 or more, such as every_2, or one of them with {HALF}, as blocks_half."
            )
        return replace(found, half=policy.endswith(HALF))

    def run(self, block: nn.Module, index: int, stream: Tensor, *arguments: Any) -> Any:
        """block(stream, *arguments) as the index-th block; without grad nothing is checkpointed."""
        if not torch.is_grad_enabled() or not self.every or index % self.every:
            return block(stream, *arguments)
        options: dict[str, Any] = {"context_fn": _keep_attention} if self.attention else {}
        waits = self.offload or self.half
        with Waiting(stream, self.offload, self.half) if waits else nullcontext():
            return checkpoint(block, stream, *arguments, use_reentrant=False, **options)


def _keep_attention():
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Keep what attention of tokens to one another gives; that to a caption is soon computed."""
    kernel = op in _SDPA or "flash_attn" in str(op)
    if kernel and arguments[0].shape == arguments[1].shape:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


class Waiting(saved_tensors_hooks):
    """While it is entered, autograd saves `stream` in host memory, as bfloat16, or both, and all
    else as it is.

    From CUDA the copy is pinned and asynchronous in both directions, ordered by the stream of the
    computation. `checkpoint` has hooks of its own within the block: only its arguments come here.
    """

    def __init__(self, stream: Tensor, offload: bool, half: bool):
        device, dtype = stream.device, stream.dtype
        pinned = offload and stream.is_cuda
        moved = weakref.ref(stream)  # the graph keeps these hooks, which must not keep the stream

        def pack(tensor: Tensor) -> tuple[bool, Tensor]:
            if tensor is not moved():
                return False, tensor
            kept = tensor.detach().bfloat16() if half else tensor.detach()
            if not offload:
                return True, kept
            # empty_like keeps the strides, on which the bits of later sums depend.
            host = torch.empty_like(kept, device="cpu", pin_memory=pinned)
            return True, host.copy_(kept, non_blocking=pinned)

        def unpack(packed: tuple[bool, Tensor]) -> Tensor:
            waited, tensor = packed
            return tensor.to(device, non_blocking=pinned).to(dtype) if waited else tensor

        super().__init__(pack, unpack)
