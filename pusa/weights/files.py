"""Reading and writing tensors: strict, whole or not at all, safetensors only."""

import errno
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pusa.atomic import replacing


class WeightsError(ValueError):
    """A weight file that does not fit, with the key or file and the remedy."""


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write one safetensors file under a temporary name, then rename it."""
    ready = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        with replacing(path) as partial:
            save_file(ready, partial, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(errno.ENOSPC, f"could not be written ({error})", str(path)) from error
    return Path(path)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped; WeightsError if missing or damaged."""
    with _open(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def read_metadata(path: str | Path) -> dict[str, str]:
    """The string metadata of a safetensors file."""
    with _open(path) as file:
        return file.metadata() or {}


def _open(path: str | Path):
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; check the path.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}); download or export it again."
        ) from error


def load_weights(model: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Fill a model, which may be on meta, from a file whose keys and shapes are exactly its own.

    dtype: cast floating tensors, except parameters whose name contains one of the model's
    `keep_float32` parts. Nothing is assigned unless everything fits.
    """
    tensors = read_tensors(path)
    check_fit(model.state_dict(), tensors, path)
    keep = getattr(model, "keep_float32", ())
    tensors = {key: _cast(tensor, key, keep, dtype) for key, tensor in tensors.items()}
    model.load_state_dict(tensors, strict=True, assign=True)


def _cast(tensor: Tensor, key: str, keep: Iterable[str], dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if any(part in key for part in keep) else dtype)


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path) -> None:
    """WeightsError naming the first missing, unexpected or wrongly shaped keys."""
    problems = [f"misses {key}" for key in expected if key not in found]
    problems += [f"has an unknown {key}" for key in found if key not in expected]
    problems += [
        f"{key} is {tuple(found[key].shape)}, the model needs {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise WeightsError(
            f"{path}: does not fit this model ({len(problems)} problems: {shown}). "
            "Is it a file for another variant? Choose the matching model=."
        )
