"""Run for test_kills.py: a training that is killed again and again, and one that is left alone.

    python -m tests.training.killed ROOT NUM_KILLS

Prints one line per attempt. Everything is imported once; every attempt is a forked process that is
SIGKILLed after a random time, so that kills fall into steps, validation and the writing of
checkpoints.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import train
from pusa.training.checkpoints import list_saved
from tests.conftest import compose_config

STEPS, EVERY = 60, 2


def config(root: Path, name: str):
    return compose_config(
        "train", "experiment=tiny_vta", f"name={name}", "logger.wandb=off", "data.num_clips=8",
        "batch_size=2", "data.heldout.toy.num_clips=2", f"trainer.max_steps={STEPS}",
        "lora.rank=4", "trainer.val_check_interval=6", "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu", "callbacks.grid=null", f"callbacks.checkpoints.every={EVERY}",
        "callbacks.checkpoints.monitor=heldout/shared", "callbacks.ema.decay=0.9",
        f"paths.root={root}", "module.schedule.warmup=4",
    )  # fmt: skip


def attempt(root: Path, name: str, seconds: float | None) -> bool:
    """Whether the run came to its end; it is killed after `seconds`, None lets it be."""
    child = os.fork()
    if child == 0:
        try:
            train.train(config(root, name))
        except BaseException as error:
            print(f"error: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    started = time.monotonic()
    while seconds is None or time.monotonic() - started < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"the run failed by itself: {status}")
            return True
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    root, kills = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    started = time.monotonic()
    attempt(root, "whole", None)
    whole = time.monotonic() - started
    choice = random.Random(0)
    reached, done = [], False
    while not done and len(reached) < kills:
        done = attempt(root, "killed", choice.uniform(0.15, 0.4) * whole)
        steps = [saved.step for saved in list_saved(root / "outputs" / "killed")]
        broken = [s.step for s in list_saved(root / "outputs" / "killed") if s.fault()]
        reached.append(max(steps, default=0))
        print(json.dumps({"done": done, "reached": reached[-1], "damaged": broken}), flush=True)
    if not done:
        attempt(root, "killed", None)


if __name__ == "__main__":
    main()
