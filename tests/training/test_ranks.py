"""Processes that are started together: the first one decides, whoever started them."""

import json
import os
import socket
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from pusa.training import ranks
from pusa.training.loggers import read_metrics
from pusa.weights.files import read_tensors
from tests import processes
from tests.conftest import add_replica
from tests.training.test_strategies import environment, overrides


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_process_alone_decides_itself_each_time(monkeypatch):
    monkeypatch.delenv(ranks.ANSWERS, raising=False)
    assert ranks.first_decides(lambda: {"a": 1}, "run") == {"a": 1}
    assert ranks.first_decides(lambda: {"a": 2}, "run") == {"a": 2}


def test_a_child_of_lightnings_takes_its_parents_answers(monkeypatch):
    """Also where the first expert was finished, and the child is started for the second."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(ranks.ANSWERS, raising=False)
    ranks.first_decides(lambda: {"a": 3}, "run/high")
    ranks.first_decides(lambda: {"a": 4}, "run/low")
    told = os.environ[ranks.ANSWERS].partition(" ")[2]
    monkeypatch.setenv(ranks.ANSWERS, f"0 {told}")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.first_decides(lambda: {"a": 5}, "run/high") == {"a": 3}
    assert ranks.first_decides(lambda: {"a": 5}, "run/low") == {"a": 4}


ASKS = """
import os, sys, time
from pusa.training import ranks
def decide():
    time.sleep(1)
    if sys.argv[1] == "fails":
        raise ValueError("no clips are left")
    return {"pid": os.getpid()}
print(ranks.first_decides(lambda: {"finished": True}, "run/high", num_nodes=2), flush=True)
print(ranks.first_decides(decide, "run/low", num_nodes=2), flush=True)
time.sleep(2)
"""


def two_nodes(folder: Path, *command: str) -> list[ForkServerProcess]:
    """The same command on two "nodes" on loopback, the second one first; what they say is in
    folder/out0, err0, out1 and err1."""
    port = free_port()
    started = []
    for node in (1, 0):
        env = environment() | {
            "NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        files = {name: folder / f"{name}{node}" for name in ("out", "err")}
        started.append(processes.start(*command, env=env, **files))
    return started[::-1]


@pytest.mark.parametrize("word", ["works", "fails"])
def test_the_first_of_two_nodes_answers_both_and_its_failure_is_theirs(tmp_path, word):
    nodes = two_nodes(tmp_path, "-c", ASKS, word)
    for node in nodes:
        node.join(120)
    (out0, err0), (out1, err1) = (
        [(tmp_path / f"{name}{i}").read_text() for name in ("out", "err")] for i in (0, 1)
    )
    if word == "works":
        assert out0 == out1
        assert out0.splitlines() == ["{'finished': True}", f"{{'pid': {nodes[0].pid}}}"]
    else:
        assert "ValueError: no clips are left" in err0
        assert "the first process stopped (ValueError: no clips are left)" in err1
        assert nodes[1].exitcode == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_started_by_hand_train_as_one_process(tmp_path):
    """Into an empty folder: the first renders and encodes; one wandb run, resumed as one."""
    add_replica(tmp_path)
    common = [*overrides(tmp_path), "logger.wandb=offline"]
    env = environment()
    single = ["train.py", *common, "name=single", "logger.wandb=off"]
    pairs = ["train.py", *common, "name=nodes", "strategy=ddp", "trainer.num_nodes=2"]
    short = ["trainer.max_steps=3"]
    longer = ["allow=[trainer,data,module]"]
    for more in (short, longer):
        for node in two_nodes(tmp_path, *pairs, *more):
            node.join(280)
            assert node.exitcode == 0, (tmp_path / "err0").read_text()[-3000:]
    for more in (short, longer):
        processes.run(*single, *more, env=env).check_returncode()
    one, two = (tmp_path / "outputs" / name for name in ("single", "nodes"))
    losses = [
        [
            float(r["train/loss"])
            for r in read_metrics(run / "metrics" / "metrics.csv")
            if "train/loss" in r
        ]
        for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert len(losses[1]) == 6
    ours, theirs = (read_tensors(run / "lora.safetensors") for run in (one, two))
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, atol=2e-5, rtol=1e-4)
    name = (two / "wandb_run").read_text()
    offline = [p.name for p in (two / "wandb").glob("offline-run-*")]
    assert len(offline) == 2  # one a start, of the first process alone, of one name
    assert all(folder.endswith(name) for folder in offline)
    assert json.loads((two / "environment.json").read_text())["processes"] == 2


def test_a_single_process_strategy_refuses_two(tmp_path):
    add_replica(tmp_path)
    words = [*overrides(tmp_path), "name=x", "trainer.devices=2"]
    done = processes.run("train.py", *words, env=environment())
    assert done.returncode == 1
    assert "strategy=single is one process, there are 2; choose strategy=ddp" in done.stderr


def test_a_command_forgets_what_an_earlier_one_answered(monkeypatch):
    """Else the environment of a long sweep outgrows what a new process may be given."""
    monkeypatch.delenv(ranks.ANSWERS, raising=False)
    for number in range(50):
        ranks.begin_command()
        ranks.first_decides(lambda: {"recipe": "x" * 10_000}, f"run_{number}")
    assert len(os.environ[ranks.ANSWERS]) < 20_000
    monkeypatch.setenv(ranks.ANSWERS, f"1 {json.dumps({'run': json.dumps({'answer': {}})})}")
    ranks.begin_command()  # what its parent told a child stays
    assert ranks.ANSWERS in os.environ
