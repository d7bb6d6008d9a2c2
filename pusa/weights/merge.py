"""LoRAs into the weights for good: streamed, in float32."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pusa.weights.adapters import Adapter, check_usable
from pusa.weights.convert import Output, write
from pusa.weights.files import expert_of, read_checkpoint
from pusa.weights.lazy import Changed, Tensors
from pusa.weights.updates import rounded, updates_of
from pusa.weights.writing import Progress


def merge(
    path: str | Path, loras: Sequence[tuple[Adapter, float]], output: Output,
    progress: Progress = iter, expert: str | None = None,
) -> Path:  # fmt: skip
    """Write a checkpoint with LoRAs added: W + sum of strength * (scale * B @ A + diff).

    Arithmetic in float32, rounded once, one tensor at a time. expert: which network the base is, by
    default told from its place beside the other one. WeightsError if a LoRA does not fit or is for
    the other expert.
    """
    base = read_checkpoint(path)
    specs = base.tensors.specs()
    for adapter, _ in loras:
        check_usable(adapter, specs, expert or expert_of(path))
    merged = base._replace(tensors=Merged(base.tensors, loras, output.dtype))
    return write(merged, output, progress)


def merge_into(
    model: nn.Module, loras: Sequence[tuple[Adapter, float]], expert: str | None = None
) -> None:
    """Add LoRAs to a model in memory for good, each of its weights rounded once. WeightsError, and
    the model stays as it was, if one does not fit."""
    parameters = dict(model.named_parameters())
    for adapter, _ in loras:
        check_usable(adapter, parameters, expert)
    for key, parameter in parameters.items():
        if updates := updates_of(loras, key):
            parameter.data = rounded(parameter.detach(), updates, parameter.dtype)


class Merged(Changed):
    """A base in official names with LoRAs added as it is read. What they change is rounded once, to
    `dtype` (None: the base's)."""

    def __init__(
        self, base: Tensors, loras: Sequence[tuple[Adapter, float]], dtype: torch.dtype | None
    ):
        super().__init__(base)
        self.loras, self.dtype = loras, dtype

    def spec(self, key: str) -> Tensor:
        spec = self.base.spec(key)
        return spec.to(self.dtype or spec.dtype)

    def __getitem__(self, key: str) -> Tensor:
        tensor, dtype = self.base[key], self.spec(key).dtype
        updates = updates_of(self.loras, key)
        return rounded(tensor, updates, dtype) if updates else tensor.to(dtype)
