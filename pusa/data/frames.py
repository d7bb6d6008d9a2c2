"""Decoded clips held in memory, for training the replica's codec on pixels."""

from functools import cached_property
from pathlib import Path

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pusa.data import clips, video
from pusa.data.order import CountedBatches


class FramesDataset(Dataset):
    """Clips as float frames (3, T, H, W) in [-1, 1]; kept as uint8."""

    def __init__(self, manifest: str | Path, num_frames: int, limit: int | None = None):
        listed = clips.read_manifest(manifest)[:limit]
        self.frames = [video.read_frames(clip.media, num_frames)[0] for clip in listed]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"frames": video.to_signed(self.frames[index])}


class FramesDataModule(L.LightningDataModule):
    """Counted batches {"frames": (B, 3, T, H, W)} of a manifest's first `limit` clips."""

    def __init__(
        self,
        manifest: str | Path,
        num_frames: int,
        batch_size: int,
        num_steps: int,
        limit: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.manifest, self.num_frames, self.limit = manifest, num_frames, limit
        self.batch_size, self.num_steps, self.seed = batch_size, num_steps, seed
        self.start_step = 0

    @cached_property
    def train_set(self) -> FramesDataset:
        return FramesDataset(self.manifest, self.num_frames, self.limit)

    def train_dataloader(self) -> DataLoader:
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        order = CountedBatches(
            len(self.train_set), self.batch_size, self.seed, self.start_step, self.num_steps,
            rank, world,
        )  # fmt: skip
        return DataLoader(self.train_set, batch_sampler=order)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.trainer.global_step if self.trainer else self.start_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.start_step = state_dict["step"]
