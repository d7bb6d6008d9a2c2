"""`pusa reproduce` and the end of `train.py -m`: which processes are started, and what is told."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

import train
from pusa import cli_reproduce
from tests import processes
from tests.conftest import compose_config, run_pusa


@pytest.fixture
def started(monkeypatch, tmp_path) -> list[str]:
    """Commands that were started, without python and folders; none is run."""
    monkeypatch.chdir(tmp_path)
    commands: list[str] = []

    def run(command, **options):
        commands.append(" ".join([Path(command[1]).name, *command[2:]]))
        return SimpleNamespace(returncode=int("part=1/2" in command and "rank" in command[2]))

    monkeypatch.setattr(cli_reproduce.subprocess, "run", run)
    return commands


def finish(root: Path, *runs: str) -> None:
    for run in runs:
        folder = root / "outputs" / "replica" / run
        folder.mkdir(parents=True)
        (folder / "lora.safetensors").write_bytes(b"")


def test_what_is_missing_is_trained_then_all_is_measured(started, tmp_path, root):
    assert run_pusa("reproduce", "experts", "--jobs", 2) == 0
    more, alone = "experiment=replica/experts", "hydra.callbacks.study=null"
    assert started[0] == "train.py experiment=replica/expert_base"
    assert sorted(started[1:3]) == [  # train.py keeps what is finished
        f"train.py -m variant={variant} seed=0,1,2 {more} {alone}"
        for variant in ("full_range", "own_range")
    ]
    assert sorted(started[3:5]) == [f"evaluate.py {more} part={i}/2" for i in range(2)]
    assert started[5:] == [f"evaluate.py {more}"]
    assert len(list((tmp_path / "outputs/replica/logs").iterdir())) == len(started)


def test_settings_of_ones_own_leave_the_committed_tables_alone(started, tmp_path, root):
    assert run_pusa("reproduce", "experts", "--set", "study.seeds=[5]", "--set", "num_threads=1",
                    "--jobs", 1) == 0  # fmt: skip
    assert started[0] == "train.py experiment=replica/expert_base num_threads=1"
    assert "seed=5 " in started[1]
    assert "study.tables=outputs/replica/own/studies study.page=" in started[-1]


@pytest.mark.parametrize(
    ("override", "told"),
    [("foo=1", "foo"), ("study.seeds=abc", r"study\.seeds=abc: expected numbers, as \[0,1,2\]")],
)
def test_a_bad_override_is_named(started, root, capsys, override, told):
    assert run_pusa("reproduce", "rank", "--set", override) == 1
    assert re.search(told, capsys.readouterr().err)
    assert not started


def test_a_study_without_m_asks_for_a_variant(root):
    cfg = compose_config("train", "experiment=replica/rank", "name=replica/None/seed0",
                         "study.variants=a", "study.seeds=0")  # fmt: skip
    with pytest.raises(
        ValueError, match=r"study rank is several runs: train\.py -m .*variant=NAME"
    ):
        train.train(cfg)


def test_a_process_that_fails_ends_it_and_its_log_is_named(started, root, capsys):
    assert run_pusa("reproduce", "rank", "--jobs", 2) == 1
    assert re.search(r"part=1_2-\w+\.log says why", capsys.readouterr().err)
    assert not any(c.split()[-1] == "experiment=replica/rank" for c in started if "part" not in c)


def test_an_unknown_study_is_told_the_known_ones(started, capsys):
    assert run_pusa("reproduce", "ranks") == 1
    assert "ranks: no such study; there are strategies, rank" in capsys.readouterr().err
    assert run_pusa("reproduce", "--jobs", 0) == 1
    assert not started


def multirun(*overrides: str):
    return OmegaConf.create(
        {"study": {"name": "rank"}, "hydra": {"overrides": {"task": list(overrides)}}}
    )


def test_the_end_of_a_sweep_measures_a_study_whose_runs_are_all_there(started, root, caplog):
    typed = ("experiment=replica/rank", "variant=rank_4", "seed=0,1,2", "num_threads=1")
    with caplog.at_level("INFO"):
        cli_reproduce.Measure().on_multirun_end(multirun(*typed))
    assert "9 runs of the study are not there yet" in caplog.text
    assert not started
    finish(root, *(f"{v}/seed{s}" for v in ("rank_4", "rank_16", "independent") for s in range(3)))
    cli_reproduce.Measure().on_multirun_end(multirun(*typed))
    assert started == ["evaluate.py experiment=replica/rank num_threads=1"]


@pytest.mark.slow
def test_a_sweep_names_its_runs_by_variant_and_seed(root):
    """Real hydra: the sweep's own list of runs, and its callback."""
    done = processes.run(
        "train.py", "-m", "experiment=replica/rank", "variant=rank_4", "seed=0,1",
        "data.num_clips=4", "data.heldout.toy.num_clips=2", "batch_size=2", "trainer.max_steps=1",
        f"paths.root={root}", "callbacks.grid=null",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for seed in (0, 1):
        assert (root / f"outputs/replica/rank_4/seed{seed}/lora.safetensors").is_file()
    assert "7 runs of the study are not there yet" in done.stdout
