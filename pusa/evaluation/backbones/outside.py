"""What others wrote and users installed: modules out of folders, and checkpoints.

Nothing here trusts a file of weights: what cannot be read without running code in it is refused.
"""

import importlib
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def module_in(folder: Path, name: str) -> ModuleType:
    """Import a module of a program that expects its own folder on sys.path.

    Its modules (often one called `utils`) neither find nor replace others of the same name.
    ImportError, with the folder, if it cannot be imported.
    """
    with _alone(folder):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"{folder}: cannot import {name} ({error}); install what its README asks for."
            ) from error


def module_of(package: Path, name: str) -> ModuleType:
    """Import a module of an installed package without running the package's __init__."""
    alias = f"_{package.name}_without_init"
    if alias not in sys.modules:
        parent = ModuleType(alias)
        parent.__path__ = [str(package)]
        sys.modules[alias] = parent
    return importlib.import_module(f"{alias}.{name}")


def checkpoint(path: Path) -> dict[str, Any]:
    """What a .pt, .pth or .pkl holds, on the CPU. ValueError if reading it would run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than tensors and is not opened ({str(error).splitlines()[0]}); "
            "where you trust it, save its state dict alone under this name."
        ) from error


def without_prefix(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """State dict of a network that was saved while wrapped for data parallelism."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    names = {path.stem for path in folder.iterdir()}

    def taken() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] in names]

    others = {name: sys.modules.pop(name) for name in taken()}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in taken():
            del sys.modules[name]
        sys.modules.update(others)
