"""One run: its folder, whether it may start or go on, and the fit itself."""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pusa.atomic import write_json
from pusa.training.callbacks import LAST, Checkpoints

log = logging.getLogger(__name__)
CONFIG = "config.json"
RESULTS = ("lora.safetensors", "model.safetensors", "vae")


@dataclass
class RunFolder:
    """`outputs/<name>`: config.json, last.ckpt, metrics/, samples/, and the result."""

    path: Path

    def __post_init__(self):
        self.path = Path(self.path)

    def result(self) -> Path | None:
        """The exported weights, if the run has ended."""
        return next((self.path / name for name in RESULTS if (self.path / name).exists()), None)

    def finished(self, recipe: Mapping, overwrite: bool) -> bool:
        """Whether this very recipe has been trained here to its end."""
        return not overwrite and self.result() is not None and self._recipe() == _plain(recipe)

    def open(
        self, recipe: Mapping, resume: str | None, overwrite: bool,
        differences: Callable[[dict, dict], list[str]],
    ) -> Path | None:  # fmt: skip
        """Claim the folder and return the checkpoint to go on from, if any.

        ValueError if the folder holds a run of another recipe, or a checkpoint is not there.
        """
        if resume not in (None, "auto", "never"):
            if not Path(resume).is_file():
                raise ValueError(
                    f"{resume}: no such checkpoint (resume); use auto or a .ckpt file."
                )
            self._claim(recipe)
            return Path(resume)
        if overwrite:
            self._clear()
        last = self.path / LAST
        has_work = last.is_file() or self.result() is not None
        old = self._recipe() if has_work else None
        if old is not None and (changed := differences(old, _plain(recipe))):
            shown = "\n  ".join(changed[:8] + (["..."] if len(changed) > 8 else []))
            raise ValueError(
                f"{self.path} holds a run with other settings:\n  {shown}\n"
                "Choose another name=, set overwrite=true, or give the old settings to go on."
            )
        self._claim(recipe)
        if resume == "auto" and last.is_file():
            log.info("going on from %s", last)
            return last
        return None

    def _claim(self, recipe: Mapping) -> None:
        """A result that is there belongs to what was trained before: it goes."""
        if (old := self.result()) is not None:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        write_json(self.path / CONFIG, _plain(recipe))

    def _recipe(self) -> dict | None:
        path = self.path / CONFIG
        return json.loads(path.read_text()) if path.is_file() else None

    def _clear(self) -> None:
        """Remove what a run writes, and nothing else that a user may have put there."""
        for name in (CONFIG, LAST, "metrics", "samples", "wandb", *RESULTS):
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)


def _plain(recipe: Mapping) -> dict:
    """As it will be read back from JSON."""
    return json.loads(json.dumps(recipe, default=str))


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    trainer: L.Trainer,
    folder: RunFolder,
    checkpoint: Path | None,
) -> None:
    """Train to the end, or to a signal: then exit code 130 and a checkpoint to go on from."""
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            "trainer.accumulate_grad_batches must be 1 for now: the order of samples is counted in "
            "steps; raise batch_size instead."
        )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        callbacks: list[L.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        interrupted = any(isinstance(c, Checkpoints) and c.interrupted for c in callbacks)
        stopped = interrupted and folder.result() is None
    except SIGTERMException:  # Lightning's own handler came first
        stopped = True
    if stopped:
        log.warning("stopped at step %d; the same command goes on from there.", trainer.global_step)
        sys.exit(130)
