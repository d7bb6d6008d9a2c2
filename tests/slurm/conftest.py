"""A SLURM cluster of two nodes for the tests of a session, and jobs on it."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
PATIENCE = 240  # seconds for what a job is waited for; it takes 20 where nothing else runs
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array. restarts: how often it came back."""

    number: str
    state: str
    restarts: int


@dataclass(frozen=True)
class Cluster:
    """Commands of the checkout on the cluster; `root` is the jobs' PUSA_ROOT."""

    folder: Path
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        # Names of the nodes do not resolve: they are one machine.
        return os.environ | {
            "SLURM_CONF": str(self.folder / "slurm.conf"), "PUSA_ROOT": str(self.root),
            "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip

    def run(self, *command: str) -> str:
        """What a command prints; AssertionError with its messages if it fails."""
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stderr}\n{done.stdout}"
        return done.stdout

    def submit(self, *arguments: str) -> str:
        """The job's number. Output goes to the scratch folder, not to the checkout."""
        output = f"--output={self.folder}/job-%A_%a.out"
        return self.run("sbatch", "--parsable", output, *arguments).strip()

    def jobs(self, number: str) -> list[Job]:
        """The job, or every task of the array."""
        lines = self.run("scontrol", "show", "job", "--oneliner", number).splitlines()
        found = [
            re.search(r"JobId=(\d+) .* JobState=(\w+) .* Restarts=(\d+) ", line) for line in lines
        ]
        return [Job(one[1], one[2], int(one[3])) for one in found]

    def output(self, number: str) -> str:
        files = sorted(self.folder.glob(f"job-{number}_*.out"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def until(self, met: Callable[[], bool], *numbers: str) -> None:
        """Wait for a condition; AssertionError with the jobs' output if it is not met in time."""
        end = time.monotonic() + PATIENCE
        while not met():
            if time.monotonic() > end:
                found = {n: (self.jobs(n), self.output(n)[-4000:]) for n in numbers}
                raise AssertionError(f"not met after {PATIENCE} s: {found}")
            time.sleep(0.1)

    def completed(self, *numbers: str) -> list[Job]:
        """Wait for jobs to end, all of them well."""
        self.until(
            lambda: all(job.state in ENDED for n in numbers for job in self.jobs(n)), *numbers
        )
        jobs = [job for n in numbers for job in self.jobs(n)]
        assert {job.state for job in jobs} == {"COMPLETED"}, "\n".join(map(self.output, numbers))
        return jobs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory, shared_data) -> Iterator[Cluster]:
    """Skips where SLURM is not installed or cannot start, and says why."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(
            f"no SLURM here ({', '.join(missing)} missing); on Debian: apt-get install "
            "--no-install-recommends slurmctld slurmd slurm-client munge"
        )
    folder = tmp_path_factory.mktemp("cluster")
    daemons = subprocess.Popen(
        [REPOSITORY / "tests" / "slurm" / "cluster.sh", folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        if daemons.stdout.readline() != "ready\n":
            pytest.skip(f"SLURM is installed, but does not start: {daemons.stderr.read()}")
        yield Cluster(folder, shared_data)
    finally:
        daemons.communicate()  # closes its input, at which it cleans up
