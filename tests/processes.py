"""Programs of the checkout as processes of their own that start at once: forked from a server which
has imported what a new Python takes ten seconds to import, and has computed nothing.

They are what the command line starts in all but that: own signals, own standard output and error,
exit codes, the script as `__main__`. What it takes to import them is for other tests:
test_strategies.py and the jobs of slurm/ start a Python each.
"""

import atexit
import multiprocessing as mp
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
FORKS = mp.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["train", "evaluate", "pusa.pipelines.produce", "tests.pipelines.test_caching_survives"]
)


def start(*arguments: str, env: Mapping[str, str], out: Path, err: Path) -> ForkServerProcess:
    """`python ARGUMENTS` in the checkout: a script, -m MODULE or -c CODE, and what follows it.

    Its standard output and error are added to the two files.
    """
    process = FORKS.Process(target=_run, args=(arguments, dict(env), out, err))
    process.start()
    return process


def run(*arguments: str, env: Mapping[str, str] | None = None,
        timeout: float = 280) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """As subprocess.run of `start`, with this process's environment unless told; TimeoutExpired
    after so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start(*arguments, env=os.environ if env is None else env, out=out, err=err)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout, out.read_text(), err.read_text())
        code, texts = process.exitcode, (out.read_text(), err.read_text())
    return subprocess.CompletedProcess(arguments, code, *texts)


def _run(arguments: tuple[str, ...], env: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        with path.open("a") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(REPOSITORY)
    kind, *rest = arguments
    try:
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [*arguments]
            runpy.run_path(kind, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which a child of the server would leave out
