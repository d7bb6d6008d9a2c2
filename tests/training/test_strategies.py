"""Every strategy on two gloo processes against one: losses, memory, resume, the LoRA's wholeness.

The table in docs/training.md is what this prints (pytest -s).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pusa.training.loggers import read_metrics
from pusa.weights.files import read_tensors
from tests.conftest import REPOSITORY, add_replica

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ninja")),
    reason="DeepSpeed compiles a part for CPUs: it needs g++ and ninja",
)
STRATEGIES = ("ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
STEPS, STOP = 6, 3


def overrides(root: Path) -> list[str]:
    return [
        "experiment=tiny_vta", "logger.wandb=off", "data.num_clips=16", "batch_size=4",
        "data.heldout.toy.num_clips=2", f"trainer.max_steps={STEPS}", "lora.rank=4",
        "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "callbacks.grid=null",
        "callbacks.track.curve=null",
        "callbacks.checkpoints.every=2", "callbacks.ema.decay=0.9", "callbacks.loss_map.every=3",
        "trainer.accelerator=cpu", "module.schedule.warmup=2", f"paths.root={root}",
        "timesteps.clean_share=0.2", "trainer.gradient_clip_val=0.01",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """One thread a process; DeepSpeed's compiled part outside of the checkout."""
    cache = os.environ.get("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions"))
    return os.environ | {
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": cache,
        "PYTHONPATH": str(REPOSITORY), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """outputs/ with `single`, and NAME and NAME_again of every strategy."""
    root = add_replica(tmp_path_factory.mktemp("strategies"))
    single = [sys.executable, "train.py", *overrides(root), "name=single"]
    subprocess.run(single, cwd=REPOSITORY, env=environment(), check=True, timeout=280)
    recipe = {"strategies": STRATEGIES, "overrides": [*overrides(root), "trainer.devices=2"]}
    (root / "recipe.json").write_text(json.dumps(recipe | {"stop_at": STOP}))
    many = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
        "-m", "tests.training.many", str(root / "recipe.json"),
    ]  # fmt: skip
    done = subprocess.run(
        many, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True, timeout=800
    )
    assert done.returncode == 0, done.stdout[-3000:]
    (root / "outputs" / "said.txt").write_text(done.stdout)
    return root / "outputs"


def logged(run: Path, name: str) -> list[float]:
    return [
        float(row[name]) for row in read_metrics(run / "metrics" / "metrics.csv") if name in row
    ]


def rows(run: Path) -> list[dict[str, str]]:
    """All that was logged, but for what a clock or the machine says."""
    drop = ("train/clips_per_s", "train/memory_gb")
    table = read_metrics(run / "metrics" / "metrics.csv")
    kept = [{k: v for k, v in row.items() if k not in drop} for row in table]
    return [row for row in kept if len(row) > 1]  # more than the step


def held(run: Path) -> list[dict[str, int]]:
    return json.loads((run / "memory.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_trains_as_one_process_does(runs, strategy):
    one, two, again = (runs / name for name in ("single", strategy, f"{strategy}_again"))
    for name in ("train/loss", "heldout/shared", "heldout/first_clean@0.5", "train/grad_norm"):
        assert logged(two, name) == pytest.approx(logged(one, name), abs=1e-5)
    assert len(logged(two, "train/loss")) == STEPS
    whole, ours, resumed = (read_tensors(run / "lora.safetensors") for run in (one, two, again))
    assert ours.keys() == whole.keys()
    for key, value in whole.items():
        assert ours[key].shape == value.shape
        torch.testing.assert_close(ours[key], value, atol=2e-5, rtol=1e-4)
    # Stopped by a signal to the second process alone, and resumed: every bit, every row.
    assert all(torch.equal(ours[key], resumed[key]) for key in ours)
    averages = [read_tensors(run / "ema" / "lora.safetensors") for run in (two, again)]
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in ours)
    assert not all(torch.equal(averages[0][key], ours[key]) for key in ours)
    assert rows(two) == rows(again)
    maps = [json.loads((run / "loss_map.json").read_text()) for run in (one, two, again)]
    assert maps[1] == maps[2]
    assert maps[0]["frames"] == maps[1]["frames"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_per_process_falls_as_it_should(runs):
    one = held(runs / "single")[0]
    for strategy in STRATEGIES:
        for part in held(runs / strategy):
            share = part["optimizer"] / one["optimizer"]
            assert share == pytest.approx(1.0 if strategy == "ddp" else 0.5, abs=0.01), strategy
            share = part["weights"] / one["weights"]
            divided = strategy.startswith("zero3")
            assert share == pytest.approx(0.5 if divided else 1.0, abs=0.02), strategy


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_frozen_base_is_never_saved(runs):
    trained = sum(t.numel() for t in read_tensors(runs / "single" / "lora.safetensors").values())
    for run in (runs / "single", *(runs / strategy for strategy in STRATEGIES)):
        saved = max((run / "checkpoints").glob("step_*"))
        size = sum(p.stat().st_size for p in saved.rglob("*") if p.is_file())
        # The values, both moments, the average, float32; and 400 kB of names and loops at most.
        assert size < 4 * 4 * trained * 1.5 + 400_000, run.name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_has_ended_leaves_no_weights_behind(runs):
    """Of two experts, the first goes before the second comes. DeepSpeed's stage 3 keeps its own."""
    said = (runs / "said.txt").read_text()
    for strategy in ("ddp", "zero1", "zero2", "zero2_offload"):
        assert said.count(f"{strategy}: 0 modules are still there") == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_print_the_table(runs):
    one = runs / "single"
    print("\n| strategy | loss, largest difference | weights | optimizer | resumed | LoRA |")
    print("|---|---|---|---|---|---|")
    for strategy in STRATEGIES:
        two, again = runs / strategy, runs / f"{strategy}_again"
        pairs = zip(logged(one, "train/loss"), logged(two, "train/loss"), strict=True)
        gap = max(abs(a - b) for a, b in pairs)
        part, base = held(two)[0], held(one)[0]
        weights, state = (part[k] / base[k] for k in ("weights", "optimizer"))
        loras = [read_tensors(run / "lora.safetensors") for run in (one, two, again)]
        same = all(torch.equal(loras[1][key], loras[2][key]) for key in loras[1])
        off = max(float((loras[0][k] - loras[1][k]).abs().max()) for k in loras[0])
        print(f"| {strategy} | {gap:.0e} | {weights:.2f} | {state:.2f} | "
              f"{'bit for bit' if same else 'NO'} | {off:.0e} |")  # fmt: skip
        assert gap < 1e-5
