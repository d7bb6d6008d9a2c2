"""The order of training samples: a function of (seed, position), so that runs resume exactly and
any number of processes sees the same."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch.utils.data import Sampler

from pusa.rng import generator_for


class CountedBatches(Sampler[list[int]]):
    """Endless batches of sample indices, each sample once per epoch, from any step on.

    Samples come in a stream, epoch after epoch, each epoch in an order of its own. A step takes the
    next batch_size of them, every rank its part of those, in one or several passes: any number of
    processes and passes sees the same samples at the same step. With buckets (one number per
    sample, such as which shape it has) samples wait by bucket until one is full, so that a step is
    of one shape; none is dropped, a step may reach over the end of an epoch.

    pass_size: samples of one pass of one rank; None takes a rank's part at once.
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
        buckets: Sequence[int] | None = None,
        pass_size: int | None = None,
    ):
        if num_samples < 1:
            raise ValueError("the training set is empty; check its manifest and the cache.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.num_passes = passes_of_a_step(batch_size, world_size, pass_size)
        if buckets is not None and len(buckets) != num_samples:
            raise ValueError(f"{len(buckets)} buckets for {num_samples} samples; give one each.")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start_step, self.num_steps = start_step, num_steps
        self.rank, self.world_size = rank, world_size
        self.buckets = None if buckets is None or len(set(buckets)) == 1 else list(buckets)

    def __iter__(self) -> Iterator[list[int]]:
        steps = self._one_bucket() if self.buckets is None else self._by_bucket(self.buckets)
        count = None if self.num_steps is None else max(0, self.num_steps - self.start_step)
        size = self.batch_size // (self.world_size * self.num_passes)
        first = self.rank * self.num_passes * size
        for step in islice(steps, count):
            for start in range(first, first + self.num_passes * size, size):
                yield step[start : start + size]

    def _one_bucket(self) -> Iterator[list[int]]:
        """Samples of all ranks, step by step from start_step on; nothing before it is computed."""
        size = self.batch_size
        epoch, skipped = divmod(self.start_step * size, self.num_samples)
        stream = islice(self._stream(epoch), skipped, None)
        while True:
            yield list(islice(stream, size))

    def _by_bucket(self, buckets: Sequence[int]) -> Iterator[list[int]]:
        """The same from the first step on, which decides who waits: 10 million samples take a few
        seconds to count through on a resume."""
        size = self.batch_size
        waiting: dict[int, list[int]] = {}
        step = 0
        for index in self._stream(0):
            queue = waiting.setdefault(buckets[index], [])
            queue.append(index)
            if len(queue) == size:
                if step >= self.start_step:
                    yield queue
                step += 1
                del waiting[buckets[index]]

    def _stream(self, epoch: int) -> Iterator[int]:
        """Samples one after the other, from the start of an epoch on."""
        while True:
            generator = generator_for(self.seed, "data/order", epoch)
            yield from torch.randperm(self.num_samples, generator=generator).tolist()
            epoch += 1

    def __len__(self) -> int:
        if self.num_steps is None:
            raise TypeError("an endless order of batches has no length; give num_steps.")
        # Of the whole run: Lightning counts what came before a resume, too.
        return self.num_steps * self.num_passes


def passes_of_a_step(batch_size: int, world_size: int, pass_size: int | None) -> int:
    """How many passes a rank makes per step; ValueError if the step cannot be divided so."""
    if batch_size % world_size:
        raise ValueError(
            f"batch_size={batch_size} clips a step do not divide over {world_size} processes; use "
            f"a multiple of {world_size}."
        )
    share = batch_size // world_size
    size = share if pass_size is None else pass_size
    if size < 1 or share % size:
        raise ValueError(
            f"micro_batch={pass_size} does not divide the {share} clips that a process has of a "
            f"step (batch_size={batch_size} over {world_size} processes)."
        )
    return share // size
