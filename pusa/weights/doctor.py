"""Does a LoRA file do what it should? What it covers, what is wrong with it, and what it changes,
measured. The trainer asks the same questions of every LoRA that it saves."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from pusa.models.stored import weight_of
from pusa.types import Text
from pusa.weights.adapters import Adapter, Target, check_expert, dead_or_broken, misfits
from pusa.weights.files import WeightsError, expert_of, load_weights, read_checkpoint
from pusa.weights.lazy import Tensors, in_turn
from pusa.weights.lora import linear_layers, load_lora, read_lora, set_strength, without

WEAK, STRONG = 1e-5, 1.0  # relative change of the forward pass beyond which something may be wrong
LARGE = 2e9  # parameters from which the forward pass is bfloat16
SHOWN = 5  # findings of one kind in words; JSON has all


@dataclass(frozen=True)
class Forward:
    """|velocity - base velocity| / |base velocity| of one fixed forward pass, at strengths 0, 1."""

    at_0: float
    at_1: float


@dataclass
class Diagnosis:
    """What was found. covered: module kind -> (modules in the file, modules of the base);
    update_over_weight: module -> |update| / |weight| (Frobenius norms)."""

    file: str
    base: str | None = None
    format: str = ""
    expert: str | None = None
    variant: str | None = None
    num_modules: int = 0
    num_parameters: int = 0
    ranks: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    covered: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    update_over_weight: dict[str, float] = field(default_factory=dict)
    forward: Forward | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.errors

    def to_json(self) -> dict:
        """Plain values; numbers that are not finite become None."""
        return _finite_only({"ok": self.ok, "verdict": self.verdict(), **asdict(self)})

    def verdict(self) -> str:
        if not self.ok:
            return f"BAD: {self.errors[0]}."
        effect = (
            "" if self.forward is None else f" and changes the output by {self.forward.at_1:.3g}"
        )
        where = "is well formed" if self.base is None else "fits this base"
        doubts = f", with {len(self.warnings)} warnings" if self.warnings else ""
        return f"GOOD: it {where}{effect}{doubts}."

    def text(self) -> str:
        """The report in words."""
        lines = [f"{self.file}: {self.format or 'unreadable'}"]
        if self.num_modules:
            ranks, scales = _span(self.ranks), _span(self.scales)
            lines.append(
                f"  {self.num_modules} modules, {self.num_parameters:,} parameters, rank {ranks}, "
                f"alpha/rank {scales}" + (f", expert {self.expert}" if self.expert else "")
            )
        if self.variant:
            lines.append(f"  base: {self.variant}")
        for kind, (found, every) in sorted(self.covered.items()):
            lines.append(f"  {kind:<20} {found}" + (f" of {every}" if every is not None else ""))
        if self.update_over_weight:
            values = list(self.update_over_weight.values())
            lines.append(
                f"  |update| / |weight|: median {median(values):.3g}, "
                f"from {min(values):.3g} to {max(values):.3g}"
            )
        if self.forward:
            lines.append(
                f"  one forward pass: changed by {self.forward.at_0:.3g} at strength 0, "
                f"{self.forward.at_1:.3g} at strength 1 (relative)"
            )
        for name, texts in (("error", self.errors), ("warning", self.warnings)):
            lines += [f"  {name}: {text}" for text in texts[:SHOWN]]
            if len(texts) > SHOWN:
                lines.append(f"  ... and {len(texts) - SHOWN} more {name}s")
        return "\n".join([*lines, self.verdict()])


def _span(values: list) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _finite_only(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite_only(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def diagnose(
    path: str | Path, base: str | Path | None = None, expert: str | None = None,
    forward: bool = True,
) -> Diagnosis:  # fmt: skip
    """Examine a LoRA file, against a base checkpoint if one is given; never raises for a bad LoRA.

    expert: which network the base is; by default told from its place beside the other one.
    forward: build the base and measure one forward pass (needs the base in memory).
    WeightsError only if the base itself cannot be read.
    """
    found = Diagnosis(str(path), None if base is None else str(base))
    opened = None if base is None else read_checkpoint(base)
    expert = expert or (None if base is None else expert_of(base))
    adapter = _opened(found, path, expert)
    if adapter is None or opened is None:
        return found
    found.variant = str(opened.variant)
    specs = opened.tensors.specs()
    compare(found, adapter, specs, expert)
    if not found.ok:
        return found
    found.update_over_weight = update_ratios(adapter, opened.tensors)
    _judge_ratios(found)
    if forward and base is not None:
        model = opened.variant.build()
        size = sum(parameter.numel() for parameter in model.parameters())
        load_weights(model, base, torch.float32 if size < LARGE else torch.bfloat16)
        bare = fixed_velocity(model)
        load_lora(model, adapter)
        measure(found, model, bare)
    return found


def diagnose_saved(path: str | Path, model: nn.Module, adapter: str = "default") -> Diagnosis:
    """Examine a LoRA file that was just saved from a live model, whose forward pass is measured."""
    found = Diagnosis(str(path), type(model).__name__)
    saved = _opened(found, path, None)
    if saved is None:
        return found
    layers = linear_layers(model)
    specs = {f"{name}.weight": layer.weight for name, layer in layers.items()}
    compare(found, saved, specs, None)
    if found.ok:
        found.update_over_weight = {
            name: _ratio(target, weight_of(layers[name]))
            for name, target in saved.items()
            if name in layers
        }
        _judge_ratios(found)
        with without(model, adapter):
            bare = fixed_velocity(model)
        measure(found, model, bare, adapter)
    return found


def _opened(found: Diagnosis, path: str | Path, expert: str | None) -> Adapter | None:
    """Read and describe the file; None, with the error noted, if it cannot be read."""
    try:
        adapter = read_lora(path, expert)
    except WeightsError as error:
        found.errors.append(str(error).removeprefix(f"{path}: ").rstrip("."))
        return None
    describe(found, adapter)
    return adapter


def describe(found: Diagnosis, adapter: Adapter) -> None:
    """What can be said of the file alone."""
    factors = {m: t for m, t in adapter.items() if t.A is not None}
    found.format, found.expert = adapter.format, adapter.expert
    found.num_modules, found.num_parameters = len(adapter), adapter.num_parameters
    found.ranks = sorted({target.rank for target in factors.values()})
    found.scales = sorted({target.scale for target in factors.values()})
    found.covered = {kind: (n, None) for kind, n in Counter(map(kind_of, adapter)).items()}
    found.errors += dead_or_broken(adapter)
    silent = [m for m, t in factors.items() if t.B is not None and not t.B.any()]
    if silent and found.ok:
        found.warnings.append(
            f"B is zero in {len(silent)} of {len(factors)} modules ({silent[0]}, ...)"
        )
    bare = [module for module, target in factors.items() if target.alpha is None]
    if bare and len(bare) < len(factors):
        found.errors.append(
            f"alpha is lost in {len(bare)} of {len(factors)} modules ({bare[0]}, ...); "
            "export it again"
        )
    elif bare and adapter.format in ("kohya", "lightx2v"):
        found.warnings.append(
            "no alpha, though this format has it: alpha = rank is assumed; if it was trained with "
            "another, its strength is off by alpha/rank"
        )


def compare(
    found: Diagnosis, adapter: Adapter, specs: Mapping[str, Tensor], expert: str | None
) -> None:
    """What can be said of the file beside its base's names and shapes."""
    linear = Counter(
        kind_of(key.removesuffix(".weight"))
        for key, spec in specs.items()
        if key.endswith(".weight") and spec.ndim == 2
    )
    found.covered = {
        kind: (n, linear.get(kind)) for kind, n in Counter(map(kind_of, adapter)).items()
    }
    partial = [kind for kind, (n, every) in found.covered.items() if every and n < every]
    if partial:
        found.warnings.append(f"not every block is adapted: {', '.join(sorted(partial)[:SHOWN])}")
    found.errors += misfits(adapter, specs)
    try:
        check_expert(adapter, expert)
    except WeightsError:
        wrong = f"a LoRA of the {adapter.expert}-noise network on the {expert}-noise one"
        found.errors.insert(0, f"wrong expert: {wrong}")


def kind_of(module: str) -> str:
    """blocks.7.self_attn.q -> self_attn.q."""
    return re.sub(r"^blocks\.\d+\.", "", module)


def update_norm(target: Target) -> float:
    """Frobenius norm of scale * B @ A (+ diff), without forming it where there is no diff."""
    if "weight" in target.diffs:
        delta = target.delta()
        return 0.0 if delta is None else float(delta.norm())
    if target.A is None or target.B is None:
        return 0.0
    a, b = target.A.double(), target.B.double()
    square = ((a @ a.T) * (b.T @ b)).sum().clamp(min=0)
    return abs(target.scale) * float(square.sqrt())


def _ratio(target: Target, weight: Tensor) -> float:
    norm = float(weight.detach().float().norm())
    return update_norm(target) / norm if norm else math.inf


def update_ratios(adapter: Adapter, tensors: Tensors) -> dict[str, float]:
    """|update| / |weight| of every module, reading one weight at a time."""
    keys = [f"{module}.weight" for module in adapter if f"{module}.weight" in tensors]
    return {
        key.removesuffix(".weight"): _ratio(adapter[key.removesuffix(".weight")], weight)
        for key, weight in in_turn(tensors, keys)
    }


def _judge_ratios(found: Diagnosis) -> None:
    large = [module for module, value in found.update_over_weight.items() if value > 1]
    if large:
        found.warnings.append(
            f"the update is larger than the weight in {len(large)} modules ({large[0]}, ...): "
            "is alpha lost, or is it for another model?"
        )


def measure(found: Diagnosis, model: nn.Module, bare: Tensor, adapter: str = "default") -> None:
    """One fixed forward pass at strengths 0 and 1 against the bare model's, with a judgement.

    The model carries the adapter, and is left at strength 1.
    """
    velocities = []
    for strength in (0.0, 1.0):
        set_strength(model, strength, adapter)
        velocities.append(fixed_velocity(model))
    norm = float(bare.norm())
    at_0, at_1 = (float((v - bare).norm()) / norm if norm else math.inf for v in velocities)
    found.forward = Forward(at_0, at_1)
    if not math.isfinite(at_1):
        found.errors.append("the forward pass is not finite, with it or without")
    elif at_1 == 0:
        found.errors.append("the forward pass does not change at all with it")
    elif at_1 < WEAK:
        found.warnings.append(f"hardly any effect ({at_1:.2g} relative): little or no training?")
    elif at_1 > STRONG:
        found.warnings.append(f"a very strong effect ({at_1:.2g} relative): is alpha lost?")
    if at_0 != 0:
        found.errors.append("strength 0 is not the base model")


@torch.no_grad()
def fixed_velocity(model: Any) -> Tensor:
    """The model's velocity in eval mode, float32 on the CPU, for one small fixed input."""
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(0)
    first = next(model.parameters())
    latents = torch.randn(1, model.in_channels, 2, 8, 8, generator=generator)
    embedding = torch.randn(1, min(8, model.text_len), model.text_dim, generator=generator)
    text = Text(embedding, torch.ones(embedding.shape[:2], dtype=torch.bool)).to(first.device)
    sigma = torch.tensor([[0.3, 0.8]], device=first.device)
    inputs = [latents.to(first.device), sigma, text]
    if getattr(model, "img_emb", None) is not None:
        inputs.append(torch.randn(1, 257, 1280, generator=generator).to(first.device))
    velocity = model(*inputs).float().cpu()
    model.train(was_training)
    return velocity
