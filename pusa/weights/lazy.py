"""Tensors that stay in their files until they are asked for: what they are called, their shapes
and dtypes are known at once. Knows no layout and no model."""

import pickle
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pusa.weights.paging import bring_in

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
WRAPPERS = ("state_dict", "model_state", "module", "model")  # keys that hold the tensors of a .pt


class WeightsError(ValueError):
    """A weight file that does not fit, with the key or file and the remedy."""


class Tensors(Mapping[str, Tensor]):
    """A state dict whose tensors are read one at a time.

    tensors[key] reads (memory-mapped where the file allows it); spec(key) is a meta tensor with the
    same shape and dtype, without reading; release() lets go of the files that were mapped so far;
    source names the file for messages; metadata is the file's; scaled says that float8 weights are
    multiplied by their scales as they are read; layout is what the file's names were.
    """

    source: str = "memory"
    metadata: Mapping[str, str] = {}
    scaled: bool = False
    layout: str = "official"

    @abstractmethod
    def spec(self, key: str) -> Tensor: ...

    def specs(self) -> dict[str, Tensor]:
        return {key: self.spec(key) for key in self}

    def release(self) -> None: ...


class InMemory(Tensors):
    """A plain dict of tensors behind the same interface."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str = "memory",
                 metadata: Mapping[str, str] | None = None):  # fmt: skip
        self._tensors, self.source, self.metadata = dict(tensors), source, dict(metadata or {})

    def __getitem__(self, key: str) -> Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def spec(self, key: str) -> Tensor:
        return self._tensors[key].to("meta")


class SafetensorsFiles(Tensors):
    """One or more safetensors files as one state dict, in the files' order.

    WeightsError if a file is missing, damaged or truncated, or if two files hold the same key.
    """

    def __init__(self, files: Sequence[str | Path], source: str | Path | None = None):
        self.files = [Path(file) for file in files]
        self.source = str(source if source is not None else self.files[0])
        self.metadata = {}
        self._file_of: dict[str, Path] = {}
        self._specs: dict[str, Tensor] = {}
        self._open: dict[Path, Any] = {}
        for file in self.files:
            self._read_header(file)

    def _read_header(self, file: Path) -> None:
        with _open_safetensors(file) as handle:
            self.metadata = {**(handle.metadata() or {}), **self.metadata}
            for key in handle.offset_keys():
                if key in self._file_of:
                    raise WeightsError(
                        f"{file}: {key} is in {self._file_of[key].name} as well; "
                        "the folder mixes two checkpoints, keep one."
                    )
                part = handle.get_slice(key)
                dtype = SAFETENSORS_DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise WeightsError(
                        f"{file}: {key} has dtype {part.get_dtype()}, which is not read; "
                        "use a float32, float16, bfloat16 or float8 file."
                    )
                self._file_of[key] = file
                self._specs[key] = torch.empty(part.get_shape(), dtype=dtype, device="meta")

    def __getitem__(self, key: str) -> Tensor:
        file = self._file_of[key]
        if file not in self._open:
            self._open[file] = _open_safetensors(file)
        return self._open[file].get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def spec(self, key: str) -> Tensor:
        return self._specs[key]

    def file_of(self, key: str) -> Path:
        return self._file_of[key]

    def release(self) -> None:
        self._open.clear()


def _open_safetensors(path: Path):
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; check the path.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}); download or export it again."
        ) from error


@dataclass(frozen=True)
class Piece:
    """How one tensor of a layout is made of another layout's: rows joined, a part of them, halves.

    sources are joined along dimension 0; part=(i, n) takes the i-th of n equal groups of rows;
    swap exchanges the first half of the rows with the second. All are exact.
    """

    sources: tuple[str, ...]
    part: tuple[int, int] | None = None
    swap: bool = False

    def apply(self, tensors: Sequence[Tensor]) -> Tensor:
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
        if self.part is not None:
            tensor = tensor.chunk(self.part[1])[self.part[0]]
        if self.swap:
            first, second = tensor.chunk(2)
            tensor = torch.cat([second, first])
        return tensor


class Changed(Tensors):
    """Another state dict whose tensors are changed as they are read; a subclass says how."""

    def __init__(self, base: Tensors, names: Iterable[str] | None = None):
        self.base, self.names = base, dict.fromkeys(base if names is None else names)
        self.source, self.metadata = base.source, base.metadata
        self.scaled, self.layout = base.scaled, base.layout

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def release(self) -> None:
        self.base.release()


class View(Changed):
    """Another state dict seen through a table key -> Piece."""

    def __init__(self, base: Tensors, pieces: Mapping[str, Piece]):
        super().__init__(base, pieces)
        self.pieces = pieces

    def __getitem__(self, key: str) -> Tensor:
        piece = self.pieces[key]
        return piece.apply([self.base[source] for source in piece.sources])

    def spec(self, key: str) -> Tensor:
        piece = self.pieces[key]
        return piece.apply([self.base.spec(source) for source in piece.sources])


def in_turn(
    tensors: Tensors, keys: Iterable[str], limit: int = 2**30, ahead: int = 2**28
) -> Iterator[tuple[str, Tensor]]:
    """Read tensor after tensor, letting go of the mapped files every `limit` bytes, so that pages
    that were only passed through do not stay in memory.

    While one is worked on, a thread reads the next ones: about `ahead` bytes, one at the least.
    """
    passed = 0

    def read(key: str) -> Tensor:  # by the thread alone, which opens the files
        nonlocal passed
        if passed > limit:
            tensors.release()
            passed = 0
        passed += num_bytes(tensors.spec(key))
        return bring_in(tensors[key])

    waiting: deque[tuple[str, Future[Tensor]]] = deque()
    size = 0
    with ThreadPoolExecutor(1, "reading") as thread:
        try:
            for key in keys:
                waiting.append((key, thread.submit(read, key)))
                size += num_bytes(tensors.spec(key))
                while len(waiting) > 1 and size > ahead:
                    size -= num_bytes(tensors.spec(waiting[0][0]))
                    yield _first_of(waiting)
            while waiting:
                yield _first_of(waiting)
        finally:
            thread.shutdown(cancel_futures=True)
            tensors.release()


def _first_of(waiting: "deque[tuple[str, Future[Tensor]]]") -> tuple[str, Tensor]:
    key, future = waiting.popleft()
    return key, future.result()


def num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def open_tensors(path: str | Path) -> Tensors:
    """The tensors of one file by its suffix: .safetensors, or .pt, .pth, .ckpt, .bin read without
    running any code that is in it. WeightsError if it is missing, damaged or holds code."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return SafetensorsFiles([path])
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        return read_pickle(path)
    raise WeightsError(
        f"{path}: {path.suffix or 'a file without suffix'} is not a weight format that is read; "
        "use .safetensors (or .pt, .pth, .ckpt, .bin)."
    )


def read_pickle(path: Path) -> InMemory:
    """A torch file's tensors, memory-mapped if it is in the zip format, code in it never run."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; check the path.")
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors (a pickle that would run code, or not a torch file); "
            "it is refused. Ask for a .safetensors file."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a whole torch file ({error}); download or export it again."
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = content.items() if isinstance(content, dict) else ()
    kept = {str(key): value for key, value in tensors if isinstance(value, Tensor)}
    if not kept:
        raise WeightsError(f"{path}: no tensors in it; is it a checkpoint?")
    return InMemory(kept, str(path))
