"""BRISQUE (Mittal et al., 2012), a stand-in for MUSIQ: how unlike natural pictures the statistics
of neighbouring pixels are, judged by the support vectors that the `brisque` package ships.

The statistics are written anew: the package's own fail with numpy 2.4 and go frame by frame.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 7, 7 / 6
GREY = (0.2125, 0.7154, 0.0721)
TINY = 1e-12  # a flat picture has no deviations
SHAPES = (0.05, 100.0)  # between which the search is made


def load(files: Sequence[Path], root: Path, device: str) -> Callable[[Tensor], Tensor]:
    """100 - BRISQUE (N,), cut off to 0 to 100, so that more is better."""
    judge = read_judge(*files)
    return lambda pixels: (100 - judge(statistics(pixels.cpu()))).clamp(0, 100).float()


@dataclass(frozen=True)
class Judge:
    """Support vector regression: statistics (N, 36) -> BRISQUE (N,), where less is better."""

    coefficients: Tensor
    vectors: Tensor
    gamma: float
    rho: float
    low: Tensor
    high: Tensor

    def __call__(self, statistics: Tensor) -> Tensor:
        scaled = 2 * (statistics - self.low) / (self.high - self.low) - 1
        kernel = torch.exp(-self.gamma * torch.cdist(scaled, self.vectors).square())
        return kernel @ self.coefficients - self.rho


def statistics(pixels: Tensor) -> Tensor:
    """(N, 36) of pixels (N, 3, H, W) in [0, 1]: 18 at full size, 18 at half of it."""
    grey = (pixels.double() * torch.tensor(GREY, dtype=torch.float64)[:, None, None]).sum(
        dim=1, keepdim=True
    )
    half = F.interpolate(grey, scale_factor=0.5, mode="bicubic", recompute_scale_factor=False)
    return torch.cat([_of_one_scale(grey[:, 0]), _of_one_scale(half[:, 0])], dim=1)


def _of_one_scale(grey: Tensor) -> Tensor:
    normal = _contrast_normalised(grey)
    shape, left, right, _ = _asymmetric_gaussian(normal)
    columns = [shape, (left + right) / 2]
    for product in (
        normal[:, :, :-1] * normal[:, :, 1:], normal[:, :-1] * normal[:, 1:],
        normal[:, :-1, :-1] * normal[:, 1:, 1:], normal[:, 1:, :-1] * normal[:, :-1, 1:],
    ):  # fmt: skip
        shape, left, right, mean = _asymmetric_gaussian(product)
        columns += [shape, mean, left, right]
    return torch.stack(columns, dim=1)


def _contrast_normalised(grey: Tensor) -> Tensor:
    """Deviations from the local mean in units of the local deviation, (N, H, W)."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    bell = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = (bell[:, None] * bell / bell.sum().square())[None, None]
    mean, square = (
        F.conv2d(values[:, None], window, padding=WINDOW // 2)[:, 0]
        for values in (grey, grey.square())
    )
    return (grey - mean) / ((mean.square() - square).abs().sqrt() + 1 / 255)


def _asymmetric_gaussian(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape, the variances left and right of 0, and the mean, each (N,), by matching moments."""
    values = values.flatten(1)
    negative = values < 0
    squares = values.square()
    left = (squares * negative).sum(1) / negative.sum(1).clamp(min=1) + TINY
    right = (squares * ~negative).sum(1) / (~negative).sum(1).clamp(min=1) + TINY
    skew = (left / right).sqrt()
    ratio = values.abs().mean(1).square() / (squares.mean(1) + TINY)
    shape = _shape_of(ratio * (skew**3 + 1) * (skew + 1) / (skew.square() + 1).square())
    scale = ((1 / shape).lgamma() - (3 / shape).lgamma()).exp().sqrt()
    peak = ((2 / shape).lgamma() - (1 / shape).lgamma()).exp()
    return shape, left, right, (right.sqrt() - left.sqrt()) * scale * peak


def _shape_of(ratio: Tensor) -> Tensor:
    """The shape whose ratio of squared mean to variance is the given one, by bisection: the ratio
    rises with the shape."""
    low, high = (torch.full_like(ratio, bound) for bound in SHAPES)
    for _ in range(60):
        middle = (low + high) / 2
        powers = 2 * (2 / middle).lgamma() - (1 / middle).lgamma() - (3 / middle).lgamma()
        above = powers.exp() > ratio
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def read_judge(svm: Path, ranges: Path) -> Judge:
    """Out of libsvm's text, and a pickle of the ranges of the statistics that it was trained on."""
    head, _, body = svm.read_text().partition("SV\n")
    header = dict(line.split(maxsplit=1) for line in head.splitlines())
    rows = [line.split() for line in body.splitlines()]
    vectors = np.zeros((len(rows), 36))
    for row, words in zip(vectors, rows, strict=True):
        for index, value in (word.split(":") for word in words[1:]):
            row[int(index) - 1] = float(value)
    with ranges.open("rb") as stream:
        bounds = _NumbersOnly(stream).load()
    return Judge(
        coefficients=torch.tensor([float(words[0]) for words in rows], dtype=torch.float64),
        vectors=torch.from_numpy(vectors),
        gamma=float(header["gamma"]),
        rho=float(header["rho"]),
        low=torch.tensor(bounds["min_"], dtype=torch.float64),
        high=torch.tensor(bounds["max_"], dtype=torch.float64),
    )


class _NumbersOnly(pickle.Unpickler):
    """Reads lists and numbers; refuses what would run code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise ValueError(f"brisque: its file of ranges asks for {module_name}.{global_name}.")
