"""Weights that live in main memory and come to the device block by block, each while the block
before it is at work. Knows nothing of what a block does."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn


class Home:
    """Where a network's weights are at home, in main memory. They go to a device as copies, and
    coming back is nothing but letting go of those: what was changed there is lost."""

    def __init__(self, network: nn.Module):
        blocks = cast(nn.ModuleList, network.blocks)
        self.blocks = [list(_tensors(block)) for block in blocks]
        inside = {id(tensor) for block in self.blocks for tensor in block}
        self.rest = [tensor for tensor in _tensors(network) if id(tensor) not in inside]
        self._data = {
            id(tensor): tensor.data for tensor in chain(self.rest, *self.blocks)
        }  # the network holds the tensors, so that no other can have their ids

    def source(self, tensor: Tensor) -> Tensor:
        return self._data[id(tensor)]

    def take_back(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.data = self._data[id(tensor)]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class Arrival:
    """The guard of a network's blocks, while they come: `with guard(i):` around the i-th.

    The copy of block i + 1 is made on a stream of its own while block i is at work, in memory that
    was free before block i began. leaving: the arrival of another network, whose block i + 1 gives
    up its place for it. stays: the network is whole at the end of the pass, and the guard takes
    itself away; else a block goes home when the next but one begins, and never more than two are
    there. What a pass leaves out (a step cache) or breaks off is made good in the next one.
    """

    def __init__(
        self, network: nn.Module, home: Home, device: torch.device,
        leaving: "Arrival | None" = None, stays: bool = True,
    ) -> None:  # fmt: skip
        self.network, self.home, self.device = network, home, device
        self.leaving, self.stays = leaving, stays
        self.here: dict[int, Any] = {}  # block -> what the device waits for before it, or None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        if leaving is not None:
            leaving.begin_leaving()
            if not stays:  # and never takes all of its places
                leaving.send_home()
        for tensor in home.rest:
            tensor.data = home.source(tensor).to(device, copy=True)
        cast(Any, network).block_guard = self

    @property
    def whole(self) -> bool:
        """Whether all of the network is on the device, to stay."""
        return self.stays and len(self.here) == len(self.home.blocks)

    def send_home(self) -> None:
        """All of the network; it can arrive again."""
        self.begin_leaving()
        for index in list(self.here):
            self.give_up(index)

    def begin_leaving(self) -> None:
        """What is in no block goes home, and no guard brings blocks any more."""
        if self.leaving is not None:  # of a pass that was broken off
            self.leaving.send_home()
        self.home.take_back(self.home.rest)
        cast(Any, self.network).block_guard = nullcontext

    def give_up(self, index: int) -> None:
        """A block goes home, if it is there."""
        if index in self.here:
            self._wait(index)  # its place must not be free before the copy into it is done
            del self.here[index]
            self.home.take_back(self.home.blocks[index])

    @contextmanager
    def __call__(self, index: int) -> Iterator[None]:
        if index not in self.here:
            self._copy(self._places(index), index, None)
        following = (index + 1) % len(self.home.blocks)
        if not self.stays:
            for other in [i for i in self.here if i not in (index, following)]:
                self.give_up(other)
        self._wait(index)
        # Room first, in what was free before this block's work was given to the device, and the
        # copy after it: from memory that is not page-locked, a copy holds up who asks for it.
        places, free = None, None
        if following not in self.here:
            places, free = self._places(following), self._now()
        yield
        if places is not None:
            self._copy(places, following, free)
        if self.whole:
            for i in self.here:
                self._wait(i)
            cast(Any, self.network).block_guard, self.leaving = nullcontext, None

    def _places(self, index: int) -> list[Tensor]:
        """Memory for a block: what the other network's takes, if there is another."""
        if self.leaving is not None:
            self.leaving.give_up(index)
        return [
            torch.empty_like(self.home.source(tensor), device=self.device)
            for tensor in self.home.blocks[index]
        ]

    def _copy(self, places: list[Tensor], index: int, free: Any) -> None:
        """free: when the places may be written to, None for now."""
        tensors, done = self.home.blocks[index], None
        aside = nullcontext()
        if self._copies is not None:
            self._copies.wait_event(free or self._now())
            aside = torch.cuda.stream(self._copies)
        with aside:
            for tensor, place in zip(tensors, places, strict=True):
                place.copy_(self.home.source(tensor), non_blocking=True)
            if self._copies is not None:
                done = self._copies.record_event()
        for tensor, place in zip(tensors, places, strict=True):
            tensor.data = place
        self.here[index] = done

    def _now(self) -> Any:
        if self._copies is None:
            return None
        return torch.cuda.current_stream(self.device).record_event()

    def _wait(self, index: int) -> None:
        if (done := self.here[index]) is not None:
            torch.cuda.current_stream(self.device).wait_event(done)
            self.here[index] = None
