"""Run by torchrun for test_strategies.py: per strategy one run, and one stopped and resumed.

    torchrun --nproc-per-node 2 -m tests.training.many RECIPE.json

RECIPE.json: {"strategies": [...], "overrides": [...], "stop_at": step}. All runs are made in the
same processes, as the two experts of a model are.
"""

import contextlib
import gc
import json
import os
import signal
import sys
from pathlib import Path

import train
from pusa.training.module import VTAModule
from tests.conftest import compose_config

STEP = VTAModule.training_step


def stopping_at(step: int, rank: int):
    """A training step in which one rank gets a SIGTERM; the others must notice."""

    def training_step(self, batch, batch_idx):
        if self.global_step == step and self.global_rank == rank:
            signal.raise_signal(signal.SIGTERM)
        return STEP(self, batch, batch_idx)

    return training_step


def main() -> None:
    recipe = json.loads(Path(sys.argv[1]).read_text())
    for strategy in recipe["strategies"]:
        common = [*recipe["overrides"], f"strategy={strategy}"]
        train.train(compose_config("train", *common, f"name={strategy}"))
        again = compose_config("train", *common, f"name={strategy}_again")
        VTAModule.training_step = stopping_at(recipe["stop_at"], rank=1)
        with contextlib.suppress(SystemExit):
            train.train(again)
        VTAModule.training_step = STEP
        train.train(again)
        del again
        gc.collect()
        alive = sum(isinstance(found, VTAModule) for found in gc.get_objects())
        print(f"{strategy}: {alive} modules are still there", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    main()
