"""The latent cache: one small file per clip and per caption, named by what went into it.

A changed caption re-encodes one caption, a changed clip one clip. Training reads only this.
"""

import errno
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pusa.atomic import replacing, write_text
from pusa.data.order import CountedBatches
from pusa.types import LatentBatch, Text


def content_key(*parts: str | bytes | int | float) -> str:
    """A name that changes when any part does."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """Content hash of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


LARGE = 2**28  # bytes; larger weight files are known by samples of their content
_SAMPLES, _SAMPLE = 256, 2**14
_WEIGHT_FILES = (".json", ".safetensors", ".pth", ".pt", ".bin", ".model")


def fingerprint(path: str | Path) -> str:
    """What the weight and config files at a path are: a file, or a folder with all below it.

    Content hashes; of files of 256 MB and more, the size and evenly spaced samples, so that 60 GB
    of weights take milliseconds. ValueError if there are no such files.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _counts(p))
    if not files:
        raise ValueError(f"{path}: no weight files there; check the paths of the model.")
    return content_key(*(part for p in files for part in (p.name, _mark(p))))


def _counts(path: Path) -> bool:
    return path.is_file() and path.suffix in _WEIGHT_FILES


def _mark(path: Path) -> str:
    size = path.stat().st_size
    if size < LARGE:
        return file_digest(path)
    with path.open("rb") as file:
        samples = []
        for i in range(_SAMPLES):
            file.seek(i * (size - _SAMPLE) // (_SAMPLES - 1))
            samples.append(file.read(_SAMPLE))
    return content_key(size, *samples)


@dataclass(frozen=True)
class Entry:
    """One sample of an index: the clip's name and caption, and the keys of its two cache files."""

    name: str
    caption: str
    latents: str
    text: str


class LatentCache:
    """Files `latents/<key>.safetensors`, `text/<key>.safetensors`, and indices in one folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def has(self, kind: str, key: str) -> bool:
        return self.path(kind, key).is_file()

    def write(self, kind: str, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors whole or not at all."""
        target = self.path(kind, key)
        try:
            with replacing(target) as partial:
                save_file({name: t.contiguous() for name, t in tensors.items()}, partial)
        except SafetensorError as error:
            raise OSError(errno.ENOSPC, f"could not be written ({error})", str(target)) from error

    def read(self, kind: str, key: str) -> dict[str, Tensor]:
        return load_file(self.path(kind, key))

    def index_path(self, name: str) -> Path:
        return self.folder / f"{name}.index.json"

    def write_index(self, name: str, fingerprint: str, entries: Sequence[Entry]) -> None:
        """Record which cache files make up a data set, and for which settings (fingerprint)."""
        value = {"fingerprint": fingerprint, "entries": [vars(entry) for entry in entries]}
        write_text(self.index_path(name), json.dumps(value))

    def read_index(self, name: str) -> tuple[str, list[Entry]]:
        """Fingerprint and entries of an index. ValueError if it was never written."""
        path = self.index_path(name)
        if not path.is_file():
            raise ValueError(f"{path}: no such latent cache index; run `pusa encode` first.")
        value = json.loads(path.read_text())
        return value["fingerprint"], [Entry(**entry) for entry in value["entries"]]


class LatentDataset(Dataset):
    """Samples (latents (C, F, h, w) float32, text (L, text_dim) float32, index) of an index."""

    def __init__(self, cache: LatentCache, entries: Sequence[Entry], in_memory: bool = False):
        self.cache, self.entries = cache, list(entries)
        self.memory: dict[tuple[str, str], Tensor] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        entry = self.entries[index]
        latents, text = self._read("latents", entry.latents), self._read("text", entry.text)
        return latents.float(), text.float(), index

    def _read(self, kind: str, key: str) -> Tensor:
        if self.memory is None:
            return self.cache.read(kind, key)[kind]
        if (kind, key) not in self.memory:
            self.memory[kind, key] = self.cache.read(kind, key)[kind]
        return self.memory[kind, key]


def collate(samples: Sequence[tuple[Tensor, Tensor, int]]) -> LatentBatch:
    """Stack latents, right-pad texts to the longest."""
    latents, texts, index = zip(*samples, strict=True)
    lengths = torch.tensor([len(text) for text in texts])
    embedding = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    mask = torch.arange(embedding.shape[1]) < lengths[:, None]
    return LatentBatch(torch.stack(latents), Text(embedding, mask), torch.tensor(index))


class LatentDataModule(L.LightningDataModule):
    """Batches for training and held-out evaluation, out of two indices of one cache.

    The order of training samples is counted (see order.py): a resumed run sees what the
    uninterrupted one would have seen.
    """

    def __init__(
        self,
        cache: str | Path,
        train: str,
        heldout: str | None = None,
        batch_size: int = 1,
        num_steps: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        in_memory: bool = False,
    ):
        super().__init__()
        if num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0, got {num_workers}.")
        self.cache, self.train, self.heldout = LatentCache(cache), train, heldout
        self.batch_size, self.num_steps, self.seed = batch_size, num_steps, seed
        self.num_workers, self.in_memory = num_workers, in_memory
        self.start_step = 0

    @cached_property
    def train_set(self) -> LatentDataset:
        return LatentDataset(self.cache, self.cache.read_index(self.train)[1], self.in_memory)

    def train_dataloader(self) -> DataLoader:
        rank, world_size = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        order = CountedBatches(
            len(self.train_set), self.batch_size, self.seed, self.start_step, self.num_steps,
            rank, world_size,
        )  # fmt: skip
        return DataLoader(
            self.train_set, batch_sampler=order, collate_fn=collate, num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )  # fmt: skip

    def val_dataloader(self) -> DataLoader | list:
        if self.heldout is None:
            return []
        entries = self.cache.read_index(self.heldout)[1]
        dataset = LatentDataset(self.cache, entries, self.in_memory)
        return DataLoader(dataset, batch_size=max(self.batch_size, 32), collate_fn=collate)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.trainer.global_step if self.trainer else self.start_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.start_step = state_dict["step"]
