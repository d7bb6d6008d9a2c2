"""Is the run well? Steps that are not finite are skipped and recorded; losses by noise level; how
far a step moves the weights."""

import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from pusa.atomic import write_json
from pusa.training.loggers import logs_step
from pusa.training.ranks import is_first
from pusa.training.strategy import ZeRO, ends_step, is_divided, own_part, sum_over_ranks
from pusa.weights.files import write_tensors

log = logging.getLogger(__name__)
LEVELS = 5  # bins of a frame's own sigma
OTHERS = 3  # bins of the mean sigma of the frames beside it
HISTOGRAM = 50  # bins of all sigmas drawn
SAMPLED = 16  # tensors that stand for all in the update's size
BAD_STEPS = "bad_steps"


def publish(trainer: L.Trainer, values: dict[str, float]) -> None:
    """Log values of the step that has just ended, once: what goes through `LightningModule.log` is
    written again with every later row."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step - 1)


class Health(L.Callback):
    """Skips a step whose gradients are not finite, on all processes alike, and records its batch.

    `bad_steps/step_00000123_rank_0.safetensors` holds latents, text, sigmas and indices for
    `pusa replay`. stop_after: so many such steps in a row end the run (ValueError). Logs
    train/grad_norm (before clipping), train/lr, train/skipped and train/update_ratio, |step| /
    |weights| over some of the trained tensors.
    """

    def __init__(self, folder: str | Path, stop_after: int = 10):
        if stop_after < 1:
            raise ValueError(f"callbacks.health.stop_after must be at least 1, got {stop_after}.")
        self.folder, self.stop_after = Path(folder) / BAD_STEPS, stop_after
        self.skipped = self.in_a_row = 0
        self._norm: float | None = None
        self._rate = 0.0
        self._before: dict[str, Tensor] = {}
        self._passes: list[Any] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._passes = []
        self._passes.append(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are whole here but under DeepSpeed; without one, Adam leaves a tensor be."""
        self._rate = float(optimizer.param_groups[0]["lr"])
        if logs_step(trainer, trainer.global_step + 1):
            self._before = {n: own_part(p).detach().clone() for n, p in _sampled(pl_module)}
        if isinstance(trainer.strategy, ZeRO):
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self._norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(self._norm):
            for parameter in pl_module.parameters():
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        norm = self._norm
        if isinstance(trainer.strategy, ZeRO):
            found = trainer.strategy.deepspeed_engine.get_global_grad_norm()
            norm = float("nan") if found is None else float(found)
        if norm is None or not norm < float("inf"):
            self._note(trainer, pl_module)
            seen = {}
        else:
            self.in_a_row = 0
            seen = {"train/grad_norm": norm} | self._update(pl_module)
        if logs_step(trainer, trainer.global_step):
            always = {"train/skipped": float(self.skipped), "train/lr": self._rate}
            publish(trainer, seen | always)
        self._before, self._passes = {}, []

    def _update(self, pl_module: Any) -> dict[str, float]:
        if not self._before:
            return {}
        sums = torch.zeros(2, dtype=torch.float64)
        for name, part in _sampled(pl_module):
            now, before = own_part(part).detach().double(), self._before[name].double()
            sums += torch.stack([(now - before).square().sum(), before.square().sum()]).cpu()
        if is_divided(pl_module):
            sums = sum_over_ranks(sums).cpu()
        step, weights = sums.sqrt().tolist()
        return {"train/update_ratio": step / weights} if weights > 0 else {}

    def _note(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.skipped += 1
        self.in_a_row += 1
        step = trainer.global_step - 1  # the one that has just been skipped
        for number, batch in enumerate(self._passes):
            self._record(trainer, pl_module, batch, step, number)
        log.error(
            "step %d: gradients are not finite; it is skipped (%d in a row). The batch is in %s.",
            step, self.in_a_row, self.folder,
        )  # fmt: skip
        if self.in_a_row >= self.stop_after:
            raise ValueError(
                f"{self.in_a_row} steps in a row had gradients that are not finite; the run is "
                f"stopped. `pusa replay {self.folder.parent}` shows where it begins; lower the "
                "learning rate (module.optimizer.lr), or set trainer.gradient_clip_val."
            )

    def _record(self, trainer: L.Trainer, pl_module: Any, batch: Any, step: int, number: int):
        name = f"step_{step:08d}_rank_{trainer.global_rank}_pass_{number}.safetensors"
        sigma, noise, text = pl_module.draw(batch, step)
        tensors = {
            "latents": batch.latents, "sigma": sigma, "noise": noise, "index": batch.index,
            "text": text.embedding, "mask": text.mask,
        }  # fmt: skip
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_tensors(self.folder / name, tensors, {"step": str(step)})

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _sampled(pl_module: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Some trainable tensors, evenly over the model."""
    every = list(pl_module.trainable().items())
    return every[:: max(1, len(every) // SAMPLED)]


class LossMap(L.Callback):
    """Mean loss by a frame's own sigma, and by its own and the mean sigma of the frames beside it.

    Logs train/loss_by_sigma/LOW-HIGH every `every` steps (over those steps), to wandb also a
    histogram of the sigmas that were drawn, and keeps the whole table with counts in loss_map.json:
    what the vector of timesteps does to the loss.
    """

    def __init__(self, folder: str | Path, every: int = 50):
        if every < 1:
            raise ValueError(f"callbacks.loss_map.every must be at least 1, got {every}.")
        self.path, self.every = Path(folder) / "loss_map.json", every
        self._window = torch.zeros(2, LEVELS, OTHERS, dtype=torch.float64)  # sums, counts
        self._total = self._window.clone()  # of this process, over the whole run
        self._drawn = torch.zeros(HISTOGRAM, dtype=torch.float64)  # sigmas of the window

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.last_step is None:
            return
        sigma, errors = (value.detach().cpu() for value in pl_module.last_step)
        finite = torch.isfinite(errors)
        table = tabulate(sigma, torch.where(finite, errors, 0), finite & (sigma > 0))
        self._window += table
        self._total += table
        self._drawn += torch.histc(sigma.float(), HISTOGRAM, 0, 1)
        if ends_step(trainer, batch_idx) and trainer.global_step % self.every == 0:
            self._publish(trainer)

    def _publish(self, trainer: L.Trainer) -> None:
        window, total = sum_over_ranks(self._window).cpu(), sum_over_ranks(self._total).cpu()
        self._window = torch.zeros_like(self._window)
        sums, counts = window.sum(2)
        means = {
            f"train/loss_by_sigma/{i / LEVELS:.1f}-{(i + 1) / LEVELS:.1f}": float(total / count)
            for i, (total, count) in enumerate(zip(sums, counts, strict=True))
            if count > 0
        }
        publish(trainer, means)
        drawn = sum_over_ranks(self._drawn).cpu()
        self._drawn = torch.zeros_like(self._drawn)
        edges = torch.linspace(0, 1, HISTOGRAM + 1).numpy()
        for logger in (one for one in trainer.loggers if isinstance(one, WandbLogger)):
            import wandb  # a second of it, which other runs do not need

            shown: Any = wandb.Histogram(np_histogram=(drawn.long().numpy(), edges))
            logger.log_metrics({"train/sigmas": shown}, step=trainer.global_step - 1)
        if trainer.is_global_zero:
            write_json(self.path, describe(total, trainer.global_step))

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of all processes; whoever goes on gives them to the first."""
        return {
            "window": sum_over_ranks(self._window).cpu().clone(),
            "total": sum_over_ranks(self._total).cpu().clone(),
            "drawn": sum_over_ranks(self._drawn).cpu().clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        share = float(is_first())
        names = ("window", "total", "drawn")
        self._window, self._total, self._drawn = (share * state_dict[name] for name in names)


def tabulate(sigma: Tensor, errors: Tensor, counted: Tensor) -> Tensor:
    """Sums of errors and counts by (own sigma, mean sigma of the neighbours): (2, LEVELS, OTHERS).

    sigma, errors, counted: (B, F). Of a one-frame clip the neighbour is the frame itself.
    """
    sides = torch.nn.functional.pad(sigma, (1, 1), value=float("nan"))
    beside = torch.stack([sides[:, :-2], sides[:, 2:]]).nanmean(0)
    beside = torch.where(beside.isnan(), sigma, beside)
    own_bin = (sigma * LEVELS).long().clamp(0, LEVELS - 1)
    cell = own_bin * OTHERS + (beside * OTHERS).long().clamp(0, OTHERS - 1)
    table = torch.zeros(2, LEVELS * OTHERS, dtype=torch.float64)
    table[0].index_add_(0, cell[counted], errors[counted].double())
    table[1].index_add_(0, cell[counted], torch.ones_like(errors[counted].double()))
    return table.view(2, LEVELS, OTHERS)


def describe(total: Tensor, step: int) -> dict:
    """The table as JSON: rows by own sigma, columns by the neighbours' mean sigma."""
    sums, counts = total
    means = (sums / counts).tolist()
    return {
        "step": step,
        "own_sigma": [[i / LEVELS, (i + 1) / LEVELS] for i in range(LEVELS)],
        "neighbours_mean_sigma": [[i / OTHERS, (i + 1) / OTHERS] for i in range(OTHERS)],
        "loss": [[None if value != value else value for value in row] for row in means],
        "frames": counts.long().tolist(),
    }
