"""Loggers: CSV always; wandb offline, or online when the user is logged in. A run that is resumed
goes on in the same file and the same wandb run."""

import csv
import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor

from pusa.atomic import write_text
from pusa.training.strategy import sum_over_ranks

WANDB_MODES = ("auto", "online", "offline", "off")
WANDB_RUN = "wandb_run"


class Metrics(CSVLogger):
    """`metrics/metrics.csv` of a whole run: rows before start_step are kept, later ones dropped,
    since a run that goes on from there makes them once more."""

    def __init__(self, folder: str | Path, start_step: int):
        super().__init__(folder, name="metrics", version="")
        self.start_step = start_step

    @property
    def experiment(self) -> Any:
        if self._experiment is None and rank_zero_only.rank == 0:
            path = Path(self.log_dir) / "metrics.csv"
            before = path.with_suffix(".before")  # Lightning's writer begins with an empty folder
            if path.is_file():
                path.replace(before)
            rows = read_metrics(before) if before.is_file() else []
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*exists and is not empty.*")
                writer = super().experiment
            writer.metrics = [row for row in rows if float(row["step"]) < self.start_step]
            writer.save()
            before.unlink(missing_ok=True)
        return super().experiment


def read_metrics(path: str | Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv, without what was not logged in a row."""
    with Path(path).open(newline="") as file:
        return [
            {k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)
        ]


def logs_step(trainer: L.Trainer, step: int) -> bool:
    """Whether rows are written after so many steps; log_every_n_steps=0: never."""
    every: int = cast(Any, trainer).log_every_n_steps
    return every > 0 and step % every == 0


def log_mean(module: L.LightningModule, name: str, value: Tensor) -> None:
    """Log the running step's value, the mean over processes. Every process calls it.

    Lightning writes what `module.log` is given after the step's callbacks, so after its checkpoint:
    a run that is killed in between would go on without the row.
    """
    trainer: Any = module.trainer
    mean = sum_over_ranks(value) / trainer.world_size
    module.log(name, mean, prog_bar=True, logger=False, batch_size=1)
    if logs_step(trainer, trainer.global_step + 1):
        for logger in trainer.loggers:
            logger.log_metrics({name: float(mean)}, step=trainer.global_step)


def build_loggers(
    folder: str | Path, project: str, name: str, wandb: str = "auto",
    config: Mapping | None = None, start_step: int = 0,
) -> list[Logger]:  # fmt: skip
    """CSV in `metrics/metrics.csv`, and wandb as asked.

    wandb: "auto" is online if an API key is at hand (WANDB_API_KEY or ~/.netrc) and offline
    otherwise; "off" leaves it out. start_step: where the run goes on. ValueError for another word.
    """
    if wandb not in WANDB_MODES:
        raise ValueError(f"logger.wandb={wandb!r} is unknown; use one of {', '.join(WANDB_MODES)}.")
    loggers: list[Logger] = [Metrics(folder, start_step)]
    if wandb == "off":
        return loggers
    offline = wandb == "offline" or (wandb == "auto" and not wandb_key_at_hand())
    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(
        name=name, project=project, save_dir=str(folder), offline=offline,
        id=wandb_id(Path(folder), start_step), resume="allow",
    )  # fmt: skip
    logger.log_hyperparams(dict(config or {}))
    return [*loggers, logger]


def close_wandb() -> None:
    """End this process's wandb run: the next logger would write into it."""
    import wandb

    if wandb.run is not None:
        wandb.finish()


def wandb_id(folder: Path, start_step: int) -> str:
    """The run's own name at wandb: a new one for a new run, the same when it goes on."""
    path = folder / WANDB_RUN
    if rank_zero_only.rank == 0 and not (start_step and path.is_file()):
        write_text(path, uuid.uuid4().hex[:12])
    return path.read_text() if path.is_file() else uuid.uuid4().hex[:12]


def wandb_key_at_hand() -> bool:
    """Whether wandb could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "api.wandb.ai" in netrc.read_text()
    except OSError:
        return False
