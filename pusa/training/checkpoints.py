"""Checkpoints of a run: written whole or not at all, verified before use, kept within bounds.

`checkpoints/step_00000100/` holds `state` (a file, or DeepSpeed's folder with a share of each
process) and `whole.json`, which is written last and lists sizes and digests: without it there is no
checkpoint.
"""

import errno
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from pusa.atomic import free_bytes, size_text, write_json
from pusa.data.hashing import file_digest
from pusa.training.strategy import ends_step, max_over_ranks

log = logging.getLogger(__name__)
FOLDER, STATE, WHOLE = "checkpoints", "state", "whole.json"
FLOAT32 = 4
STOPS = {  # 2: and come back, under SLURM; USR2 is what submitit asks SLURM to send
    signal.SIGINT: 1, signal.SIGTERM: 1, signal.SIGUSR1: 2, signal.SIGUSR2: 2,
}  # fmt: skip
PATIENCE = 60  # seconds for SLURM to end the processes of a job that it has put back


@dataclass(frozen=True)
class Saved:
    """One checkpoint: its folder, the steps done, over how many processes, and the monitored value
    if there was one."""

    folder: Path
    step: int
    processes: int = 1
    value: float | None = None

    @property
    def state(self) -> Path:
        return self.folder / STATE

    def fault(self) -> str | None:
        """What is wrong with its files, in words; None if every byte is as it was written."""
        try:
            files: Mapping[str, Any] = json.loads((self.folder / WHOLE).read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{WHOLE} cannot be read ({error})"
        for name, (size, digest) in files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size or file_digest(path) != digest:
                return f"{name} is not what was written"
        return None


def list_saved(run: Path) -> list[Saved]:
    """The checkpoints of a run's folder, newest first; they may be damaged."""
    found = []
    for folder in (run / FOLDER).glob("step_*"):
        if re.fullmatch(r"step_\d+", folder.name) and (folder / WHOLE).is_file():
            found.append(read_saved(folder))
    return sorted(found, key=lambda saved: -saved.step)


def read_saved(folder: Path) -> Saved:
    """What its `whole.json` says, as far as that can be read."""
    step = int(folder.name[5:]) if re.fullmatch(r"step_\d+", folder.name) else 0
    try:
        said = json.loads((folder / WHOLE).read_text())
        return Saved(folder, said["step"], said["processes"], said["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return Saved(folder, step)


def newest_sound(run: Path) -> Saved | None:
    """The newest checkpoint whose files are as they were written; None if there never was one.

    A damaged one is set aside as step_N.damaged, loudly. ValueError if all are damaged.
    """
    saved = list_saved(run)
    for one in saved:
        fault = one.fault()
        if fault is None:
            return one
        aside = one.folder.with_name(f"{one.folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        one.folder.rename(aside)
        log.error("%s is damaged: %s. Going back to the one before.", one.folder, fault)
    if saved:
        raise ValueError(
            f"{run / FOLDER}: every checkpoint is damaged; resume=never overwrite=true trains anew."
        )
    return None


def check_room(folder: Path, num_trainable: int, num_kept: int, num_copies: int = 3) -> None:
    """Say how large checkpoints will be; OSError if the disk cannot hold them.

    num_copies: float32 numbers that a checkpoint has of each trainable one: itself, Adam's moments.
    """
    one = FLOAT32 * num_copies * num_trainable
    needed = one * (num_kept + 1) + 2 * num_trainable  # one more while it is written; the export
    free = free_bytes(folder)
    log.info(
        "%s trainable parameters: checkpoints of %s, at most %d of them; %s are free.",
        f"{num_trainable:,}", size_text(one), num_kept + 1, size_text(free),
    )  # fmt: skip
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"needs {size_text(needed)} for checkpoints, {size_text(free)} are free",
            str(folder),
        )  # fmt: skip


class Checkpoints(L.Callback):
    """Saves trainable tensors, optimizer, loops and data position every `every` steps.

    keep_last: how many are kept; the best one by `monitor` (a logged held-out value, the smaller
    the better; None: no best) is kept beside them. Ctrl-C and SIGTERM finish the running step on
    all processes, save, and end the run; a second Ctrl-C ends at once. Under SLURM, SIGUSR1 and
    SIGUSR2 do as SIGTERM and put the job back into the queue.
    """

    def __init__(
        self, folder: str | Path, every: int = 500, keep_last: int = 2, monitor: str | None = None
    ):
        for name, value in (("every", every), ("keep_last", keep_last)):
            if value < 1:
                raise ValueError(f"callbacks.checkpoints.{name} must be at least 1, got {value}.")
        self.run, self.every, self.keep_last, self.monitor = Path(folder), every, keep_last, monitor
        self.interrupted = 0  # 1: stop, 2: stop and come back
        self._signals = 0
        self._previous: dict[int, Any] = {}
        self._saved_step = -1
        self._best = math.inf
        self._value: tuple[int, float] | None = None  # step and monitored value

    @property
    def num_kept(self) -> int:
        return self.keep_last + (self.monitor is not None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not before: Lightning's own SIGTERM handler comes in between, and in it processes wait
        for one another, forever if only one of them was meant."""
        for number in STOPS:
            if STOPS[number] == 2 and "SLURM_JOB_ID" not in os.environ:
                continue
            try:
                self._previous[number] = signal.signal(number, self._stop)
            except ValueError:  # not in the main thread: the caller handles signals
                log.debug("signals are left to the caller.")

    def _stop(self, number: int, frame) -> None:
        if self._signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signals = max(self._signals, STOPS[signal.Signals(number)])
        log.warning("%s: stopping after this step, saving.", signal.Signals(number).name)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not ends_step(trainer, batch_idx):
            return
        # All processes stop after the same step, whoever got the signal.
        self.interrupted = int(max_over_ranks(torch.tensor(self._signals)))
        if self.interrupted:
            trainer.should_stop = True
            if not _validates_now(trainer, batch_idx):
                trainer.limit_val_batches = 0  # Lightning validates before it stops
            self.save(trainer)
        elif trainer.global_step % self.every == 0 and not _validates_now(trainer, batch_idx):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Held-out curves come before the checkpoint of their step, or a resume would lose them."""
        if trainer.sanity_checking:
            return
        value = self._monitored(trainer)
        self._value = None if value is None else (trainer.global_step, value)
        best = value is not None and value < self._best
        if best:
            self._best = float(value or 0.0)
        if self.interrupted or trainer.global_step % self.every == 0 or best:
            self.save(trainer, again=bool(self.interrupted))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def _monitored(self, trainer: L.Trainer) -> float | None:
        if self.monitor is None:
            return None
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(map(str, trainer.callback_metrics)))
            raise ValueError(f"callbacks.checkpoints.monitor={self.monitor!r}: there is {known}.")
        value = float(trainer.callback_metrics[self.monitor])
        return value if math.isfinite(value) else None

    def state_dict(self) -> dict[str, float]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._best = state_dict["best"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Lightning counts passes, and a step may take another number of them than before."""
        step = checkpoint["global_step"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        more = step * trainer.accumulate_grad_batches - progress["total"]["processed"]
        for counts in (progress["total"], progress["current"]):
            counts.update({name: count + more for name, count in counts.items()})

    def save(self, trainer: L.Trainer, again: bool = False) -> None:
        """Write the checkpoint of this step, then drop old ones. Every process calls it.

        again: also if that step has one; it is replaced.
        """
        step = trainer.global_step
        if self._saved_step == step and not again:
            return
        self._saved_step = step
        folder = self.run / FOLDER / f"step_{step:08d}"
        partial = _unfinished(folder)
        first = trainer.is_global_zero
        try:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            trainer.strategy.barrier()
            trainer.save_checkpoint(partial / STATE)
            trainer.strategy.barrier()
            fault = self._finish(trainer, partial, folder) if first else None
            if fault := trainer.strategy.broadcast(fault):  # all end, or others would wait for one
                raise OSError(
                    errno.EIO, f"the checkpoint could not be saved ({fault})", str(folder)
                )
        except RuntimeError as error:  # torch's writer hides the system's error
            if "writ" not in str(error):
                raise
            raise OSError(errno.ENOSPC, "could not be written whole", str(folder)) from error
        finally:
            if first:
                shutil.rmtree(partial, ignore_errors=True)

    def _finish(self, trainer: L.Trainer, partial: Path, folder: Path) -> str | None:
        """List and rename what has been written; what went wrong, in words."""
        step = trainer.global_step
        value = self._value[1] if self._value and self._value[0] == step else None
        try:
            for logger in trainer.loggers:
                logger.save()  # rows of the steps before this one
            said = {"step": step, "processes": trainer.world_size, "value": value}
            self._list_and_rename(partial, folder, said)
        except OSError as error:
            return str(error)
        return None

    def _list_and_rename(self, partial: Path, folder: Path, said: dict) -> None:
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())  # or a crash of the machine may leave the name without it
        listed = {
            str(path.relative_to(partial)): [path.stat().st_size, file_digest(path)]
            for path in files
        }
        write_json(partial / WHOLE, said | {"files": listed})
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        saved = list_saved(self.run)
        kept = {one.folder for one in saved[: self.keep_last]}
        scored = [one for one in saved if one.value is not None]
        if scored:
            kept.add(min(scored, key=lambda one: one.value or 0.0).folder)
        for one in saved:
            if one.folder not in kept:  # renamed first: half removed, it would pass for damaged
                one.folder.rename(_unfinished(one.folder))
        for leftover in folder.parent.glob(_unfinished(Path("step_*")).name):
            shutil.rmtree(leftover, ignore_errors=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            # Lightning has put back what was there before it: its own handler would keep the
            # trainer alive, and with it the first expert's weights while the second is trained.
            if signal.getsignal(number) == self._stop:
                signal.signal(number, handler)
        self._previous = {}


def _unfinished(folder: Path) -> Path:
    """The name of a checkpoint that is being written or removed."""
    return folder.with_name(f".{folder.name}.partial")


def _validates_now(trainer: Any, batch_idx: int) -> bool:
    """Whether held-out curves are computed after this batch."""
    return bool(
        trainer.enable_validation
        and sum(trainer.num_val_batches)
        and (batch_idx + 1) % trainer.val_check_batch == 0
    )


def come_back(first: bool, asked: bool) -> None:
    """Have SLURM put this job back into the queue and end its processes, if that was asked for or
    the job is preempted. Every process calls it; `first` speaks to SLURM.

    Returns where that does not happen. A process that ended by itself meanwhile would make srun end
    the others, and the job would have failed: SLURM does not start it again, preempted or not.
    """
    if not max_over_ranks(torch.tensor(int(asked or (first and preempted())))):
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SLURM's; submitit would have it ignored
    if not first or requeue():
        time.sleep(PATIENCE)


def preempted() -> bool:
    """Whether SLURM is taking this job's place away."""
    show = ["scontrol", "show", "job", "--oneliner", os.environ["SLURM_JOB_ID"]]
    said = subprocess.run(show, capture_output=True, text=True, check=False).stdout
    time_of_it = re.search(r"\bPreemptTime=(\S+)", said)
    return time_of_it is not None and time_of_it[1] not in ("None", "N/A", "Unknown")


def requeue() -> bool:
    """Put this SLURM job back into the queue; whether that could be done."""
    job = os.environ["SLURM_JOB_ID"]
    log.warning("putting job %s back into the queue.", job)
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        log.error("scontrol requeue %s failed: %s", job, (done.stderr or done.stdout).strip())
    return done.returncode == 0
