"""A running average of what trains (EMA), exported beside the last weights."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from pusa.training.strategy import own_part, shards_only

log = logging.getLogger(__name__)


class Averaged(L.Callback):
    """Keeps average = decay * average + (1 - decay) * weight, in float32, after every step.

    Only trainable tensors are averaged; under ZeRO-3 each process averages its own shards. The
    decay of the first steps is (1 + step) / (10 + step) where that is less, so that the start is
    forgotten. decay 0: nothing is kept.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay must be in [0, 1), got {decay}.")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """After a checkpoint has been restored and ZeRO-3 has divided what it divides."""
        if not self.decay:
            self._average = {}  # of a run that went on with one
            return
        parts = _parts(pl_module)
        restored, self._average = self._average, {}
        for name, part in parts.items():
            start = restored.get(name, part.detach())
            self._average[name] = start.to(part.device, torch.float32, copy=True)
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not self._average or step == self._last_step:  # in the middle of a step
            return
        self._last_step = step
        decay = min(self.decay, (1 + step) / (10 + step))
        parts = _parts(pl_module)
        for name, average in self._average.items():
            average.lerp_(parts[name].detach().float(), 1 - decay)

    @contextmanager
    def in_place(self, pl_module: Any) -> Iterator[None]:
        """Inside the block the model's trainable weights are the average."""
        with shards_only(pl_module.trainable().values()):
            parts = _parts(pl_module)
            own = {name: part.detach().clone() for name, part in parts.items()}
            try:
                for name, part in parts.items():
                    part.data.copy_(self._average[name])
                yield
            finally:
                for name, part in parts.items():
                    part.data.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._average = dict(state_dict["average"])


def _parts(pl_module: Any) -> dict[str, Tensor]:
    trainable: dict[str, nn.Parameter] = pl_module.trainable()
    return {name: own_part(parameter) for name, parameter in trainable.items()}
