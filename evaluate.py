"""Evaluate: `python evaluate.py experiment=tiny_vta [suite=photos|vbench_i2v|folder|tasks]`.

See configs/evaluate.yaml and configs/suite.
"""

import logging
import sys
from collections.abc import Sequence
from functools import partial

import hydra
from omegaconf import DictConfig

from pusa import entry
from pusa.evaluation.benchmark import Benchmark, evaluate_benchmark
from pusa.evaluation.lanes import Tools
from pusa.evaluation.replica import evaluate_replica
from pusa.evaluation.study import evaluate_study
from pusa.evaluation.study_report import write_report
from pusa.evaluation.tasks import TaskSuite, evaluate_tasks
from pusa.pipelines.parts import read_part

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Generate the suite with every row, score, write tables and page."""
    entry.prepare_process(cfg, overrides)
    if "published" in cfg.suite and "entries" not in cfg.suite:
        raise ValueError("--published: no table of the paper is like this suite; use suite=photos, "
                         "vbench_i2v or folder.")  # fmt: skip
    part = read_part(cfg.part)
    model, sampler, suite = map(entry.build, (cfg.model, cfg.sampler, cfg.suite))
    shared = {"name": cfg.name, "progress": entry.progress_bars, "part": part}
    if cfg.study is not None:
        del shared["name"]
        study = entry.build(cfg.study)
        if evaluate_study(model, sampler, study, suite.source, **shared):
            page = write_report(study.tables, study.page)
        else:
            page = None
    elif isinstance(suite, TaskSuite):
        page = evaluate_tasks(model, sampler, suite, **shared)
    elif isinstance(suite, Benchmark):
        memory, configs = entry.build(cfg.memory), entry_configs(cfg, suite)
        tools = Tools(model, entry.build(cfg.task), sampler, memory, configs)
        page = evaluate_benchmark(tools, suite, overwrite=cfg.overwrite, **shared)
    else:
        page = evaluate_replica(model, entry.build(cfg.task), sampler, suite, **shared)
    if page is None:
        log.info("part %d/%d is done; without part= all are put together.", part.index, part.count)
    else:
        log.info("the page: %s", page)


def entry_configs(cfg: DictConfig, suite: Benchmark) -> dict[str, dict]:
    """What the sidecars of each row's videos say of its model, sampler and memory."""
    plain = entry.plain_config(cfg)
    rows = {str(name): row for name, row in plain["suite"]["entries"].items()}
    shared = {key: plain[key] for key in ("model", "sampler", "memory")}
    configs = {}
    for name, row in suite.entries.items():
        own = rows[name].get("model") or shared["model"]
        weights = {} if row.weights is None else {"weights": row.weights}
        steps = {} if row.num_steps is None else {"num_steps": row.num_steps}
        changed = {"model": own | weights, "sampler": shared["sampler"] | steps}
        configs[name] = shared | changed
    return configs


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    entry.guarded(partial(evaluate, cfg, entry.typed_overrides()))


if __name__ == "__main__":
    # Flags as other programs have them, beside hydra's own.
    sys.argv[1:] = ["++suite.published=true" if a == "--published" else a for a in sys.argv[1:]]
    main()
