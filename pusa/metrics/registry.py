"""The list of metrics: what each is given, its name, which way is better. Holds no metric."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Better = Literal["higher", "lower"]
SUBJECTS = ("fidelity", "similarity", "motion")  # the modules of this package that hold metrics


@dataclass(frozen=True)
class Sample:
    """One video to be judged and the truth it is judged by.

    video, truth: uint8 (T, 3, H, W); sprite: (T, H, W) coverage of the truth's sprite in [0, 1];
    determined: bool (T, H, W), True where the first frame and the caption fix the pixel.
    direction, pan: what the caption asks of the sprite and of the camera: left, right, up or down;
    pan may be "none". ValueError if the shapes or types disagree.
    """

    video: Tensor
    truth: Tensor
    sprite: Tensor
    determined: Tensor
    direction: str
    pan: str

    def __post_init__(self) -> None:
        frames, channels, height, width = self.truth.shape
        expected = {
            "video": ((frames, channels, height, width), torch.uint8),
            "truth": ((frames, 3, height, width), torch.uint8),
            "sprite": ((frames, height, width), self.sprite.dtype),
            "determined": ((frames, height, width), torch.bool),
        }
        for name, (shape, dtype) in expected.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or value.dtype != dtype:
                raise ValueError(
                    f"Sample.{name} is {tuple(value.shape)} {value.dtype}, expected {shape} "
                    f"{dtype}; bring the video to the truth's frame count and size before scoring."
                )


@dataclass(frozen=True)
class Metric:
    """A number by its name. `function` returns None where the number does not apply to a sample."""

    name: str
    function: Callable[[Sample], float | None]
    better: Better


_METRICS: dict[str, Metric] = {}


def register(name: str, better: Better = "higher") -> Callable:
    """Decorator that lists a function as the metric `name`; ValueError if the name is taken."""

    def add(function: Callable[[Sample], float | None]) -> Callable[[Sample], float | None]:
        if name in _METRICS:
            raise ValueError(f"metric {name!r} is registered twice; give one of them another name.")
        _METRICS[name] = Metric(name, function, better)
        return function

    return add


def names() -> tuple[str, ...]:
    """Every metric's name, in the order of SUBJECTS and then of registration."""
    modules = [importlib.import_module(f"pusa.metrics.{s}").__name__ for s in SUBJECTS]

    def place(name: str) -> int:
        module = _METRICS[name].function.__module__
        return modules.index(module) if module in modules else len(modules)

    return tuple(sorted(_METRICS, key=place))


def lookup(name: str) -> Metric:
    """The metric called `name`; ValueError that lists the known names if there is none."""
    known = names()
    if name not in known:
        raise ValueError(f"metric {name!r} is unknown; use one of {', '.join(known)}.")
    return _METRICS[name]
