"""Tiny benchmarks: photographs, a base and a LoRA of random numbers, two steps of sampling."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import evaluate
from pusa.evaluation.page import media
from pusa.weights.lora import write_lora
from tests.conftest import compose_config
from tests.weights.conftest import make_adapter, make_twin

Run = Callable[..., Path]
CHEAP = "suite.dimensions=[temporal_flickering]"
ALONE = ("suite.entries.base=null", "suite.entries.VTA=null", "suite.baseline=null",
         "suite.controls=[]")  # fmt: skip


def runner(root: Path) -> Run:
    """Makes a LoRA; returns what evaluates with some overrides and returns the output folder.

    The page's clips are as small as the videos: it is test_page.py and test_paper.py that make them
    as large as they are, which takes as long as all else.
    """
    write_lora(make_adapter(make_twin("wan_tiny"), 2, 2.0, every=3), root / "lora.safetensors")

    def run(*overrides: str) -> Path:
        photos = ("suite=photos", "suite.prompts.num_prompts=4")
        cfg = compose_config(
            "evaluate", "experiment=tiny_vta", "name=tiny", f"suite.lora={root}/lora.safetensors",
            "sampler.num_steps=2", *(() if "suite=folder" in overrides else photos), *overrides,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(media, "SIDE", 32)
            evaluate.evaluate(cfg)
        return Path(cfg.suite.output)

    return run


@dataclass(frozen=True)
class Done:
    """A benchmark that ran: its output, its root, and what runs it again."""

    folder: Path
    root: Path
    again: Run


def finish(root: Path) -> Done:
    """Four photographs, of which the four dimensions score three, two samples each, base, VTA and
    all controls."""
    run = runner(root)
    dimensions = "temporal_flickering,dynamic_degree,motion_smoothness,imaging_quality"

    def again(*overrides: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PUSA_ROOT", str(root))
            return run(f"suite.dimensions=[{dimensions}]", *overrides)

    return Done(again(), root, again)
