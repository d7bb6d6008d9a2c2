"""LoRAs into the weights for good: streamed, in float32."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pusa.weights.adapters import Adapter, check_fits, dead_or_broken
from pusa.weights.convert import Output, write
from pusa.weights.files import WeightsError, read_checkpoint
from pusa.weights.lazy import Changed, Tensors
from pusa.weights.writing import Progress


def merge(
    path: str | Path, loras: Sequence[tuple[Adapter, float]], output: Output,
    progress: Progress = iter,
) -> Path:  # fmt: skip
    """Write a checkpoint with LoRAs added: W + sum of strength * (scale * B @ A + diff).

    Arithmetic in float32, one tensor at a time. WeightsError if a LoRA does not fit.
    """
    base = read_checkpoint(path)
    specs = base.tensors.specs()
    for adapter, _ in loras:
        check_fits(adapter, specs)
        problems = dead_or_broken(adapter)
        if problems:
            raise WeightsError(f"{adapter.source}: {problems[0]}.")
    merged = base._replace(tensors=Merged(base.tensors, loras))
    return write(merged, output, progress)


class Merged(Changed):
    """A base in official names with LoRAs added as it is read; dtypes stay the base's."""

    def __init__(self, base: Tensors, loras: Sequence[tuple[Adapter, float]]):
        super().__init__(base)
        self.loras = loras

    def spec(self, key: str) -> Tensor:
        return self.base.spec(key)

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.base[key]
        module, _, part = key.rpartition(".")
        total = None
        for adapter, strength in self.loras:
            target = adapter.targets.get(module)
            if target is None:
                continue
            delta = target.delta() if part == "weight" else target.diffs.get(part)
            if delta is None:
                continue
            total = tensor.float() if total is None else total
            total = total + strength * delta.float().reshape(total.shape)
        return tensor if total is None else total.to(tensor.dtype)
