"""LoRA on a backbone: inject, load, strength, several at once. The only importer of peft."""

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from pusa.models.stored import StoredLinear
from pusa.weights.adapters import Adapter, Target, check_usable
from pusa.weights.lazy import WeightsError
from pusa.weights.lora_files import read_lora
from pusa.weights.lora_linear import Layer, lora_linear
from pusa.weights.lora_writing import write_lora

__all__ = ["Adapter", "LoRA", "adapter_of", "format_matches", "inject_lora", "load_lora",
           "lora_layers", "read_lora", "set_strength", "without", "write_lora"]  # fmt: skip
VTA_TARGETS = (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o",
    "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2",
)  # fmt: skip


@dataclass(frozen=True)
class LoRA:
    """rank, alpha (trained scale = alpha / rank) and target modules, matched as name endings."""

    rank: int = 512
    alpha: float = 512.0
    targets: tuple[str, ...] = VTA_TARGETS
    dropout: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}.")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha must be positive, got {self.alpha}.")
        if not self.targets:
            raise ValueError("lora.targets is empty; name module endings such as self_attn.q.")


@dataclass(frozen=True)
class Match:
    """One row of the table of what a target pattern hit."""

    target: str
    num_modules: int
    num_parameters: int


def match_targets(model: nn.Module, lora: LoRA) -> dict[str, list[str]]:
    """Linear modules by target pattern; ValueError if a pattern hits none."""
    linears = linear_layers(model)
    matched = {
        target: [name for name in linears if name == target or name.endswith(f".{target}")]
        for target in lora.targets
    }
    for target, names in matched.items():
        if not names:
            endings = sorted({".".join(name.split(".")[-2:]) for name in linears})
            raise ValueError(
                f"lora.targets: {target!r} matches no linear layer of this model; "
                f"it has {', '.join(endings[:12])}."
            )
    return matched


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The model's own linear layers by official names, adapted or not."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def inject_lora(model: nn.Module, lora: LoRA, adapter: str = "default") -> list[Match]:
    """Freeze the model and add a trainable adapter, an exact no-op until it is trained.

    Adapter weights are float32. Returns the table of what was matched. ValueError if a target
    matches nothing, or ZeRO-3 has divided the model (tests/training/test_zero_init.py says why).
    """
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise ValueError(
            "the model is divided by ZeRO-3 already, where new factors would start at random; "
            "inject the LoRA first."
        )
    matched = match_targets(model, lora)
    names = [name for group in matched.values() for name in group]
    linears = linear_layers(model)
    sizes = {name: sum(linears[name].weight.shape) * lora.rank for name in names}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(int, lora.alpha),
        target_modules=names,
        lora_dropout=lora.dropout,
    )  # fmt: skip
    _add_adapter(model, config, adapter)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and f".{adapter}." in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return [Match(t, len(hit), sum(sizes[name] for name in hit)) for t, hit in matched.items()]


def lora_layers(model: nn.Module, adapter: str = "default") -> dict[str, LoraLayer]:
    """Adapted modules by their name in the official checkpoint."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    }


def adapter_of(
    model: nn.Module, adapter: str = "default", recipe: Mapping | None = None,
    expert: str | None = None,
) -> Adapter:  # fmt: skip
    """The trained adapter of a model, to be written. WeightsError if it has none of that name."""
    targets = {
        name: Target(
            cast(Tensor, layer.lora_A[adapter].weight).detach(),
            cast(Tensor, layer.lora_B[adapter].weight).detach(),
            float(layer.lora_alpha[adapter]),
        )
        for name, layer in lora_layers(model, adapter).items()
    }
    for name, diff in _diffs(model).get(adapter, {}).items():
        module, _, part = name.rpartition(".")
        old = targets.get(module, Target())
        targets[module] = replace(old, diffs={**old.diffs, part: diff})
    if not targets:
        raise WeightsError(f"the model has no adapter {adapter!r} to write.")
    return Adapter(targets, expert, recipe or {}, format="comfy")


def load_lora(
    model: nn.Module, lora: str | Path | Adapter, strength: float = 1.0, adapter: str = "default",
    expert: str | None = None,
) -> Adapter:  # fmt: skip
    """Add a LoRA of any format under the name `adapter`; several may be on a model at once.

    Effective update: strength * alpha / rank * B @ A, and strength * diff for what is added
    outright. expert: which network this model is ("high", "low"), to take the right half of a file
    and to refuse the other's. Every tensor of the file must find its place and change something,
    else WeightsError, and the model stays as it was. Model and adapter are frozen; another adapter
    that trains goes on.
    """
    found = lora if isinstance(lora, Adapter) else read_lora(lora, expert)
    if not re.fullmatch(r"\w[\w-]*", adapter) or hasattr(nn.ModuleDict(), adapter):
        raise ValueError(f"adapter={adapter!r} cannot be a name; use letters, digits and _.")
    if adapter in _names(model):
        raise ValueError(f"the model has an adapter {adapter!r} already; choose another name.")
    _finite(strength)
    check_usable(found, _specs(model), expert)
    training = [p for n, p in model.named_parameters() if p.requires_grad and ".lora_" in n]
    _inject(model, found, adapter)
    _diffs(model)[adapter] = {
        f"{module}.{part}": diff
        for module, target in found.items()
        for part, diff in target.diffs.items()
    }
    model.requires_grad_(False)
    for parameter in training:
        parameter.requires_grad_(True)  # of an adapter that goes on training
    set_strength(model, strength, adapter)
    return found


def _specs(model: nn.Module) -> dict[str, Tensor]:
    """The model's own parameters by official names, as if no adapter were on it."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }


def _inject(model: nn.Module, found: Adapter, adapter: str) -> None:
    factors = {name: t for name, t in found.items() if t.A is not None and t.B is not None}
    if not factors:
        return
    most = max(target.rank for target in factors.values())
    others = {re.escape(n): t.rank for n, t in factors.items() if t.rank != most}
    config = LoraConfig(r=most, lora_alpha=1, target_modules=list(factors), rank_pattern=others)
    _add_adapter(model, config, adapter, draw_aside=True)
    for name, layer in lora_layers(model, adapter).items():
        a, b = factors[name].A, factors[name].B
        assert a is not None, name  # chosen above
        assert b is not None, name
        layer.lora_alpha[adapter] = factors[name].scale * factors[name].rank
        for value, weights in ((a, layer.lora_A), (b, layer.lora_B)):
            # `to` may give the file's own memory, or another adapter's: keep a copy of our own.
            weights[adapter].weight.data = value.to(layer.weight.device, torch.float32, copy=True)


def _add_adapter(
    model: nn.Module, config: LoraConfig, adapter: str, draw_aside: bool = False
) -> None:
    """Inject, leave the adapters that were there switched on, and everything frozen."""
    before = {layer: list(layer.active_adapters) for layer in _all_layers(model)}
    config._register_custom_module({nn.Linear: _LoRALinear})
    # Several adapters are what is meant. Values that peft draws for its new ones are drawn aside.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[], enabled=draw_aside):
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        inject_adapter_in_model(config, model, adapter_name=adapter)
    for layer in _all_layers(model):  # peft switched all of them to the new one alone
        own = [adapter] if adapter in layer.lora_A else []
        layer.set_adapter([*before.get(layer, []), *own])
    model.requires_grad_(False)


class _LoRALinear(Linear):
    """peft's layer, which takes a shorter way where it has one adapter to add to frozen weights."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        layer = None if args or kwargs else self._layer(x)
        if layer is None:
            return super().forward(x, *args, **kwargs)
        return lora_linear(x, layer)[0]

    def after_gelu(self, x: Tensor) -> Tensor:
        """self(gelu(x)), of which only x is kept for the backward pass where that can be."""
        layer = self._layer(x)
        if layer is None:
            return self(functional.gelu(x, approximate="tanh"))
        return lora_linear(x, layer, gelu=True)[0]

    @staticmethod
    def together(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor] | None:
        """Each layer's output of one input; None if they have to be called one by one."""
        found = [layer._layer(x) if isinstance(layer, _LoRALinear) else None for layer in layers]
        fitting = [layer for layer in found if layer is not None]
        return list(lora_linear(x, *fitting)) if len(fitting) == len(found) else None

    def _layer(self, x: Tensor) -> Layer | None:
        """What the shorter way needs; None if it is not the same here."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if len(names) != 1 or self.disable_adapters or self.merged:
            return None
        if self.training and not isinstance(self.lora_dropout[names[0]], nn.Identity):
            return None
        base, a, b = (
            cast(nn.Linear, m)
            for m in (self.base_layer, self.lora_A[names[0]], self.lora_B[names[0]])
        )
        stored = isinstance(base, StoredLinear)
        weight, row_scale = (base.numbers, base.scale) if stored else (base.weight, None)
        scale = self.scaling[names[0]]
        layer = Layer(weight, base.bias, a.weight, b.weight, scale, row_scale)
        return layer if layer.fits(x) else None


def _all_layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _names(model: nn.Module) -> set[str]:
    return {name for layer in _all_layers(model) for name in layer.lora_A} | _diffs(model).keys()


def _diffs(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """adapter -> parameter -> what strength 1 adds to it. Kept on the model."""
    return model.__dict__.setdefault("_lora_diffs", {})


def set_strength(model: nn.Module, strength: float, adapter: str = "default") -> None:
    """Scale the adapter's trained update by `strength`; 1 is as trained, 0 is the base model,
    exactly, however often it is changed. ValueError if there is no such adapter."""
    _finite(strength)
    if adapter not in _names(model):
        known = ", ".join(sorted(_names(model))) or "none"
        raise ValueError(f"the model has no adapter {adapter!r}; it has {known}.")
    for layer in lora_layers(model, adapter).values():
        layer.scaling[adapter] = strength * layer.lora_alpha[adapter] / layer.r[adapter]
    if _diffs(model).get(adapter):
        strengths = model.__dict__.setdefault("_lora_strengths", {})
        strengths[adapter] = strength
        _apply_diffs(model, strengths, _diffs(model)[adapter])


def _apply_diffs(model: nn.Module, strengths: Mapping[str, float], touched: Iterable[str]) -> None:
    """Parameters = what they were at first + the sum over adapters, in float32."""
    originals: dict[str, Tensor] = model.__dict__.setdefault("_lora_originals", {})
    parameters = _specs(model)
    for name in touched:
        parameter = parameters[name]
        original = originals.setdefault(name, parameter.detach().clone())
        total = original.float()
        for adapter, diffs in _diffs(model).items():
            if name in diffs and strengths.get(adapter):
                diff = diffs[name].to(total.device, torch.float32)
                total = total + strengths[adapter] * diff.reshape(total.shape)
        parameter.data.copy_(total)


@contextmanager
def without(model: nn.Module, adapter: str) -> Iterator[None]:
    """The model without one adapter's A and B inside the block; what is trainable stays so."""
    trainable = {p: p.requires_grad for p in model.parameters()}
    layers = {layer: list(layer.active_adapters) for layer in lora_layers(model, adapter).values()}
    for layer, names in layers.items():
        layer.set_adapter([name for name in names if name != adapter])
    try:
        yield
    finally:
        for layer, names in layers.items():
            layer.set_adapter(names)
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)


def _finite(strength: float) -> None:
    if not math.isfinite(strength):
        raise ValueError(f"LoRA strength must be a finite number, got {strength}.")


def format_matches(matches: Sequence[Match]) -> str:
    """The table that training prints."""
    width = max(len("target"), *(len(match.target) for match in matches))
    lines = [f"{'target':<{width}}  modules  parameters"]
    lines += [
        f"{match.target:<{width}}  {match.num_modules:7d}  {match.num_parameters:10,d}"
        for match in matches
    ]
    modules, parameters = (
        sum(getattr(m, f"num_{x}") for m in matches) for x in ("modules", "parameters")
    )
    return "\n".join([*lines, f"{'total':<{width}}  {modules:7d}  {parameters:10,d}"])
