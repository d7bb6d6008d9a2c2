"""`pusa export` and `pusa replay`: a training run's checkpoints outside of training."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pusa import entry

log = logging.getLogger(__name__)
OWN = ("pusa.", "torch.optim.", "lightning.")  # what a run's configuration may build


def add_commands(commands) -> None:
    export = commands.add_parser(
        "export", help="write the LoRA (or model) of a run's checkpoint, also of an unfinished run"
    )
    export.add_argument("folder", help="a run's folder, such as outputs/NAME")
    export.add_argument("output", help="the folder to write lora.safetensors to")
    export.add_argument(
        "--checkpoint", default="last", metavar="WHICH",
        help="last, best (see callbacks.checkpoints.monitor), or a step (%(default)s)",
    )  # fmt: skip
    export.set_defaults(run=_export)
    again = commands.add_parser(
        "replay", help="run a step that was not finite once more and say where it begins"
    )
    again.add_argument("folder", help="a run's folder, such as outputs/NAME")
    again.add_argument("--step", type=int, help="one of the recorded steps (the first of them)")
    again.set_defaults(run=_replay)


def _module(run: Path) -> Any:
    """The training module of a run, from the configuration in its folder."""
    from pusa.training.run import CONFIG

    path = run / CONFIG
    if not path.is_file():
        raise ValueError(f"{run}: holds no {CONFIG}; name a run's folder, such as outputs/NAME.")
    cfg = OmegaConf.create(json.loads(path.read_text()))
    for target in _targets(OmegaConf.to_container(cfg)):
        if not target.startswith(OWN):
            raise ValueError(f"{path}: names {target}, which no run of ours builds; not loaded.")
    module = entry.build(cfg.module)
    module.precision = cfg.trainer.get("precision", "32-true")
    return module


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for value in node.values() for target in _targets(value)]
    if isinstance(node, list):
        return [target for value in node for target in _targets(value)]
    return []


def _export(options: argparse.Namespace) -> None:
    from pusa.training.replay import choose, restore
    from pusa.training.run import CONFIG

    run = Path(options.folder)
    saved = choose(run, options.checkpoint)
    module = _module(run)
    restore(module, saved)
    recipe = {"steps": saved.step, "config": json.loads((run / CONFIG).read_text())}
    log.info("wrote %s, as it was after step %d", module.export(Path(options.output), recipe),
             saved.step)  # fmt: skip


def _replay(options: argparse.Namespace) -> None:
    from pusa.training.replay import bad_steps, choose, replay, restore

    run = Path(options.folder)
    recorded = [b for b in bad_steps(run) if options.step in (None, b.step)]
    if not recorded:
        known = ", ".join(str(b.step) for b in bad_steps(run)) or "none"
        raise ValueError(f"{run}: no such step is recorded; there are {known}.")
    step = recorded[0].step
    saved = choose(run, before=step)
    module = _module(run)
    restore(module, saved)
    log.info("with the weights of step %d:", saved.step)
    for bad in (b for b in recorded if b.step == step):
        for line in replay(module, bad):
            log.info("%s", line)
