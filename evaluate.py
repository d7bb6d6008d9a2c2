"""Evaluate: `python evaluate.py experiment=tiny_vta [suite=tasks]`.

See configs/evaluate.yaml and configs/suite.
"""

import logging
from collections.abc import Sequence
from functools import partial

import hydra
from omegaconf import DictConfig

from pusa import entry
from pusa.evaluation.replica import evaluate_replica
from pusa.evaluation.tasks import TaskSuite, evaluate_tasks
from pusa.pipelines.parts import read_part

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Generate the suite with the base and the trained LoRA, score, write table and page."""
    entry.prepare_process(cfg, overrides)
    part = read_part(cfg.part)
    model, sampler, suite = map(entry.build, (cfg.model, cfg.sampler, cfg.suite))
    shared = {"name": cfg.name, "progress": entry.progress_bars, "part": part}
    if isinstance(suite, TaskSuite):
        page = evaluate_tasks(model, sampler, suite, **shared)
    else:
        page = evaluate_replica(model, entry.build(cfg.task), sampler, suite, **shared)
    if page is None:
        log.info("part %d/%d is done; without part= all are put together.", part.index, part.count)
    else:
        log.info("the page: %s", page)


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    entry.guarded(partial(evaluate, cfg, entry.typed_overrides()))


if __name__ == "__main__":
    main()
