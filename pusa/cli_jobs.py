"""`pusa generate --jobs`: a list of videos, by any number of processes, again and again until all
are there."""

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pusa import cli_generate, entry

log = logging.getLogger(__name__)
GROUPS = ("model", "task", "sampler", "memory")
FIXED = ("output", "save", "name", "paths", "chain")  # what no cell can change as a whole


@dataclass(frozen=True)
class Ready:
    """A job whose config is whole and checked. saved: files that are wanted beside the video."""

    cfg: DictConfig
    media: tuple[str, ...]
    saved: tuple[Path, ...]

    @property
    def output(self) -> Path:
        return Path(self.cfg.output)

    def loads(self) -> str:
        """What has to be loaded for it: jobs that agree in this share a studio."""
        plain = entry.plain_config(self.cfg)
        return json.dumps([plain[key] for key in ("model", "lora", "strength", "memory")])


def run_jobs(options: argparse.Namespace) -> None:
    """Make what is missing. ValueError that lists the jobs that cannot be made, before the first
    one is; one that fails on the way is told at the end, when all others are there."""
    from pusa.pipelines.parts import read_part

    jobs = read_part(options.part).of(_checked(options))
    weights: dict[str, dict[str, str]] = {}
    todo = [job for job in jobs if options.overwrite or not _is_done(job, weights)]
    log.info("%d videos, %d of them are there already.", len(jobs), len(jobs) - len(todo))
    failed = _make(sorted(todo, key=Ready.loads))
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(todo)} videos failed:\n  " + "\n  ".join(failed)
            + "\nThe same command tries them again."
        )  # fmt: skip
    log.info("all are in %s.", options.output)


def _checked(options: argparse.Namespace) -> list[Ready]:
    from pusa.pipelines.jobs import read_jobs
    from pusa.pipelines.loras import parse_lora
    from pusa.pipelines.produce import plan, saved_files

    bases: dict[tuple, DictConfig] = {}
    ready, bad = [], []
    for job in read_jobs(options.jobs):
        try:
            cfg = _config(options, job.values, bases)
            cfg.output = str(Path(options.output) / f"{job.name}.mp4")
            what = cli_generate.describe(cfg)
            planned = plan(entry.build(cfg.model), what)
            for file in {parse_lora(text)[1] for text in what.lora}:
                if not Path(file).exists():
                    raise ValueError(f"{file}: no such LoRA; check the path.")
            entry.build(cfg.sampler)
            entry.build(cfg.memory)
            ready.append(Ready(cfg, tuple(planned.media), tuple(saved_files(what))))
        except (*entry.USER_ERRORS, entry.InstantiationException) as error:
            bad.append(f"{options.jobs}:{job.line}: {entry.explain(entry.root_cause(error))}")
    if bad:
        raise ValueError("\n  ".join([f"{len(bad)} jobs cannot be made:", *bad]))
    return ready


def _config(
    options: argparse.Namespace, values: Mapping[str, Any], bases: dict[tuple, DictConfig]
) -> DictConfig:
    """The flags' config with a row's values; a row wins."""
    groups = {key: str(values[key]) for key in GROUPS if key in values}
    key = tuple(sorted(groups.items()))
    if key not in bases:
        chosen = vars(options) | groups
        if "task" in groups:
            chosen["task"] = [groups["task"]]
        bases[key] = cli_generate.compose(argparse.Namespace(**chosen))
    cfg = bases[key].copy()
    for column, value in values.items():
        if column in GROUPS:
            continue
        parent, _, leaf = column.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if column in FIXED or not isinstance(node, DictConfig) or leaf not in list(node.keys()):
            raise ValueError(f"column {column!r} is no key of configs/generate.yaml.")
        OmegaConf.update(cfg, column, _typed(leaf, value))
    return cfg


def _typed(key: str, value: Any) -> Any:
    """A cell of a .csv as YAML would read it; texts stay texts, and prompts are never anything
    else."""
    from pusa.pipelines.loras import parse_strength

    if key.endswith("prompt"):
        return [str(v) for v in value] if isinstance(value, list) else str(value)
    if not isinstance(value, str):
        return value
    if key == "strength":
        return parse_strength(value)
    if value in ("true", "false", "null") or value.startswith("["):
        return json.loads(value)
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() and "." not in value else number


def _is_done(job: Ready, weights: dict[str, dict[str, str]]) -> bool:
    """Whether the job's video is there, as it would be made now, with all that is to be saved.

    weights: digests of models and LoRAs by `Ready.loads`, each looked up once. ValueError if it was
    made otherwise.
    """
    from pusa.data.hashing import file_digest
    from pusa.pipelines.sidecar import read_made

    made = read_made(job.output)
    if made is None:
        return False
    changes = entry.differences(dict(made.recipe), cli_generate.recipe_of(job.cfg))
    if not changes:  # of other weights one knows already that they are others
        if (key := job.loads()) not in weights:
            weights[key] = _weights(job)
        now = weights[key] | {file: file_digest(file) for file in job.media}
        changes = [f"{file}: other contents" for file in now if made.inputs.get(file) != now[file]]
    if changes:
        raise ValueError(
            f"{job.output}: was made with other settings; choose another folder or name, or "
            "--overwrite:\n  " + "\n  ".join(changes)
        )
    return made.whole and all(path.is_file() for path in job.saved)


def _weights(job: Ready) -> dict[str, str]:
    from pusa.pipelines.loras import place_loras
    from pusa.pipelines.sidecar import weights_digests

    model, what = entry.build(job.cfg.model), cli_generate.describe(job.cfg)
    model.ensure_files()
    loras = place_loras(what.lora, model.experts(), what.strength)
    return weights_digests(model, [lora.adapter.source for lora in loras])


def _make(todo: list[Ready]) -> list[str]:
    """Make videos in turn; why some could not be made."""
    from pusa.pipelines.loras import place_loras
    from pusa.pipelines.studio import Studio

    failed, studio, loaded = [], None, ""
    for number, job in enumerate(todo, 1):
        log.info("%d of %d: %s", number, len(todo), job.output)
        try:
            if studio is None or job.loads() != loaded:
                studio = None  # the last one's weights go before the next one's come
                model, what = entry.build(job.cfg.model), cli_generate.describe(job.cfg)
                model.ensure_files()
                loras = place_loras(what.lora, model.experts(), what.strength)
                studio, loaded = Studio(model, loras, entry.build(job.cfg.memory)), job.loads()
            cli_generate.make(job.cfg, studio=studio)
        except (ValueError, OSError, OmegaConfBaseException, torch.OutOfMemoryError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a full disk is no fault of one job
            if isinstance(error, torch.OutOfMemoryError):
                studio = None  # what it left where
            failed.append(f"{job.output}: {entry.explain(error)}")
            log.warning("%s", failed[-1])
    return failed
