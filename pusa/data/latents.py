"""Training batches out of the latent cache: nothing here decodes or encodes."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from pusa.data.cache import Entry, LatentCache
from pusa.data.order import CountedBatches, passes_of_a_step
from pusa.types import LatentBatch, Text

log = logging.getLogger(__name__)


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
            return self.cache.read(kind, key)
        if (kind, key) not in self.memory:
            self.memory[kind, key] = self.cache.read(kind, key).clone()
        return self.memory[kind, key]

    def buckets(self) -> list[int]:
        """A number per sample, the same for samples of one shape."""
        numbers = {shape: i for i, shape in enumerate(dict.fromkeys(e.shape for e in self.entries))}
        return [numbers[entry.shape] for entry in self.entries]


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
    uninterrupted one would have seen, also on another number of processes. batch_size: samples of
    a step over all processes; micro_batch: of one pass of one process, None for its whole part.
    indices: the fingerprint of each index, by its name; without one, the newest of that name.
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
        indices: Mapping[str, str] | None = None,
        micro_batch: int | None = None,
    ):
        super().__init__()
        if num_workers < 0:
            raise ValueError(f"data.batches.num_workers must be at least 0, got {num_workers}.")
        self.cache, self.train, self.heldout = LatentCache(cache), train, heldout
        self.batch_size, self.num_steps, self.seed = batch_size, num_steps, seed
        self.num_workers, self.in_memory, self.micro_batch = num_workers, in_memory, micro_batch
        self.indices = dict(indices or {})
        self.start_step = 0

    def dataset(self, name: str) -> LatentDataset:
        entries = self.cache.read_index(name, self.indices.get(name))
        return LatentDataset(self.cache, entries, self.in_memory)

    @cached_property
    def train_set(self) -> LatentDataset:
        return self.dataset(self.train)

    @property
    def world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def num_passes(self) -> int:
        """Passes of a process per step; ValueError if batch_size cannot be divided so."""
        return passes_of_a_step(self.batch_size, self.world_size, self.micro_batch)

    def train_dataloader(self) -> DataLoader:
        order = CountedBatches(
            len(self.train_set), self.batch_size, self.seed, self.start_step, self.num_steps,
            self.rank, self.world_size, self.train_set.buckets(), self.micro_batch,
        )  # fmt: skip
        return self._loader(self.train_set, order)

    def val_dataloader(self) -> DataLoader | list:
        """Held-out batches of this process; all processes have as many, see OneShapeBatches."""
        if self.heldout is None:
            return []
        dataset = self.dataset(self.heldout)
        size = self.batch_size // (self.world_size * self.num_passes)
        batches = OneShapeBatches(dataset.buckets(), size, self.rank, self.world_size)
        return self._loader(dataset, batches)

    def _loader(self, dataset: LatentDataset, batches) -> DataLoader:
        return DataLoader(
            dataset, batch_sampler=batches, collate_fn=collate, num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        step = self.trainer.global_step if self.trainer else self.start_step
        index = self.indices.get(self.train)
        return {"step": step, "samples_per_step": self.batch_size, "index": index}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the very next sample; a warning if the data set is not the same any more.

        ValueError if a step would have another number of samples than before.
        """
        before = state_dict.get("samples_per_step", self.batch_size)
        if before != self.batch_size:
            raise ValueError(
                f"the run was trained with {before} samples a step, this has {self.batch_size}; "
                f"set batch_size={before}."
            )
        index, now = state_dict.get("index"), self.indices.get(self.train)
        if index and now and index != now:
            log.warning(
                "%s: clips, captions or settings have changed since the checkpoint; its order of "
                "samples is another from here on.", self.train,
            )  # fmt: skip
        self.start_step = state_dict["step"]


class OneShapeBatches(BatchSampler):
    """Every sample once, in order, in batches of one bucket each, dealt out to the ranks in turn.

    Every rank gets equally many, as networks divided over ranks need: where they do not suffice,
    the last ranks get the first batches once more, as `is_repeat` tells.
    """

    def __init__(self, buckets: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1):
        super().__init__(SequentialSampler(buckets), batch_size, drop_last=False)
        self.rank, self.world_size = rank, world_size
        groups: dict[int, list[int]] = {}
        for index, bucket in enumerate(buckets):
            groups.setdefault(bucket, []).append(index)
        self.batches = [
            group[i : i + batch_size]
            for group in groups.values()
            for i in range(0, len(group), batch_size)
        ]

    def is_repeat(self, number: int) -> bool:
        """Whether this rank's batch of that number is another rank's, too."""
        return number * self.world_size + self.rank >= len(self.batches)

    def __iter__(self):
        for number in range(len(self)):
            yield self.batches[(number * self.world_size + self.rank) % len(self.batches)]

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world_size)
