"""The house rules of the design: imports go down the stairs, pieces stay small and well named.

Every rule is a function from (path, source) to a list of complaints. It runs over the package, and
over a small offender, so that a rule that can no longer fail is noticed.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Room -> what it may import of pusa besides itself: a room, or one module of a room.
STAIRS = {
    "types": set(),
    "rng": set(),
    "atomic": set(),
    "diffusion": {"types"},
    "models": {"types"},
    "weights": {
        "types",
        "atomic",
        "models.variants",
        "models.gelu",
        "models.precision",
        "models.stored",
    },
    "data": {"types", "rng", "atomic"},
    "metrics": set(),
    "pipelines": {"diffusion", "models", "weights", "data", "types", "rng", "atomic"},
    "training": {
        "pipelines",
        "weights",
        "models.base",
        "models.stored",
        "models.tiny_vae",
        "diffusion",
        "data",
        "types",
        "rng",
        "atomic",
    },
    # Pages over pipelines: what cli_demo serves, with configs handed in by it.
    "demo": {"pipelines", "data"},
    "evaluation": {
        "pipelines",
        "metrics",
        "models.base",
        "models.experts",
        "data",
        "diffusion",
        "types",
        "rng",
        "atomic",
    },
}
# Adapters over other people's networks, whose files have key names of their own.
FILE_STAIRS = {
    "pusa/models/vae.py": {"weights.lazy", "weights.vae_keys"},
    "pusa/models/text.py": {"weights.lazy", "weights.text_keys"},
}
ROOF = {
    "pusa/cli.py",
    "pusa/cli_data.py",
    "pusa/cli_generate.py",
    "pusa/cli_jobs.py",
    "pusa/cli_weights.py",
    "pusa/cli_cache.py",
    "pusa/cli_track.py",
    "pusa/cli_train.py",
    "pusa/cli_plan.py",
    "pusa/cli_cost.py",
    "pusa/cli_published.py",
    "pusa/cli_reproduce.py",
    "pusa/cli_schedule.py",
    "pusa/cli_demo.py",
    "pusa/cli_evaluate.py",
    "pusa/entry.py",
    "train.py",
    "evaluate.py",
}  # may import anything

# Library -> the only files that may import it.
DOORS = {
    "hydra": ROOF,
    "omegaconf": ROOF,
    "decord": {"pusa/data/readers.py"},
    "av": {"pusa/data/packets.py", "pusa/data/readers.py", "pusa/data/video.py"},
    "peft": {"pusa/weights/lora.py"},
    "gradio": {"pusa/demo/page.py", "pusa/demo/server.py"},
    "torchvision": set(),
}
DRAWERS = {"utils", "util", "helpers", "helper", "misc", "common"}


def imported(path: str, source: str) -> Iterator[str]:
    """Full dotted names that a file imports, wherever the import stands in it.

    `from pusa.models import base` gives "pusa.models.base"; relative forms are resolved and
    `import_module("pusa.x")` with a literal name counts too.
    """
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, node.module] if node.module else base
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def upward_imports(path: str, source: str) -> list[str]:
    if path in ROOF or not path.startswith("pusa/") or path == "pusa/__init__.py":
        return []
    room = path.split("/")[1].removesuffix(".py")
    if room not in STAIRS:
        return [f"{path} stands in no room of the stairs; add pusa/{room} to them or move it."]
    allowed = {room} | STAIRS[room] | FILE_STAIRS.get(path, set())
    complaints = []
    for name in imported(path, source):
        if name.split(".")[0] != "pusa":
            continue
        inner = name.split(".")[1:]
        if not any(inner[: len(step.split("."))] == step.split(".") for step in allowed):
            complaints.append(f"{path} imports {name}; pusa/{room} may import {sorted(allowed)}.")
    return complaints


def wrong_doors(path: str, source: str) -> list[str]:
    names = {name.split(".")[0] for name in imported(path, source)}
    return [
        f"{path} imports {name}; only {sorted(DOORS[name]) or 'nobody'} may."
        for name in sorted(names & DOORS.keys())
        if path not in DOORS[name]
    ]


def torchvision_imports(path: str, source: str) -> list[str]:
    names = {name.split(".")[0] for name in imported(path, source)}
    return [f"{path} imports torchvision; this project does without."] * ("torchvision" in names)


def code_in_init(path: str, source: str) -> list[str]:
    if not path.endswith("__init__.py"):
        return []
    return [
        f"{path}:{node.lineno} holds code; an __init__.py is empty or re-exports."
        for node in ast.parse(source).body
        if not isinstance(node, (ast.Import, ast.ImportFrom))
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    ]


def drawers(path: str, source: str) -> list[str]:
    found = DRAWERS & set(path.removesuffix(".py").split("/"))
    return [f"{path} is called {name}; name it for the noun it holds." for name in sorted(found)]


def long_files(path: str, source: str) -> list[str]:
    lines = len(source.splitlines())
    return [f"{path} has {lines} lines; {MAX_FILE_LINES} at most."] * (lines > MAX_FILE_LINES)


def long_functions(path: str, source: str) -> list[str]:
    complaints = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                where = f"{path}:{node.lineno} {node.name}"
                complaints.append(f"{where} has {lines} lines; {MAX_FUNCTION_LINES} at most.")
    return complaints


PACKAGE_RULES = [upward_imports, wrong_doors, code_in_init, drawers, long_files, long_functions]
Rule = Callable[[str, str], list[str]]


def sources(*patterns: str) -> list[tuple[str, str]]:
    files = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
    return [(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in files]


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule):
    files = sources("pusa/**/*.py", "*.py")
    assert len(files) > 10, f"only {len(files)} files found below {ROOT}"
    complaints = [complaint for path, source in files for complaint in rule(path, source)]
    assert not complaints, "\n".join(complaints)


def test_torchvision_is_imported_nowhere():
    files = sources("pusa/**/*.py", "*.py", "tests/**/*.py", "benchmarks/**/*.py", "docs/**/*.py")
    complaints = [text for path, source in files for text in torchvision_imports(path, source)]
    assert not complaints, "\n".join(complaints)


LONG_BODY = "\n    x = 1" * MAX_FUNCTION_LINES
OFFENDERS = [
    (upward_imports, "pusa/types.py", "from pusa.rng import generator_for"),
    (upward_imports, "pusa/rng.py", "import pusa.types"),
    (upward_imports, "pusa/diffusion/flow.py", "from pusa.models import wan_dit"),
    (upward_imports, "pusa/diffusion/flow.py", "from pusa.rng import generator_for"),
    (upward_imports, "pusa/models/wan_dit.py", "from ..diffusion.flow import FlowMatching"),
    (upward_imports, "pusa/models/wan_dit.py", "from .. import diffusion"),
    (upward_imports, "pusa/weights/files.py", "from pusa.models.wan_dit import WanDiT"),
    (upward_imports, "pusa/weights/files.py", "from pusa.models import wan_dit"),
    (upward_imports, "pusa/weights/files.py", "from pusa.models.base import X"),
    (upward_imports, "pusa/models/wan_dit.py", "from pusa.weights.lazy import Tensors"),
    (upward_imports, "pusa/models/vae.py", "from pusa.weights.files import load_weights"),
    (upward_imports, "pusa/weights/files.py", "import pusa.models"),
    (upward_imports, "pusa/data/toy.py", "from pusa import pipelines"),
    (upward_imports, "pusa/data/toy.py", "from pusa import *"),
    (upward_imports, "pusa/data/toy.py", "import pusa"),
    (upward_imports, "pusa/data/sub/deep.py", "from ...models import base"),
    (upward_imports, "pusa/data/__init__.py", "from ..models import base"),
    (upward_imports, "pusa/metrics/flicker.py", "from pusa.types import LatentSpec"),
    (upward_imports, "pusa/pipelines/build.py", "import pusa.training.module as module"),
    (upward_imports, "pusa/training/module.py", "from pusa.evaluation import replica"),
    (upward_imports, "pusa/training/module.py", "import pusa.metrics.flicker"),
    (upward_imports, "pusa/evaluation/score.py", "from pusa.models import wan_dit"),
    (upward_imports, "pusa/evaluation/score.py", "def f():\n    from pusa.training import module"),
    (
        upward_imports,
        "pusa/evaluation/score.py",
        "import importlib as i\ni.import_module('pusa.cli')",
    ),
    (upward_imports, "pusa/training/module.py", "if 1:\n    import pusa.entry"),
    (upward_imports, "pusa/cellar/wine.py", ""),
    (wrong_doors, "pusa/pipelines/build.py", "from hydra.utils import instantiate"),
    (wrong_doors, "pusa/training/module.py", "def f():\n    from omegaconf import OmegaConf"),
    (wrong_doors, "pusa/data/toy.py", "import av.video"),
    (wrong_doors, "pusa/pipelines/encode.py", "import decord as d"),
    (wrong_doors, "pusa/weights/files.py", "from peft import LoraConfig"),
    (wrong_doors, "train.py", "import peft"),
    (upward_imports, "pusa/demo/page.py", "from pusa.cli_demo import reader"),
    (wrong_doors, "pusa/demo/workshop.py", "import gradio as gr"),
    (wrong_doors, "pusa/data/video.py", "from torchvision import io"),
    (torchvision_imports, "tests/test_video.py", "import torchvision.io"),
    (code_in_init, "pusa/data/__init__.py", "from pusa.data.video import read\nread('a.mp4')"),
    (drawers, "pusa/data/utils.py", ""),
    (drawers, "pusa/common/video.py", ""),
    (long_files, "pusa/data/toy.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    (long_functions, "pusa/data/toy.py", f"class A:\n  def f(self):{LONG_BODY}"),
    (long_functions, "pusa/data/toy.py", f"async def f():{LONG_BODY}"),
]


@pytest.mark.parametrize(("rule", "path", "source"), OFFENDERS)
def test_an_offender_is_caught(rule: Rule, path: str, source: str):
    assert len(rule(path, source)) == 1


LEGAL = [
    (upward_imports, "pusa/weights/files.py", "from pusa.models.variants import detect"),
    (upward_imports, "pusa/weights/files.py", "from pusa.models import variants\nimport torch"),
    (upward_imports, "pusa/data/toy.py", "from . import video\nfrom ..rng import generator_for"),
    (upward_imports, "pusa/training/autoencoder.py", "from pusa.models.tiny_vae import TinyVAE"),
    (upward_imports, "pusa/metrics/flicker.py", "from pusa.metrics.sample import Sample"),
    (upward_imports, "pusa/cli.py", "from pusa.training import module\nimport pusa.evaluation"),
    (upward_imports, "train.py", "from pusa.entry import run"),
    (upward_imports, "pusa/data/toy.py", "import pusapusa\nname = 'pusa.models'"),
    (wrong_doors, "pusa/cli.py", "import hydra\nimport omegaconf"),
    (wrong_doors, "pusa/data/readers.py", "import av\nimport decord"),
    (code_in_init, "pusa/data/__init__.py", '"""Pixels."""\nfrom a import b\n__all__ = ["b"]'),
    (drawers, "pusa/data/utilities_of_war.py", ""),
    (long_files, "pusa/data/toy.py", "x = 1\n" * MAX_FILE_LINES),
    (long_functions, "pusa/data/toy.py", f"def f():{LONG_BODY[:-10]}"),
]


@pytest.mark.parametrize(("rule", "path", "source"), LEGAL)
def test_what_is_legal_is_let_through(rule: Rule, path: str, source: str):
    assert rule(path, source) == []
