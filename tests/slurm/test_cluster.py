"""The files in slurm/ and Hydra's launcher on a real SLURM of two nodes, as users submit them."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pusa.data.cache import LatentCache
from pusa.training.checkpoints import WHOLE
from pusa.training.loggers import read_metrics
from tests.conftest import REPOSITORY
from tests.slurm.conftest import Job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 32
SMALL = (
    "experiment=tiny_vta", "logger.wandb=off", "data.num_clips=16", "data.heldout.toy.num_clips=4",
    "batch_size=4", "lora.rank=4", "callbacks.grid=null", "callbacks.track.curve=null",
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=16", "trainer.log_every_n_steps=1",
)  # fmt: skip
TWO_NODES = ("--nodes=2", "slurm/train.sbatch", *SMALL, "strategy=ddp")


@pytest.fixture(scope="module")
def disturbed(cluster) -> Job:
    """A job of two nodes that was signalled, came back, was preempted by another, and came back.

    Their runs are `disturbed` and `undisturbed`; both have ended.
    """
    saved = cluster.root / "outputs" / "disturbed" / "checkpoints"
    job = cluster.submit(*TWO_NODES, "name=disturbed", "callbacks.checkpoints.every=4")
    cluster.until((saved / "step_00000004" / WHOLE).exists, job)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.until(lambda: cluster.jobs(job)[0].restarts == 1, job)
    cluster.until((saved / "step_00000012" / WHOLE).exists, job)
    urgent = cluster.submit(
        "--partition=urgent", "--cpus-per-task=32", *TWO_NODES, "name=undisturbed"
    )
    assert [one.restarts for one in cluster.completed(urgent)] == [0]
    return cluster.completed(job)[0]


def losses(run) -> dict[str, str]:
    rows = [row for row in read_metrics(run / "metrics" / "metrics.csv") if "train/loss" in row]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row["train/loss"] for row in rows}


def tasks(argument: str) -> int:
    """How many trainings run that were started with an argument."""
    found = 0
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            line = file.read_bytes()
            starts = line.startswith(f"{REPOSITORY}/.venv/bin/python\0train.py\0".encode())
            found += starts and f"\0{argument}\0".encode() in line
    return found


def test_an_array_encodes_what_a_training_reads(cluster):
    jobs = cluster.completed(cluster.submit("--array=0-2:2", "slurm/cache.sbatch", *SMALL))
    assert len(jobs) == 2
    cache = LatentCache(cluster.root / "data" / "cache")
    assert len(cache.read_index("toy_train_16_17x32x32")) == 16
    assert len(cache.read_index("toy_heldout_4_17x32x32")) == 4


def test_a_job_that_is_signalled_and_preempted_ends_with_the_lora_of_an_undisturbed_one(
    cluster, disturbed
):
    assert disturbed.restarts == 2
    said = cluster.output(disturbed.number)
    for signal in ("SIGUSR1", "SIGTERM"):
        assert f"{signal}: stopping after this step, saving." in said
    assert said.count("going on from") == 2
    runs = [cluster.root / "outputs" / name for name in ("disturbed", "undisturbed")]
    ours, theirs = (load_file(run / "lora.safetensors") for run in runs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses(runs[0]) == losses(runs[1])
    assert len(losses(runs[0])) == STEPS
    config = json.loads((runs[0] / "config.json").read_text())
    assert (config["trainer"]["num_nodes"], config["trainer"]["devices"]) == (2, 1)


def test_a_signal_before_training_listens_only_brings_the_job_back(cluster):
    job = cluster.submit(*TWO_NODES, "name=early")
    cluster.until(lambda: tasks("name=early") == 2, job)  # SLURM forgets what comes before them
    cluster.run("scancel", "--signal=USR1", job)
    cluster.until(lambda: cluster.jobs(job)[0].restarts == 1, job)
    cluster.run("scancel", job)
    assert not (cluster.root / "outputs" / "early" / "checkpoints").exists()


def test_an_array_evaluates_in_shares_that_one_job_puts_together(cluster, disturbed):
    words = ("slurm/evaluate.sbatch", *SMALL, "name=undisturbed", "suite.source.toy.num_clips=2",
             "suite.seeds=[0,1]", "sampler.num_steps=2")  # fmt: skip
    shares = cluster.submit("--array=0-1", *words)
    whole = cluster.submit(f"--dependency=afterok:{shares}", *words)
    assert len(cluster.completed(shares, whole)) == 3
    folder = cluster.root / "outputs" / "undisturbed" / "evaluation"
    parts = sorted(file.name for file in folder.glob("scores*.jsonl"))
    assert parts == ["scores.0-of-2.jsonl", "scores.1-of-2.jsonl"], "the last job scored nothing"
    assert (folder / "toy_suite.html").is_file()


def test_hydras_launcher_runs_a_sweep(cluster):
    cluster.run(
        sys.executable, "train.py", "-m", "hydra/launcher=slurm", *SMALL, "seed=0,1",
        "name=swept_${seed}", "trainer.max_steps=2", "trainer.val_check_interval=2",
    )  # fmt: skip
    for seed in (0, 1):
        assert (cluster.root / "outputs" / f"swept_{seed}" / "lora.safetensors").is_file()


def test_lines_of_a_file_run_side_by_side(cluster, tmp_path):
    (tmp_path / "runs.txt").write_text("-m platform\n# nothing\n-c print(1+1)\n")
    array = cluster.submit("--array=1-3", "slurm/array.sbatch", str(tmp_path / "runs.txt"))
    assert len(cluster.completed(array)) == 3
    said = cluster.output(array)
    assert "Linux" in said
    assert "line 2 of" in said
    assert "\n2\n" in said


def test_an_array_makes_the_videos_of_a_list(cluster, tmp_path):
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("name,prompt\na,a red one\nb,a red two\n")
    words = ("slurm/generate.sbatch", "--jobs", str(jobs), "-o", str(tmp_path / "made"))
    done = cluster.completed(cluster.submit("--array=0-1", *words, "--steps", "1"))
    assert len(done) == 2
    assert sorted(path.name for path in (tmp_path / "made").glob("*.mp4")) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("name", ["train", "cache", "evaluate", "generate", "array"])
def test_without_arguments_a_file_says_how_it_is_used(name):
    done = subprocess.run(
        ["bash", f"slurm/{name}.sbatch"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"slurm/{name}.sbatch" in done.stderr
