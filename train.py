"""Train: `python train.py experiment=tiny_vta`. See configs/train.yaml for what can be set."""

import copy
import gc
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
import lightning as L
from omegaconf import DictConfig

from pusa import entry
from pusa.pipelines.prepare import prepare
from pusa.training import ranks
from pusa.training.callbacks import Export
from pusa.training.checkpoints import Checkpoints, Saved, read_saved
from pusa.training.loggers import build_loggers, close_wandb
from pusa.training.run import RunFolder, fit
from pusa.training.sharding import STRATEGIES, check_storage

log = logging.getLogger(__name__)


def train(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Prepare the data, fit, export; each expert of a two-expert model after the other.

    Does nothing for what is finished already.
    """
    entry.prepare_process(cfg, overrides)
    if cfg.study is not None and "/None/" in cfg.name:
        raise ValueError(
            f"study {cfg.study.name} is several runs: train.py -m for all of them, or name one, "
            "variant=NAME of configs/variant."
        )
    ranks.begin_command()
    for leg in legs(cfg):
        train_one(leg)
        close_wandb()
        gc.collect()  # the first expert's weights go before the second's come


def legs(cfg: DictConfig) -> Iterator[DictConfig]:
    """The runs that a config means: one, or outputs/<name>/high and outputs/<name>/low."""
    model = entry.build(cfg.model)
    noise_range = cfg.get("noise_range", "full")
    if noise_range not in ("full", "expert"):
        raise ValueError(f"noise_range={noise_range} is unknown; use full or expert.")
    for expert in model.experts():
        leg = copy.deepcopy(cfg)
        if len(model.experts()) > 1:
            leg.name = f"{cfg.name}/{expert}"
            leg.model.expert = expert
        if noise_range == "expert":
            leg.timesteps.sigma_range = list(model.noise_range(expert))
        yield leg


def train_one(cfg: DictConfig) -> None:
    """One run on every process that was started for it."""
    ranks.hush_others()
    for group in ("lora", "timesteps", "task", "sampler"):
        entry.build(cfg[group])  # refuses bad values before any work
    strategy = STRATEGIES.get(cfg.strategy.name)
    check_storage(
        cfg.model.get("storage"), entry.build(cfg.lora), strategy.stage if strategy else 0
    )
    answer = ranks.first_decides(lambda: decide(cfg), cfg.name, cfg.trainer.get("num_nodes", 1))
    if answer["finished"]:
        return
    recipe, folder = answer["recipe"], Path(cfg.paths.run)
    saved = read_saved(Path(answer["checkpoint"])) if answer["checkpoint"] else None
    if answer["weights"] is not None:
        cfg.model.weights = answer["weights"]
    L.seed_everything(cfg.seed, workers=True, verbose=False)  # for what libraries draw
    callbacks = [entry.build(node) for node in cfg.callbacks.values() if node is not None]
    callbacks = [*callbacks, Export(folder, recipe)]
    # Checkpoints hold what the other callbacks know after the same step.
    callbacks.sort(key=lambda callback: isinstance(callback, Checkpoints))
    loggers = build_loggers(
        folder, name=cfg.name, config=recipe, start_step=saved.step if saved else 0, **cfg.logger
    )
    trainer = entry.build(cfg.trainer)(callbacks=callbacks, logger=loggers, plugins=ranks.plugins())
    if cfg.strategy.name == "single" and trainer.world_size > 1:
        raise ValueError(
            f"strategy=single is one process, there are {trainer.world_size}; choose "
            "strategy=ddp, zero1, zero2 or zero3."
        )
    fit(entry.build(cfg.module), batches(cfg, answer), trainer, RunFolder(folder), saved)


def decide(cfg: DictConfig) -> dict:
    """What the first process finds out for all: whether to train, from where, on which data."""
    model, settings = entry.build(cfg.model), entry.build(cfg.data.encode)
    model.ensure_files()
    recipe = entry.run_config(cfg) | {"inputs": model.input_marks()}
    folder = RunFolder(cfg.paths.run)
    again = folder.came_back()
    resume, overwrite = "auto" if again else cfg.resume, cfg.overwrite and not again
    sources = [entry.build(node) for node in (cfg.data.train, cfg.data.heldout) if node is not None]
    if folder.finished(recipe, overwrite):
        log.info("%s is finished: %s (overwrite=true trains anew).", folder.path, folder.result())
        return {"finished": True}
    saved: Saved | None = folder.open(recipe, resume, overwrite, entry.differences, cfg.allow)
    indices = prepare(sources, cfg.paths.cache, model, settings, entry.progress_bars)
    weights = None
    if cfg.trainer.get("devices", 1) != 1:  # several processes of a machine map one copy
        dtype = None if cfg.lora is not None else "float32"
        weights = model.ready_weights(Path(cfg.paths.cache) / "weights", dtype)
    return {
        "finished": False,
        "recipe": recipe,
        "checkpoint": str(saved.folder) if saved else None,
        "indices": indices,
        "weights": weights,
    }


def batches(cfg: DictConfig, answer: dict) -> L.LightningDataModule:
    data = entry.build(cfg.data.batches)
    if cfg.data.encode is not None:
        data.indices = answer["indices"]
        if data.heldout not in data.indices:  # nothing is held out
            data.heldout = None
    return data


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    entry.guarded(lambda: train(cfg, entry.typed_overrides()))


if __name__ == "__main__":
    main()
