"""Train: `python train.py experiment=tiny_vta`. See configs/train.yaml for what can be set."""

import logging
from collections.abc import Sequence

import hydra
import lightning as L
from omegaconf import DictConfig

from pusa import entry
from pusa.pipelines.prepare import prepare
from pusa.training.callbacks import Export
from pusa.training.loggers import build_loggers
from pusa.training.run import RunFolder, fit

log = logging.getLogger(__name__)


def train(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Prepare the data, fit, export; does nothing if the run is finished already."""
    entry.prepare_process(cfg, overrides)
    for group in ("lora", "timesteps", "task", "sampler"):
        entry.build(cfg[group])  # refuses bad values before any work
    model, settings = entry.build(cfg.model), entry.build(cfg.data.encode)
    recipe = entry.run_config(cfg) | {"inputs": model.input_marks()}
    folder = RunFolder(cfg.paths.run)
    if folder.finished(recipe, cfg.overwrite):
        log.info("%s is finished: %s (overwrite=true trains anew).", folder.path, folder.result())
        return
    checkpoint = folder.open(recipe, cfg.resume, cfg.overwrite, entry.differences)
    sources = [entry.build(node) for node in (cfg.data.train, cfg.data.heldout) if node is not None]
    indices = prepare(sources, cfg.paths.cache, model, settings, entry.progress_bars)
    L.seed_everything(cfg.seed, workers=True, verbose=False)  # for what libraries draw
    callbacks = [entry.build(node) for node in cfg.callbacks.values() if node is not None]
    data = entry.build(cfg.data.batches)
    if settings is not None:
        data.indices = indices
        if data.heldout not in indices:  # nothing is held out
            data.heldout = None
    loggers = build_loggers(cfg.paths.run, name=cfg.name, config=recipe, **cfg.logger)
    fit(
        module=entry.build(cfg.module),
        data=data,
        trainer=entry.build(cfg.trainer)(
            callbacks=[*callbacks, Export(folder.path, recipe)], logger=loggers
        ),
        folder=folder,
        checkpoint=checkpoint,
    )


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    entry.guarded(lambda: train(cfg, entry.typed_overrides()))


if __name__ == "__main__":
    main()
