"""`pusa cost`: what an evaluation costs from the very beginning, before anything is rented."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pusa import entry
from pusa.cli_plan import add_gpu_options, cluster_of, planner_of, read_job

NOTES = (
    "a training counts up to the last checkpoint that a row needs; trainer.max_steps ends it there",
    "a video is made on one GPU, and all GPUs have videos to make (part=I/N)",
)


def add_commands(commands) -> None:
    cost = commands.add_parser(
        "cost",
        help="hours and dollars of an evaluation: its rows' trainings, and its videos",
        description="Adds up every training that the rows of an evaluation need, once, and the "
        "sampling of their videos, by the arithmetic of `pusa plan`. Nothing is loaded or "
        "downloaded. Exit code 1: a training does not fit the GPUs; `pusa plan` says what does.",
    )
    cost.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE",
        help="experiment=NAME suite=NAME and further overrides of evaluate.py, before the options; "
        "those of the model hold for the trainings, too",
    )  # fmt: skip
    cost.add_argument("--gpus", type=int, default=8, help="(%(default)s)")
    add_gpu_options(cost)
    cost.add_argument("--json", metavar="FILE", help="write all figures; - prints them instead")
    cost.set_defaults(run=_cost)


def _cost(options: argparse.Namespace) -> None:
    from pusa.cli import compose_config
    from pusa.evaluation.benchmark import Benchmark
    from pusa.evaluation.workload import workloads
    from pusa.training.bill import Bill, SamplingItem

    cfg = compose_config("evaluate", ["name=cost", *options.overrides])
    entry.check_additions(cfg, options.overrides)
    cluster = cluster_of(options, options.gpus)
    bench, model, sampler = map(entry.build, (cfg.suite, cfg.model, cfg.sampler))
    if not isinstance(bench, Benchmark):
        raise ValueError("this suite has no rows to cost; use suite=photos, vbench_i2v or folder.")
    ledger = _Ledger(cfg, options.overrides, cluster)
    size = (model.num_frames, model.height, model.width)
    samplings = []
    for row in workloads(bench, model, sampler, model.num_frames):
        lora = ledger.lora_of(row.entry)
        flops = ledger.pass_flops(row.entry, row.model, lora, size)
        samplings.append(SamplingItem(row.name, row.num_videos, row.passes, flops, cluster))
    words = [w for w in options.overrides if w.startswith(("experiment=", "suite="))]
    name = " ".join(w.partition("=")[2] for w in words) or model.name
    entry.show(Bill(name, cluster, ledger.items(), samplings, NOTES), options.json)


@dataclass
class _Ledger:
    """The trainings that have come up, by the folder of their run, each with its longest stretch.

    cfg: of the evaluation, overrides: as it was typed.
    """

    cfg: DictConfig
    overrides: Sequence[str]
    cluster: Any
    _runs: dict[str, tuple[str, DictConfig, int]] = field(default_factory=dict)
    _flops: dict[tuple, float] = field(default_factory=dict)

    def lora_of(self, row) -> Any:
        """What is on the row's network, None if nothing or if it is not trained here; notes the
        training."""
        from pusa.cli import compose_config

        run, own = row.trained_by, Path(self.cfg.paths.run)
        named = [*row.lora, *([row.weights] if row.weights else [])]
        if run is not None:
            shared = [w for w in self.overrides if w.lstrip("+").startswith(("model=", "model."))]
            words = run.overrides.split() + (shared if row.model is None else [])
            cfg = self._runs[run.folder][1] if run.folder in self._runs else None
            cfg = cfg or compose_config("train", ["name=cost", *words])
            self._note(run.folder, run.overrides, cfg, row.checkpoint)
        elif any(Path(text) == own or own in Path(text).parents for text in named):
            cfg = self.cfg
            typed = " ".join(w for w in self.overrides if not w.startswith(("suite", "memory")))
            self._note(str(own), typed, cfg, cfg.trainer.max_steps)
        else:
            return None
        return entry.build(cfg.lora)

    def _note(self, folder: str, typed: str, cfg: DictConfig, steps: int) -> None:
        before = self._runs.get(folder, (typed, cfg, 0))[2]
        self._runs[folder] = typed, cfg, max(before, steps)

    def pass_flops(self, row, model, lora, size: tuple[int, int, int]) -> float:
        from pusa.training.bill import pass_flops

        key = (model.name, row.model is None, lora, size)
        if key not in self._flops:
            self._flops[key] = pass_flops(model, lora, size)
        return self._flops[key]

    def items(self) -> list[Any]:
        """A bill's. ValueError for a training that cannot be planned."""
        from pusa.training.bill import TrainingItem

        planners: dict[str, Any] = {}
        items = []
        for typed, cfg, steps in self._runs.values():
            model = entry.build(cfg.model)
            job = replace(read_job(cfg, None, self.cluster.count), max_steps=steps)
            key = json.dumps([entry.plain_config(cfg.model), job.size])
            if key not in planners:
                planners[key], _ = planner_of(model, job.size)
            estimate = planners[key].estimate(job, self.cluster)
            items.append(TrainingItem(typed, estimate, len(model.experts())))
        return items
