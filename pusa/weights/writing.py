"""Writing checkpoints that may be larger than memory: one tensor in memory at a time, whole or not
at all, in one file or in shards with an index."""

import errno
import glob
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pusa.atomic import free_bytes, replacing
from pusa.weights.lazy import SAFETENSORS_DTYPES, Tensors, WeightsError, in_turn, num_bytes

STEM = "diffusion_pytorch_model"
SHARD_BYTES = 5_000_000_000  # as the official shards, about
SYNC_BYTES = 2**27  # that are written before the disk is asked to have them
Progress = Callable[[Iterable], Iterable]
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write one safetensors file of tensors in memory under a temporary name, then rename it."""
    ready = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        with replacing(path) as partial:
            save_file(ready, partial, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(errno.ENOSPC, f"could not be written ({error})", str(path)) from error
    return Path(path)


def stream_tensors(
    path: Path, tensors: Tensors, keys: Sequence[str], metadata: Mapping[str, str],
    progress: Progress = iter,
) -> None:  # fmt: skip
    """Write `keys` of `tensors` to a safetensors file, one at a time; the bytes are those of
    safetensors' own writer, which wants all tensors in memory."""
    specs = {key: tensors.spec(key) for key in keys}
    # safetensors' order: wide dtypes first, for alignment, then by name.
    order = sorted(keys, key=lambda key: (-_rank(specs[key].dtype), key))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for key in order:
        size = specs[key].numel() * specs[key].element_size()
        header[key] = {
            "dtype": _DTYPE_NAMES[specs[key].dtype], "shape": list(specs[key].shape),
            "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    written, syncing = 0, None
    # The disk writes beside the reading and summing, and the last fsync has little to wait for.
    with open(path, "wb") as file, ThreadPoolExecutor(1, "syncing") as thread:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, tensor in in_turn(tensors, progress(order)):
            assert (tensor.dtype, tensor.shape) == (specs[key].dtype, specs[key].shape), key
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            written += num_bytes(tensor)
            if written > SYNC_BYTES and (syncing is None or syncing.done()):
                syncing, written = thread.submit(os.fdatasync, file.fileno()), 0
        file.flush()
        os.fsync(file.fileno())
        if syncing is not None:
            syncing.result()  # what failed to reach the disk is an error here, too


def _rank(dtype: torch.dtype) -> int:
    """Position in safetensors' own list of dtypes, in which wider ones come later."""
    order = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32",
             "F64", "I64")  # fmt: skip
    return order.index(_DTYPE_NAMES[dtype])


def write_checkpoint(
    path: str | Path, tensors: Tensors, config: Mapping[str, object] | None = None,
    shard_bytes: int = SHARD_BYTES, metadata: Mapping[str, str] | None = None,
    progress: Progress = iter,
) -> Path:  # fmt: skip
    """Write a checkpoint: one file if path ends in .safetensors, else a folder.

    A folder holds `diffusion_pytorch_model.safetensors`, or shards of at most `shard_bytes` with
    their index, and `config.json` if a config is given. ValueError if the folder has files in it.
    """
    path = Path(path)
    metadata = {"format": "pt", **(metadata or {})}
    if path.is_file():
        raise WeightsError(f"{path}: is there already; remove it or choose another name.")
    check_room(path, tensors)
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(f"{path}: checkpoints are written as .safetensors or as a folder.")
    if path.suffix == ".safetensors":
        with replacing(path) as partial:
            stream_tensors(partial, tensors, list(tensors), metadata, progress)
        return path
    shards = plan_shards(tensors, shard_bytes)
    with replacing_folder(path) as partial:
        if len(shards) == 1:
            stream_tensors(partial / f"{STEM}.safetensors", tensors, shards[0], metadata, progress)
        else:
            _write_shards(partial, tensors, shards, metadata, progress)
        if config is not None:
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return path


def plan_shards(tensors: Tensors, shard_bytes: int) -> list[list[str]]:
    """Keys by shard, in order, each shard at most `shard_bytes` unless one tensor alone is more."""
    if shard_bytes < 1:
        raise ValueError(f"shard size must be positive, got {shard_bytes} bytes.")
    shards: list[list[str]] = [[]]
    filled = 0
    for key in tensors:
        size = num_bytes(tensors.spec(key))
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards


def _write_shards(
    folder: Path, tensors: Tensors, shards: list[list[str]], metadata: Mapping[str, str],
    progress: Progress,
) -> None:  # fmt: skip
    names = [f"{STEM}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, keys in progress(list(zip(names, shards, strict=True))):
        stream_tensors(folder / name, tensors, keys, metadata)
    place = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
    total = sum(num_bytes(tensors.spec(key)) for key in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def check_room(path: Path, tensors: Tensors) -> None:
    """OSError before anything is written if the disk cannot hold it."""
    need = sum(num_bytes(tensors.spec(key)) for key in tensors)
    free = free_bytes(path)
    if need > free:
        raise OSError(
            errno.ENOSPC, f"needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", str(path)
        )


@contextmanager
def replacing_folder(path: Path):
    """A new folder beside `path`, renamed onto it at the end, removed on failure."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WeightsError(f"{path}: is there already; remove it or choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not _alive(old.name.split(".")[-2]):  # of a process that was killed
            shutil.rmtree(old, ignore_errors=True)
    partial = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _machine() -> str:
    """Several share a folder, and have processes of the same numbers."""
    return platform.node().replace(".", "_")


def _alive(writer: str) -> bool:
    """Whether MACHINE-NUMBER may still be writing; of other machines nobody knows."""
    machine, _, process = writer.rpartition("-")
    if machine != _machine():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError):
        pass
    return True
