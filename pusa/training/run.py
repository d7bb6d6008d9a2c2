"""One run: its folder, whether it may start or go on, and the fit itself."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pusa.atomic import write_json, write_text
from pusa.training.averaging import Averaged
from pusa.training.checkpoints import (
    FOLDER,
    STATE,
    Checkpoints,
    Saved,
    check_room,
    come_back,
    list_saved,
    newest_sound,
    read_saved,
)
from pusa.training.strategy import ZeRO

log = logging.getLogger(__name__)
CONFIG, JOB = "config.json", "slurm_job"
RESULTS = ("lora.safetensors", "model.safetensors", "vae")
WRITTEN = (
    CONFIG, JOB, FOLDER, "metrics", "samples", "snapshots", "wandb", "wandb_run", "bad_steps",
    "ema", "loss_map.json", "on_track.png", "environment.json", "memory.json", "lora.doctor.json",
    *RESULTS,
)  # fmt: skip


@dataclass
class RunFolder:
    """`outputs/<name>`: config.json, checkpoints/, metrics/, samples/, and the result."""

    path: Path

    def __post_init__(self):
        self.path = Path(self.path)

    def result(self) -> Path | None:
        """The exported weights, if the run has ended."""
        return next((self.path / name for name in RESULTS if (self.path / name).exists()), None)

    def finished(self, recipe: Mapping, overwrite: bool) -> bool:
        """Whether this very recipe has been trained here to its end."""
        return not overwrite and self.result() is not None and self._recipe() == _plain(recipe)

    def came_back(self) -> bool:
        """Whether SLURM starts a job again that has begun this run: what it was told to overwrite
        or to go back to, it has done."""
        path = self.path / JOB
        again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        return again and path.is_file() and path.read_text() == os.environ.get("SLURM_JOB_ID")

    def open(
        self, recipe: Mapping, resume: str | None, overwrite: bool,
        differences: Callable[[dict, dict], list[str]], allowed: Sequence[str] = (),
    ) -> Saved | None:  # fmt: skip
        """Claim the folder and return the checkpoint to go on from, if any.

        resume: "auto", "never", or a checkpoint's folder. allowed: keys of the configuration that
        may differ from the run that is there. ValueError if it holds a run of another recipe, or a
        checkpoint is not there or damaged.
        """
        if resume not in (None, "auto", "never"):
            saved = _named(Path(resume))
            self._compare(saved.folder.parent.parent, recipe, differences, allowed)
            for later in (one for one in list_saved(self.path) if one.step > saved.step):
                log.warning("%s is of a run that is left here: set aside.", later.folder)
                aside = later.folder.with_name(f"{later.folder.name}.left")
                shutil.rmtree(aside, ignore_errors=True)
                later.folder.rename(aside)
            self._claim(recipe)
            return saved
        if overwrite:
            self._clear()
        if (self.path / FOLDER).is_dir() or self.result() is not None:
            self._compare(self.path, recipe, differences, allowed)
        saved = newest_sound(self.path) if resume == "auto" else None
        self._claim(recipe)
        if saved is not None:
            log.info("going on from %s", saved.folder)
        return saved

    def _compare(
        self, run: Path, recipe: Mapping, differences: Callable[[dict, dict], list[str]],
        allowed: Sequence[str],
    ) -> None:  # fmt: skip
        """ValueError that shows what differs from a run's settings and is not allowed to."""
        old = RunFolder(run)._recipe()
        if old is None:
            return
        changed = differences(old, _plain(recipe))
        fine = [line for line in changed if _is_allowed(line.split(":")[0], allowed)]
        for line in fine:
            log.warning("goes on with a changed setting: %s", line)
        refused = [line for line in changed if line not in fine]
        if refused:
            shown = "\n  ".join(refused[:8] + (["..."] if len(refused) > 8 else []))
            keys = ",".join(line.split(":")[0] for line in refused)
            raise ValueError(
                f"{run} holds a run with other settings:\n  {shown}\nChoose another name=, set "
                "overwrite=true, give the old settings to go on, or allow the change key by key: "
                f"'allow=[{keys}]'."
            )

    def _claim(self, recipe: Mapping) -> None:
        """A result that is there belongs to what was trained before: it goes."""
        if (old := self.result()) is not None:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        write_json(self.path / CONFIG, _plain(recipe))
        if job := os.environ.get("SLURM_JOB_ID"):
            write_text(self.path / JOB, job)

    def _recipe(self) -> dict | None:
        path = self.path / CONFIG
        return json.loads(path.read_text()) if path.is_file() else None

    def _clear(self) -> None:
        """Remove what a run writes, and nothing else that a user may have put there."""
        for name in WRITTEN:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)


def _named(path: Path) -> Saved:
    """The checkpoint that a user names, by its folder or its state."""
    folder = path.parent if path.name == STATE else path
    if not (folder / STATE).exists():
        raise ValueError(
            f"{path}: no such checkpoint (resume); use auto, never, or a folder like "
            f"outputs/NAME/{FOLDER}/step_00000100."
        )
    saved = read_saved(folder)
    if fault := saved.fault():
        raise ValueError(f"{path}: the checkpoint is damaged: {fault}; choose another.")
    return saved


def _is_allowed(key: str, allowed: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _plain(recipe: Mapping) -> dict:
    """As it will be read back from JSON."""
    return json.loads(json.dumps(recipe, default=str))


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    trainer: L.Trainer,
    folder: RunFolder,
    saved: Saved | None,
) -> None:
    """Train to the end, or to a signal: then exit code 130 and a checkpoint to go on from."""
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            "trainer.accumulate_grad_batches follows from batch_size, micro_batch and the number "
            "of processes; set micro_batch."
        )
    data.trainer = trainer  # it divides a step over the trainer's processes
    passes = trainer.accumulate_grad_batches = getattr(data, "num_passes", 1)
    every = trainer.val_check_interval
    if isinstance(every, int):  # ours are steps, Lightning's passes
        trainer.val_check_interval = every * passes
    saver = next((c for c in _callbacks(trainer) if isinstance(c, Checkpoints)), None)
    if saver is not None and trainer.is_global_zero:
        size = sum(p.numel() for p in module.parameters() if p.requires_grad)
        check_room(folder.path, size, saver.num_kept, _num_copies(trainer))
    if saved is not None:
        _check_layout(saved, trainer)
    state = None if saved is None else saved.state
    try:
        trainer.fit(module, datamodule=data, ckpt_path=state, weights_only=True)
        signalled = 0 if saver is None else saver.interrupted
        signalled = signalled if trainer.global_step < trainer.max_steps else 0
    except SIGTERMException:  # Lightning's own handler came first
        signalled = 1
    if signalled:
        log.warning("stopped at step %d; the same command goes on from there.", trainer.global_step)
        if "SLURM_JOB_ID" in os.environ:
            come_back(trainer.is_global_zero, asked=signalled == 2)
        sys.exit(130)


def _callbacks(trainer: Any) -> list[L.Callback]:
    return trainer.callbacks


def _num_copies(trainer: Any) -> int:
    """Of what trains, in a checkpoint: the values, Adam's two moments, and what adds to them."""
    masters = isinstance(trainer.strategy, ZeRO) and trainer.strategy.stage < 3
    averages = sum(isinstance(c, Averaged) and c.decay > 0 for c in _callbacks(trainer))
    return 3 + masters + averages


def _check_layout(saved: Saved, trainer: L.Trainer) -> None:
    """ValueError for a checkpoint that this strategy cannot read."""
    divided = isinstance(trainer.strategy, ZeRO)
    if saved.state.is_dir() != divided:
        wrote = "a ZeRO strategy" if saved.state.is_dir() else "strategy=single or ddp"
        raise ValueError(f"{saved.folder}: was written by {wrote}; go on with one of those.")
    if divided and saved.processes != trainer.world_size:
        raise ValueError(
            f"{saved.folder}: ZeRO divided it over {saved.processes} processes, there are "
            f"{trainer.world_size}; go on with as many (trainer.devices, trainer.num_nodes)."
        )
