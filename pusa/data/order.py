"""The order of training samples: a function of (seed, step, slot), so that runs resume exactly."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from pusa.rng import generator_for


class CountedBatches(Sampler[list[int]]):
    """Endless batches of sample indices, each sample once per epoch, from any step on.

    Position p = step * batch_size * world_size + rank * batch_size + slot belongs to epoch
    p // num_samples and takes entry p % num_samples of that epoch's permutation. So one process
    with batch 8 and two with batch 4 see the same samples at the same step.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        num_steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if num_samples < 1:
            raise ValueError("the training set is empty; check data.manifest and the cache.")
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}.")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start_step, self.num_steps = start_step, num_steps
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        step, epoch, order = self.start_step, -1, []
        while self.num_steps is None or step < self.num_steps:
            first = (step * self.world_size + self.rank) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    generator = generator_for(self.seed, "data/order", epoch)
                    order = torch.randperm(self.num_samples, generator=generator).tolist()
                batch.append(order[position % self.num_samples])
            yield batch
            step += 1

    def __len__(self) -> int:
        if self.num_steps is None:
            raise TypeError("an endless order of batches has no length; give num_steps.")
        return self.num_steps  # of the whole run: Lightning counts the steps before a resume, too
