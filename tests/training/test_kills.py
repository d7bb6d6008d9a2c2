"""SIGKILL at random moments, in every phase of saving, on one process and on two: nothing is lost
beyond the last checkpoint, and the result is that of a run which was left alone, bit for bit."""

import json
import os
import re
import time
from pathlib import Path

import pytest
import torch

import train
from pusa.training import checkpoints
from pusa.training.checkpoints import list_saved, newest_sound
from pusa.training.loggers import Metrics
from pusa.weights.files import read_tensors
from tests import processes
from tests.conftest import add_replica
from tests.training.killed import EVERY, STEPS
from tests.training.test_strategies import environment, overrides, rows

KILLS = 20


def same_lora(one: Path, two: Path) -> bool:
    ours, theirs = (read_tensors(run / "lora.safetensors") for run in (one, two))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def saving_each_step(small_run, name: str, *more: str):
    return small_run(
        "tiny_vta", "lora.rank=4", "callbacks.checkpoints.every=1", f"name={name}",
        "callbacks.grid=null", "trainer.log_every_n_steps=1", *more,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path) -> Path:
    return add_replica(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_at_random_moments(place):
    command = ("-m", "tests.training.killed", str(place), str(KILLS))
    done = processes.run(*command, env=environment(), timeout=850)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    attempts = [json.loads(found) for found in re.findall(r'\{"done".*?\}', done.stdout)]
    assert len(attempts) == KILLS
    assert not [a for a in attempts if a["done"] or a["damaged"]]
    reached = [a["reached"] for a in attempts]
    assert reached == sorted(reached)  # nothing that was saved is lost
    assert reached[-1] > reached[0]
    whole, killed = place / "outputs" / "whole", place / "outputs" / "killed"
    assert same_lora(whole, killed)
    assert same_lora(whole / "ema", killed / "ema")
    assert rows(killed) == rows(whole)
    assert len([r for r in rows(whole) if "train/loss" in r]) == STEPS
    assert max(s.step for s in list_saved(killed)) % EVERY == 0
    print(f"\n{len(attempts)} attempts, checkpoints after each: {reached}")


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of ours may catch it and go on."""


def die(*_args, **_options):
    raise Killed


PHASES = {
    "before the state": ("lightning.Trainer.save_checkpoint", "before"),
    "after the state": ("lightning.Trainer.save_checkpoint", "after"),
    "before the list of files": ("pusa.training.checkpoints.write_json", "before"),
    "after the list of files": ("pusa.training.checkpoints.write_json", "after"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_death_while_saving_leaves_the_checkpoint_before(small_run, whole, monkeypatch, phase):
    cfg = saving_each_step(small_run, "dies")
    target, when = PHASES[phase]
    owner, name = target.rsplit(".", 1)
    module = checkpoints if owner.startswith("pusa") else __import__("lightning").Trainer
    real, calls = getattr(module, name), []

    def dying(*args, **options):
        calls.append(1)
        if len(calls) == 3 and when == "before":
            die()
        result = real(*args, **options)
        if len(calls) == 3:
            die()
        return result

    with monkeypatch.context() as patched:
        patched.setattr(module, name, dying)
        # What a killed process cannot do, it shall not do here either.
        patched.setattr(checkpoints.shutil, "rmtree", lambda *a, **k: None)
        with pytest.raises(Killed):
            train.train(cfg)
    run = Path(cfg.paths.run)
    saved = newest_sound(run)
    assert saved is not None
    assert saved.step == 2
    train.train(cfg)
    assert same_lora(run, whole)
    assert [p.name for p in (run / "checkpoints").iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("step", [3, 4])  # with held-out curves after the fourth
def test_a_death_right_after_saving_loses_no_row(small_run, whole, monkeypatch, step):
    cfg = saving_each_step(small_run, "dies")
    real = checkpoints.Checkpoints.save

    def dying(self, trainer, again=False):
        real(self, trainer, again)
        if trainer.global_step == step:
            die()

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.Checkpoints, "save", dying)
        patched.setattr(Metrics, "finalize", lambda *a: None)  # a killed process writes no more
        with pytest.raises(Killed):
            train.train(cfg)
    run = Path(cfg.paths.run)
    assert newest_sound(run).step == step
    train.train(cfg)
    assert rows(run) == rows(whole)
    assert len([r for r in rows(run) if "train/loss" in r]) == cfg.trainer.max_steps


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_of_one_of_two_processes_ends_both_and_the_rest_goes_on(place):
    """As a node failure does it. Both processes are Lightning's, started by one command."""
    common = [*overrides(place), "trainer.devices=2", "strategy=ddp", "trainer.max_steps=12"]
    env = environment()
    processes.run("train.py", *common, "name=whole", env=env).check_returncode()
    run = place / "outputs" / "killed"
    killed = ("train.py", *common, "name=killed")
    process = processes.start(*killed, env=env, out=place / "out", err=place / "err")
    while not (saved := list_saved(run)) and process.is_alive():
        time.sleep(0.02)
    assert saved, "it ended before its first checkpoint"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    second = next(c for c in children if b"train.py" in Path(f"/proc/{c}/cmdline").read_bytes())
    os.kill(int(second), 9)
    process.join(60)
    assert process.exitcode not in (None, 0)
    processes.run(*killed, env=env).check_returncode()
    assert same_lora(place / "outputs" / "whole", run)
    assert rows(run) == rows(place / "outputs" / "whole")


def test_an_exception_in_a_worker_ends_the_run_and_the_rest_goes_on(small_run, whole, monkeypatch):
    """Reading fails once in a data worker, as a network disk does."""
    from pusa.data.cache import LatentCache

    reading = ("data.batches.num_workers=1", "data.batches.in_memory=false")
    cfg = saving_each_step(small_run, "fails", *reading)
    read, calls = LatentCache.read, []

    def failing(self, kind, key):
        calls.append(key)
        if len(calls) == 2 * 4 * 3 + 1:  # latents and text of 4 clips a step: in the fourth
            raise OSError(5, "Input/output error", str(self.folder))
        return read(self, kind, key)

    with monkeypatch.context() as patched:
        patched.setattr(LatentCache, "read", failing)
        with pytest.raises(OSError, match="Input/output error"):
            train.train(cfg)
    run = Path(cfg.paths.run)
    saved = newest_sound(run)
    assert saved is not None
    assert 1 <= saved.step <= 3
    train.train(cfg)
    assert same_lora(whole, run)
    assert rows(whole) == rows(run)


def test_a_disk_that_fills_up_while_saving_keeps_what_was_saved(small_run, whole, monkeypatch):
    import lightning as L

    cfg = saving_each_step(small_run, "full")
    save, calls = L.Trainer.save_checkpoint, []

    def full(self, path, *args, **options):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half of it")
            raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
        return save(self, path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(L.Trainer, "save_checkpoint", full)
        with pytest.raises(OSError, match="could not be written whole"):
            train.train(cfg)
    run = Path(cfg.paths.run)
    assert newest_sound(run).step == 2
    assert not list((run / "checkpoints").glob(".*partial"))
    train.train(cfg)
    assert same_lora(whole, run)
    assert rows(whole) == rows(run)
