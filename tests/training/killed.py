"""Run for test_kills.py: a training that is killed again and again, and one that is left alone.

    python -m tests.training.killed ROOT NUM_KILLS

Prints one line per attempt. Everything is imported once; every attempt is a forked process that is
SIGKILLed at a random moment: most soon after it has saved something new, so that kills fall into
steps, validation and the writing of the next checkpoint, and some while it starts.
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

STEPS, EVERY = 120, 2


def config(root: Path, name: str):
    return compose_config(
        "train", "experiment=tiny_vta", f"name={name}", "logger.wandb=off", "data.num_clips=8",
        "callbacks.track.curve=null",
        "batch_size=2", "data.heldout.toy.num_clips=2", f"trainer.max_steps={STEPS}",
        "lora.rank=4", "trainer.val_check_interval=20", "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu", "callbacks.grid=null", f"callbacks.checkpoints.every={EVERY}",
        "callbacks.checkpoints.monitor=heldout/shared", "callbacks.ema.decay=0.9",
        f"paths.root={root}", "module.schedule.warmup=4",
    )  # fmt: skip


def newest(root: Path, name: str) -> int:
    return max((saved.step for saved in list_saved(root / "outputs" / name)), default=0)


def attempt(root: Path, name: str, early: float | None = None, late: float | None = None) -> bool:
    """Whether the run came to its end. It is killed `early` seconds after its start, or `late`
    seconds after it has saved a checkpoint that was not there; without either it is let be."""
    before = newest(root, name)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # anew, before threads do it at once and find no pool
        try:
            train.train(config(root, name))
        except BaseException as error:
            print(f"error: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    deadline = None if early is None else time.monotonic() + early
    while deadline is None or time.monotonic() < deadline:
        if late is not None and deadline is None and newest(root, name) > before:
            deadline = time.monotonic() + late
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
    attempt(root, "whole")
    choice = random.Random(0)
    for number in range(kills):
        moment = {"early": choice.uniform(0, 2)} if number % 5 == 4 else {
            "late": choice.uniform(0, 0.6)
        }  # fmt: skip
        done = attempt(root, "killed", **moment)
        broken = [s.step for s in list_saved(root / "outputs" / "killed") if s.fault()]
        reached = newest(root, "killed")
        print(json.dumps({"done": done, "reached": reached, "damaged": broken}), flush=True)
    attempt(root, "killed")


if __name__ == "__main__":
    main()
