"""Tiny models and LoRAs as everybody's files hold them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pusa.models.variants import BACKBONES, VARIANTS
from pusa.weights.adapters import Adapter, Target
from pusa.weights.convert import Output, write
from pusa.weights.files import Checkpoint
from pusa.weights.lazy import InMemory

TWINS = [name for name in VARIANTS if name.endswith("_tiny")]


def make_twin(name: str, seed: int = 0) -> nn.Module:
    """A tiny variant whose every weight is random and not zero."""
    variant = VARIANTS[name]
    torch.manual_seed(seed)
    model = BACKBONES[variant.family](**variant.arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def checkpoint_of(model: nn.Module, name: str, dtype: torch.dtype | None = None) -> Checkpoint:
    state = {key: t if dtype is None else t.to(dtype) for key, t in model.state_dict().items()}
    return Checkpoint(VARIANTS[name], InMemory(state, metadata={"format": "pt"}))


def save(model: nn.Module, name: str, path: Path, layout: str = "official", **output) -> Path:
    return write(checkpoint_of(model, name), Output(path, layout, **output))


def make_adapter(
    model: nn.Module, rank: int = 4, alpha: float | None = 8.0, seed: int = 1, every: int = 1
) -> Adapter:
    """Random factors for every linear layer of the blocks (every n-th of them)."""
    generator = torch.Generator().manual_seed(seed)
    targets = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("blocks."):
            out, inner = module.weight.shape
            a = 0.1 * torch.randn(rank, inner, generator=generator)
            b = 0.1 * torch.randn(out, rank, generator=generator)
            targets[name] = Target(a, b, alpha)
    return Adapter(dict(list(targets.items())[::every]))


def add_diffs(adapter: Adapter, model: nn.Module, seed: int = 2) -> Adapter:
    """LightX2V's additions: biases, a norm, modulations, a weight."""
    generator = torch.Generator().manual_seed(seed)
    targets = dict(adapter.targets)
    for name in ("blocks.0.self_attn.q.bias", "blocks.1.norm3.weight", "blocks.1.norm3.bias",
                 "blocks.0.modulation", "head.modulation", "head.head.weight",
                 "blocks.0.cross_attn.norm_k.weight"):  # fmt: skip
        module, _, part = name.rpartition(".")
        diff = 0.1 * torch.randn(model.get_parameter(name).shape, generator=generator)
        old = targets.get(module, Target())
        targets[module] = Target(old.A, old.B, old.alpha, {**old.diffs, part: diff})
    return Adapter(targets)


@pytest.fixture(params=TWINS)
def twin(request) -> str:
    return request.param


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
