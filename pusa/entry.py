"""What every command shares: compose a config, check it, run, one clear message on failure.

The roof's own room: only here, in cli.py and in the top-level scripts are hydra and omegaconf used.
"""

import errno
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pusa.atomic import write_json

log = logging.getLogger(__name__)
USER_ERRORS = (ValueError, OSError, OmegaConfBaseException, ImportError)


def guarded(action: Callable[[], Any]) -> None:
    """Run; a fault of the input ends with one message on stderr and exit code 1.

    PUSA_TRACEBACK=1 shows where it came from. Programming errors keep their traceback.
    """
    try:
        action()
    except KeyboardInterrupt:
        if os.environ.get("PUSA_TRACEBACK"):
            raise
        print("stopped.", file=sys.stderr)
        sys.exit(130)
    except (*USER_ERRORS, InstantiationException) as error:
        cause = root_cause(error)
        if os.environ.get("PUSA_TRACEBACK") or not isinstance(cause, (*USER_ERRORS, TypeError)):
            raise
        print(f"error: {explain(cause)}", file=sys.stderr)
        sys.exit(1)


def root_cause(error: BaseException) -> BaseException:
    """The first error of a chain that hydra wrapped."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def explain(error: BaseException) -> str:
    """The message of an error, with a remedy where the system's own lacks one."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        writing = error.errno in (
            errno.ENOSPC,
            errno.EROFS,
            errno.EACCES,
            errno.EDQUOT,
            errno.ENOTDIR,
        )
        remedy = "; free space, or choose another folder (paths.*)" if writing else ""
        return f"{where}{error.strerror}{remedy}."
    strange = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if isinstance(error, TypeError) and strange:
        return f"{strange[2]}: no such config key of {strange[1]}; see --help for the keys."
    return str(error).strip() or repr(error)


def check_additions(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """ValueError for `+key=value` where nothing would read the key.

    Additions are allowed below a node with `_target_`, whose constructor checks its arguments.
    """
    for override in overrides:
        if not override.startswith("+"):
            continue
        key = override.lstrip("+").split("=")[0]
        words = key.split(".")
        if words[0] in ("experiment", "variant", "hydra"):
            continue
        above = (OmegaConf.select(cfg, ".".join(words[:n])) for n in range(1, len(words)))
        if not any(isinstance(node, DictConfig) and "_target_" in node for node in above):
            raise ValueError(
                f"{key}: no such config key, nothing reads it; see --help for the keys."
            )


def prepare_process(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Checks and settings of the process before any work. overrides: as they were typed."""
    if cfg.name is None:
        known = sorted(p.stem for p in (config_folder() / "experiment").glob("*.yaml"))
        raise ValueError(f"name an experiment: experiment={'|'.join(known)}")
    check_additions(cfg, overrides)
    quiet_libraries()
    if cfg.get("num_threads"):
        torch.set_num_threads(cfg.num_threads)


def quiet_libraries() -> None:
    """Silence the start-up notes and advice of libraries; their errors stay."""
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if not torch.cuda.is_available() else "cuda")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("DeepSpeed", "deepspeed", "httpx", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Advice that does not hold here: data is in memory, steps are counted.
    for pattern in (".*does not have many workers.*", ".*treespec.*", ".*LeafSpec.*",
                    ".*ran out of data.*", ".*mid-epoch.*", ".*lr_scheduler.step.*",
                    ".*smaller than the logging interval.*", ".*sync_dist=True.*",
                    ".*`srun` command is available.*"):  # fmt: skip
        warnings.filterwarnings("ignore", pattern)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def typed_overrides() -> list[str]:
    """The overrides of the running hydra command."""
    return list(HydraConfig.get().overrides.task)


def plain_config(cfg: DictConfig) -> dict:
    """The resolved config as plain values."""
    return OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore[reportReturnType]


def run_config(cfg: DictConfig) -> dict:
    """The part of a config that decides a run's result."""
    harmless = ("resume", "allow", "overwrite", "num_threads", "logger", "paths", "callbacks",
                "study")  # fmt: skip
    plain = plain_config(cfg)
    kept = {key: value for key, value in plain.items() if key not in harmless}
    ema = (plain.get("callbacks") or {}).get("ema")
    return kept | ({"ema_decay": ema["decay"]} if ema and ema["decay"] else {})


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines `key: old -> new` where two plain configs differ."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name, a, b = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a} -> {b}")
    return lines


def progress_bars(description: str):
    """A wrapper that shows a bar with this description on stderr."""
    from tqdm import tqdm

    return lambda items: tqdm(items, desc=description, leave=False, mininterval=0.5)


class Report(Protocol):
    """Findings: whether all is well, in words, and as plain values."""

    @property
    def ok(self) -> bool: ...

    def text(self) -> str: ...

    def to_json(self) -> dict: ...


def show(report: Report, json_file: str | None) -> None:
    """Log a report, or write it as JSON ("-": print that instead); exit code 1 if it is not ok."""
    if json_file == "-":
        print(json.dumps(report.to_json(), indent=2))
    else:
        log.info("%s", report.text())
        if json_file is not None:
            write_json(json_file, report.to_json())
    if not report.ok:
        sys.exit(1)


def build(node: Any) -> Any:
    """Instantiate a node that holds `_target_` entries; lists and dicts become plain ones."""
    return instantiate(node, _convert_="all")


def config_folder() -> Path:
    """configs/ of the checkout, or the copy that ships inside the installed package."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"
