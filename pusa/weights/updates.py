"""One weight with what LoRAs add to it: summed in float32 and rounded once, or packed into 8 bits.

Block of rows after block of rows, so that a wide copy of the weight never exists. Which weights,
and from which file, is decided elsewhere."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.models.stored import pack
from pusa.weights.adapters import Adapter, changes
from pusa.weights.paging import in_large_pages

BLOCK = 2**22  # numbers; 16 MiB of float32, which the outer cache keeps between the passes


@dataclass(frozen=True, eq=False)
class Update:
    """What one LoRA adds to a parameter: scale * B @ A and strength * diff, either may be None.

    B: (out, rank), A: (rank, in), diff: of the parameter's shape, or one with other sides of 1.
    """

    B: Tensor | None
    A: Tensor | None
    scale: float
    diff: Tensor | None
    strength: float


def updates_of(loras: Iterable[tuple[Adapter, float]], key: str) -> list[Update]:
    """What LoRAs of those strengths add to a parameter by its official name; [] for nothing."""
    module, _, part = key.rpartition(".")
    found = []
    for adapter, strength in loras:
        target = adapter.targets.get(module)
        if target is None or strength == 0 or not changes(target):
            continue
        factors = part == "weight" and target.A is not None and target.B is not None
        diff = target.diffs.get(part)
        if factors or diff is not None:
            a, b = (target.A, target.B) if factors else (None, None)
            found.append(Update(b, a, strength * target.scale, diff, strength))
    return found


def rounded(
    tensor: Tensor, updates: Sequence[Update], dtype: torch.dtype,
    device: torch.device | None = None,
) -> Tensor:  # fmt: skip
    """A new tensor of dtype: tensor + its updates, the sum in float32; without updates the cast
    alone, whatever the dtypes. device: where the result is, and where the sums are taken."""
    result = in_large_pages(torch.empty(tensor.shape, dtype=dtype, device=device))
    if not updates:
        return result.copy_(tensor)
    rows = _rows(result)
    for place, wide in _sums(tensor, updates, device):
        rows[place].copy_(wide)
    return result


def packed(
    tensor: Tensor, updates: Sequence[Update], storage: str, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """`pack` of tensor (out, in) + its updates: the sum is not rounded before. device: as of
    `rounded`."""
    numbers = in_large_pages(torch.empty(tensor.shape, dtype=torch.int8, device=device))
    scale = torch.empty(len(tensor), 1, device=device)
    for place, wide in _sums(tensor, updates, device):
        numbers[place], scale[place] = pack(wide, storage)
    return numbers, scale


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _sums(
    tensor: Tensor, updates: Sequence[Update], device: torch.device | None
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their float32 sums, which are overwritten by the next ones'."""
    source = _rows(tensor)
    height = max(1, BLOCK // max(1, source.shape[1]))
    buffer = torch.empty(min(height, len(source)), source.shape[1], device=device)

    def there(part: Tensor | None) -> Tensor | None:  # half precision is summed in float32, too
        return None if part is None else part.to(device or "cpu", torch.float32)

    wide = [
        (
            there(update.B), there(update.A),
            None if update.diff is None else update.diff.reshape(source.shape), update,
        )
        for update in updates
    ]  # fmt: skip
    for start in range(0, len(source), height):
        place = slice(start, start + height)
        total = buffer[: len(source[place])].copy_(source[place])
        for b, a, diff, update in wide:
            if b is not None and a is not None:
                total.addmm_(b[place], a, alpha=update.scale)
            if diff is not None:
                total.add_(diff[place].to(total.device, torch.float32), alpha=update.strength)
        yield place, total
