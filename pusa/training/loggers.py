"""Loggers: CSV always; wandb offline, or online when the user is logged in."""

import os
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

WANDB_MODES = ("auto", "online", "offline", "off")


def build_loggers(
    folder: str | Path, project: str, name: str, wandb: str = "auto", config: Mapping | None = None
) -> list[Logger]:
    """CSV in `metrics/version_N/` (a new N whenever a run is resumed), and wandb as asked.

    wandb: "auto" is online if an API key is at hand (WANDB_API_KEY or ~/.netrc) and offline
    otherwise; "off" leaves it out. ValueError for another word.
    """
    if wandb not in WANDB_MODES:
        raise ValueError(f"logger.wandb={wandb!r} is unknown; use one of {', '.join(WANDB_MODES)}.")
    loggers: list[Logger] = [CSVLogger(folder, name="metrics")]
    if wandb == "off":
        return loggers
    offline = wandb == "offline" or (wandb == "auto" and not wandb_key_at_hand())
    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(name=name, project=project, save_dir=str(folder), offline=offline)
    logger.log_hyperparams(dict(config or {}))
    return [*loggers, logger]


def wandb_key_at_hand() -> bool:
    """Whether wandb could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "api.wandb.ai" in netrc.read_text()
    except OSError:
        return False
