"""A LoRA in memory: per module the factors A and B, alpha, and whatever is added outright.

Modules are named as in the official checkpoint, whatever the file called them.
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pusa.weights.lazy import WeightsError

PARTS = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}  # LightX2V's suffixes


@dataclass(frozen=True, eq=False)
class Target:
    """What a LoRA does to one module: weight += strength * scale * B @ A, and parameter += strength
    * diff for its `diffs` by parameter name (weight, bias, modulation).

    A: (rank, in), B: (out, rank), both None where only diffs are given. alpha None: scale is 1.
    """

    A: Tensor | None = None
    B: Tensor | None = None
    alpha: float | None = None
    diffs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return 0 if self.A is None else self.A.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    def delta(self) -> Tensor | None:
        """scale * B @ A plus the weight's diff, in float32; None if the weight is left alone."""
        total = self.diffs["weight"].float() if "weight" in self.diffs else None
        if self.A is None or self.B is None:
            return total
        product = self.scale * (self.B.float() @ self.A.float())
        return product if total is None else product + total

    def baked(self) -> "Target":
        """The same update with scale 1, for formats that cannot hold alpha."""
        if self.B is None or self.scale == 1.0:
            return replace(self, alpha=None)
        return replace(self, B=(self.scale * self.B.float()).to(self.B.dtype), alpha=None)


@dataclass(frozen=True, eq=False)
class Adapter(Mapping[str, Target]):
    """A LoRA: module -> Target. expert: "high" or "low" where the file says so; noise_range: the
    sigmas (lowest, highest) it was trained at, if it was ours, and recipe what made it; source and
    format tell where it came from."""

    targets: Mapping[str, Target]
    expert: str | None = None
    recipe: Mapping = field(default_factory=dict)
    source: str = "memory"
    format: str = "memory"
    noise_range: tuple[float, float] | None = None

    def __getitem__(self, module: str) -> Target:
        return self.targets[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_parameters(self) -> int:
        return sum(
            tensor.numel()
            for target in self.values()
            for tensor in (target.A, target.B, *target.diffs.values())
            if tensor is not None
        )


def misfits(adapter: Adapter, specs: Mapping[str, Tensor]) -> list[str]:
    """Why an adapter does not fit a model with these official parameters; empty if it does."""
    problems = []
    for module, target in adapter.items():
        if target.A is not None or target.B is not None:
            problems += _factor_misfits(module, target, specs)
        for part, diff in target.diffs.items():
            name = f"{module}.{part}"
            if name not in specs:
                problems.append(f"the model has no {name}{_nearest(name, specs)}")
            elif _sides(specs[name]) != _sides(diff):
                problems.append(
                    f"the change of {name} is {tuple(diff.shape)}, it is {tuple(specs[name].shape)}"
                )
    return problems


def _factor_misfits(module: str, target: Target, specs: Mapping[str, Tensor]) -> list[str]:
    name = f"{module}.weight"
    a, b = target.A, target.B
    if a is None or b is None:
        return [f"{module} misses its {'A' if a is None else 'B'}; the file is not whole"]
    if name in specs and specs[name].ndim > 2:
        return [
            f"{module} is a convolution; LoRAs of convolutions are not read, merge it elsewhere"
        ]
    if name not in specs or specs[name].ndim != 2:
        return [f"the model has no linear layer {module}{_nearest(name, specs)}"]
    if (b.shape[0], a.shape[1]) != specs[name].shape or a.shape[0] != b.shape[1]:
        return [
            f"{module} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
            f"the layer is {tuple(specs[name].shape)}"
        ]
    return []


def _sides(tensor: Tensor) -> list[int]:
    """The shape without sides of 1, which formats add and leave out."""
    return [side for side in tensor.shape if side != 1]


def _nearest(name: str, specs: Mapping[str, Tensor]) -> str:
    close = difflib.get_close_matches(name, specs, n=1, cutoff=0.7)
    return f" (the nearest is {close[0].rpartition('.')[0]})" if close else ""


def check_usable(adapter: Adapter, specs: Mapping[str, Tensor], expert: str | None) -> None:
    """WeightsError if an adapter is for the other expert, does not fit a model with these official
    parameters, would break or not change it, or adds to weights that are kept in 8 bits."""
    check_expert(adapter, expert)
    problems = misfits(adapter, specs)
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise WeightsError(
            f"{adapter.source}: does not fit this model ({len(problems)} of {len(adapter)} "
            f"modules: {shown}). It is a LoRA for another model; nothing is loaded."
        )
    useless = dead_or_broken(adapter)
    if useless:
        raise WeightsError(f"{adapter.source}: {useless[0]}.")
    for module, target in adapter.items():
        if "weight" in target.diffs and specs[f"{module}.weight"].dtype == torch.int8:
            raise WeightsError(
                f"{adapter.source}: adds to {module}.weight outright, which is kept in 8 bits; "
                "set model.storage=null, or merge it into the base first (pusa merge)."
            )


def check_expert(adapter: Adapter, expert: str | None) -> None:
    """WeightsError if the adapter is for the other expert of a two-expert model."""
    if expert and adapter.expert and adapter.expert != expert:
        raise WeightsError(
            f"{adapter.source}: is a LoRA for the {adapter.expert}-noise expert, this is the "
            f"{expert}-noise one; give each expert its own."
        )


def dead_or_broken(adapter: Adapter) -> list[str]:
    """What makes an adapter useless on any model: values that are not finite, or no change."""
    problems = []
    for module, target in adapter.items():
        for name, tensor in (("A", target.A), ("B", target.B), *target.diffs.items()):
            if tensor is not None and not torch.isfinite(tensor).all():
                problems.append(f"{module}: {name} holds NaN or infinity; the training diverged")
        if not math.isfinite(target.scale):
            problems.append(f"{module}: alpha is {target.alpha}; export it again")
    if not any(changes(target) for target in adapter.values()):
        problems.append("every lora_B is zero, it would change nothing; train it")
    return problems


def changes(target: Target) -> bool:
    """Whether a target changes anything."""
    factors = target.A is not None and target.B is not None and target.scale != 0
    return bool(
        (factors and target.B.any() and target.A.any())  # pyright: ignore[reportOptionalMemberAccess]
        or any(diff.any() for diff in target.diffs.values())
    )
