"""`pusa reproduce`: the studies of the replica, trained and measured, several processes at once."""

import argparse
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from pusa import entry
from pusa.data.hashing import content_key

log = logging.getLogger(__name__)
FIRST = {
    "experts": ("train.py", "experiment=replica/expert_base")
}  # what a study's runs begin with
OWN = "outputs/replica/own"
ALONE = "hydra.callbacks.study=null"  # a process that leaves measuring to a later one


def add_commands(commands) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="train and measure the studies of docs/replica.md; what is there is kept",
        description="Runs in a checkout: configs/experiment/replica, one study after the other. "
        "Interrupt it as you like; the same command goes on. Every process logs to "
        "outputs/replica/logs.",
    )
    reproduce.add_argument("studies", nargs="*", metavar="STUDY", help="default: all")
    reproduce.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1,
        help="processes at once, each with its share of the cores (default: %(default)s)",
    )  # fmt: skip
    reproduce.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override any config key in every process, as study.seeds=[0,1,2,3]; may be repeated. "
        f"Tables and page then go to {OWN}, not to the committed ones",
    )  # fmt: skip
    reproduce.set_defaults(run=_reproduce)


class Measure(Callback):
    """Hydra's: at the end of `train.py -m experiment=replica/STUDY`, measure and write the page,
    once all runs of the study are there."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        study = config.study.name
        own = [o for o in config.hydra.overrides.task if not o.startswith(("variant=", "seed="))]
        runs = _study(study, [o for o in own if not o.startswith("experiment=")])
        if missing := runs.missing():
            log.info("%d runs of the study are not there yet, such as %s; it is measured when they "
                     "are.", len(missing), missing[0])  # fmt: skip
            return
        done = subprocess.run(_command(("evaluate.py", *own)), check=False)
        if done.returncode:
            raise SystemExit(done.returncode)


def study_names() -> list[str]:
    """The studies, in the order of the page."""
    from pusa.evaluation.study_pages import SECTIONS

    return [section.study for section in SECTIONS]


def _study(name: str, overrides: Sequence[str] = ()):
    """The Study of an experiment, as evaluate.py would build it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    running = GlobalHydra.instance().hydra  # of train.py -m, which is at its end
    GlobalHydra.instance().clear()
    try:
        folder = str(entry.config_folder().resolve())
        with initialize_config_dir(folder, version_base="1.3"):
            given = [f"experiment=replica/{name}", *overrides]
            cfg = compose("evaluate", overrides=given, return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            return entry.build(cfg.study)
    except HydraException as error:
        raise ValueError(str(error)) from error
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = running


def _reproduce(options: argparse.Namespace) -> None:
    known = study_names()
    for name in options.studies:
        if name not in known:
            raise ValueError(f"{name}: no such study; there are {', '.join(known)}.")
    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}.")
    if not _script("train.py").is_file():
        raise ValueError("pusa reproduce needs a checkout: train.py is not there.")
    begun, overrides = time.perf_counter(), list(options.overrides)
    if overrides:
        overrides += [f"study.tables={OWN}/studies", f"study.page={OWN}/replica.md"]
        log.info("with settings of your own, tables and page go to %s.", OWN)
    for name in options.studies or known:
        _one(name, options.jobs, overrides)
    log.info("all studies: %s", _clock(time.perf_counter() - begun))


def _one(name: str, jobs: int, overrides: Sequence[str]) -> None:
    """Train, a process for each variant; measure, one for each job; the page. train.py keeps what
    is finished, and refuses what was trained with other settings."""
    begun = time.perf_counter()
    study = _study(name, overrides)
    seeds = ",".join(map(str, study.seeds))
    common = (f"experiment=replica/{name}", *overrides)
    if name in FIRST:
        own = [text for text in overrides if not text.lstrip("+").startswith("study.")]
        _together([(*FIRST[name], *own)], 1)
    _together(
        [
            ("train.py", "-m", f"variant={variant}", f"seed={seeds}", *common, ALONE)
            for variant in study.variants
        ],
        jobs,
    )
    _together([("evaluate.py", *common, f"part={i}/{jobs}") for i in range(jobs)], jobs)
    _together([("evaluate.py", *common)], 1)
    log.info("%s: %s", name, _clock(time.perf_counter() - begun))


def _together(commands: Sequence[tuple[str, ...]], jobs: int) -> None:
    """Run commands, so many at once. ValueError names the first that failed, and its log."""
    folder = Path("outputs/replica/logs")
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(commands)))))
    env = os.environ | {"OMP_NUM_THREADS": threads}

    def run(command: tuple[str, ...]) -> tuple[int, Path]:
        words = " ".join(command).replace("experiment=replica/", "").replace(ALONE, "")
        stem = "".join(c if c.isalnum() or c in "=._-" else "_" for c in words).strip("_")
        path = folder / f"{stem[:80]}-{content_key(*command)[:6]}.log"
        log.info("%s", shlex.join(command))
        with path.open("w") as file:
            done = subprocess.run(
                _command(command), stdout=file, stderr=subprocess.STDOUT, env=env, check=False
            )
        return done.returncode, path

    with ThreadPoolExecutor(jobs) as pool:
        ended = list(pool.map(run, commands))
    for code, path in ended:
        if code:
            raise ValueError(f"a process ended with {code}; the end of {path} says why.")


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, str(_script(words[0])), *words[1:]]


def _script(name: str) -> Path:
    return Path(__file__).resolve().parent.parent / name


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"
