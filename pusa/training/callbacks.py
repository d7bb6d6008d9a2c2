"""What happens around the training step: checkpoints, stops, exports, throughput, grids."""

import errno
import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from pusa.data import video
from pusa.diffusion.conditioning import Task
from pusa.models.base import VideoVAE
from pusa.pipelines.generate import Request, Sampler, decode_latents, sample_latents
from pusa.training.module import VTAModule
from pusa.types import Text

log = logging.getLogger(__name__)
LAST = "last.ckpt"


class Checkpoints(L.Callback):
    """Saves `last.ckpt` (trainable tensors, optimizer, loops, data position) every `every` steps.

    Ctrl-C and SIGTERM finish the running step, save, and end the run; a second signal ends at once.
    The file is written under a temporary name and renamed.
    """

    def __init__(self, folder: str | Path, every: int = 500):
        if every < 1:
            raise ValueError(f"callbacks.checkpoints.every must be at least 1, got {every}.")
        self.path, self.every = Path(folder) / LAST, every
        self.interrupted: int | None = None
        self._previous: dict[int, Any] = {}
        self._saved_step = -1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._stop)
            except ValueError:  # not in the main thread: the caller handles signals
                log.debug("signals are left to the caller.")

    def _stop(self, number: int, frame) -> None:
        if self.interrupted is not None:
            raise KeyboardInterrupt
        self.interrupted = number
        log.warning("stopping after this step (again to end at once); saving %s.", self.path)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self.interrupted is not None:
            trainer.should_stop = True
            self.save(trainer)
        elif trainer.global_step % self.every == 0:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        if self._saved_step == trainer.global_step:
            return
        self._saved_step = trainer.global_step
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                os.replace(partial, self.path)
        except RuntimeError as error:  # torch's writer hides the system's error
            if "writ" not in str(error):
                raise
            raise OSError(errno.ENOSPC, "could not be written whole", str(self.path)) from error
        finally:
            if trainer.is_global_zero and partial.is_file():
                partial.unlink()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class Exportable(Protocol):
    """A module that can write what it trained."""

    def export(self, folder: Path, recipe: Mapping) -> Path: ...


class Export(L.Callback):
    """Writes the trained weights when the run reaches its last step, through `module.export`.

    recipe: the run's configuration, kept in the file's metadata.
    """

    def __init__(self, folder: str | Path, recipe: Mapping):
        self.folder, self.recipe = Path(folder), dict(recipe)

    def on_train_end(self, trainer: L.Trainer, pl_module) -> None:
        if trainer.is_global_zero and trainer.global_step >= trainer.max_steps:
            recipe = {"steps": trainer.global_step, "config": self.recipe}
            log.info("wrote %s", cast(Exportable, pl_module).export(self.folder, recipe))


class Progress(TQDMProgressBar):
    """One bar over all steps, with the loss and clips per second."""

    def __init__(self, refresh_rate: int = 10):
        super().__init__(refresh_rate=refresh_rate)
        self._mark: tuple[float, int] | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step % self.refresh_rate == 0:
            now = time.perf_counter()
            if self._mark is not None:
                steps = trainer.global_step - self._mark[1]
                size = len(batch["frames"] if isinstance(batch, dict) else batch.index)
                rate = steps * size * trainer.world_size / (now - self._mark[0])
                pl_module.log("train/clips_per_s", rate, prog_bar=True, batch_size=1)
            self._mark = (now, trainer.global_step)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer, pl_module) -> None:
        super().on_validation_end(trainer, pl_module)
        self._mark = None  # validation time is not training time

    def get_metrics(self, trainer, pl_module) -> dict:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        short = {"train/loss": "loss", "train/clips_per_s": "clips/s"}
        return {short.get(name, name): value for name, value in metrics.items() if "@" not in name}


class SampleGrid(L.Callback):
    """Every `every` steps, samples a task for a few held-out clips and writes one picture.

    Rows alternate truth and sample, columns are frames over time; `samples/step_000500.png`.
    """

    def __init__(
        self, folder: str | Path, vae: VideoVAE, task: Task, sampler: Sampler,
        every: int = 500, num_clips: int = 4,
    ):  # fmt: skip
        self.folder, self.vae, self.task, self.sampler = Path(folder), vae, task, sampler
        self.every, self.num_clips = every, num_clips

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step and step % self.every == 0 and trainer.is_global_zero:
            path = self.folder / f"step_{step:06d}.png"
            grid = self.grid(pl_module, trainer.datamodule.val_dataloader())
            video.write_image(path, grid)
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image("samples", [str(path)], step=step)

    @torch.no_grad()
    def grid(self, module: VTAModule, loader) -> Tensor:
        """uint8 picture (3, H', W')."""
        batch = next(iter(loader))
        clean = batch.latents[: self.num_clips].to(module.device)
        requests = [
            Request(Text(e[None], m[None]), seed=int(i), purpose="grid")
            for e, m, i in zip(batch.text.embedding, batch.text.mask, batch.index, strict=True)
        ][: self.num_clips]
        media = [clean[:, :, :1]] * self.task.num_media
        module.backbone.eval()
        sampled = sample_latents(
            module.backbone, module.flow, self.sampler, self.task, requests, media, clean.shape[1:]
        )
        module.backbone.train()
        rows = []
        for pair in zip(
            decode_latents(self.vae, clean), decode_latents(self.vae, sampled), strict=True
        ):
            for frames in pair:
                shown = frames[:: max(1, (len(frames) - 1) // 4)]
                rows.append(torch.cat(list(shown), dim=-1))
        return torch.cat(rows, dim=-2)
