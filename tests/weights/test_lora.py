"""LoRA: what it matches, that it starts as nothing, strength, and its file."""

import json

import pytest
import torch

from pusa.models.wan_dit import WanDiT
from pusa.types import Text
from pusa.weights.files import WeightsError, read_metadata, read_tensors, write_tensors
from pusa.weights.lora import (
    VTA_TARGETS,
    LoRA,
    format_matches,
    inject_lora,
    load_lora,
    lora_layers,
    set_strength,
    write_lora,
)


def make_model() -> WanDiT:
    torch.manual_seed(0)
    model = WanDiT(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=8, text_len=4)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    return model.requires_grad_(False)


def velocity(model: WanDiT) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = Text(torch.randn(1, 4, 8, generator=generator), torch.ones(1, 4, dtype=torch.bool))
    with torch.no_grad():
        return model(latents, torch.tensor([[0.2, 0.8]]), text)


def train_a_little(model: WanDiT) -> None:
    generator = torch.Generator().manual_seed(4)
    for layer in lora_layers(model).values():
        weight = layer.lora_B["default"].weight
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)


def test_a_new_adapter_changes_nothing_and_alone_is_trainable():
    model, base = make_model(), velocity(make_model())
    matches = inject_lora(model, LoRA(rank=4, alpha=4))
    assert torch.equal(velocity(model), base)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in name for name in trainable)
    assert sum(m.num_parameters for m in matches) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_the_14b_adapter_has_the_released_size():
    """Rank 512 on Wan 14B: 800 tensors, 2,453,667,840 parameters."""
    with torch.device("meta"):
        model = WanDiT(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
        matches = inject_lora(model, LoRA(rank=512, alpha=512))
    assert sum(match.num_modules for match in matches) == 400
    assert sum(match.num_parameters for match in matches) == 2_453_667_840
    assert "2,453,667,840" in format_matches(matches)


def test_every_pattern_must_match_something():
    with pytest.raises(ValueError, match=r"'self_attn.qq' matches no linear layer.*self_attn.q"):
        inject_lora(make_model(), LoRA(rank=4, targets=("self_attn.q", "self_attn.qq")))


def test_a_pattern_matches_whole_names_only():
    with pytest.raises(ValueError, match=r"'attn\.q' matches no linear layer"):
        inject_lora(make_model(), LoRA(rank=2, targets=("attn.q",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "lora.rank"), ({"alpha": 0}, "lora.alpha"), ({"targets": ()}, "lora.targets")],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**options)


def test_file_carries_recipe_and_gives_the_same_velocity(tmp_path):
    model, base = make_model(), velocity(make_model())
    inject_lora(model, LoRA(rank=4, alpha=8))
    train_a_little(model)
    trained = velocity(model)
    assert not torch.allclose(trained, base, atol=1e-3)
    path = write_lora(model, tmp_path / "lora.safetensors", {"lr": 1e-5})
    keys = set(read_tensors(path))
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in keys
    assert len(keys) == 3 * 2 * len(VTA_TARGETS)
    assert json.loads(read_metadata(path)["recipe"]) == {"lr": 1e-5}
    other = make_model()
    assert load_lora(other, path) == {"lr": 1e-5}
    assert torch.equal(velocity(other), trained)
    set_strength(other, 0.0)
    assert torch.equal(velocity(other), base)
    set_strength(other, 1.0)
    assert torch.equal(velocity(other), trained)


def test_strength_scales_the_update_by_alpha_over_rank(tmp_path):
    model = make_model()
    inject_lora(model, LoRA(rank=4, alpha=8))
    train_a_little(model)
    path = write_lora(model, tmp_path / "lora.safetensors", {})
    tensors = read_tensors(path)
    adapted = make_model()
    load_lora(adapted, path, strength=1.4)
    merged = make_model()
    for name, layer in lora_layers(adapted).items():
        a, b = (tensors[f"diffusion_model.{name}.lora_{part}.weight"] for part in "AB")
        weight = merged.get_submodule(name).weight
        weight.data += 1.4 * 8 / 4 * b @ a
        assert layer.r["default"] == 4
    torch.testing.assert_close(velocity(adapted), velocity(merged), atol=1e-5, rtol=1e-5)


def damaged(tensors: dict, kind: str) -> dict:
    key = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    if kind == "missing B":
        del tensors[key.format("B")]
    elif kind == "unknown module":
        for part in "AB":
            name = key.format(part).replace("blocks.0", "blocks.9")
            tensors[name] = tensors[key.format(part)].clone()
    elif kind == "wrong shape":
        tensors[key.format("A")] = torch.zeros(4, 5)
    elif kind == "all zero":
        tensors = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in tensors.items()}
    elif kind == "left over":
        tensors["diffusion_model.head.head.diff"] = torch.zeros(1)
    elif kind == "mixed alpha":
        tensors["diffusion_model.blocks.0.ffn.0.alpha"] = torch.tensor(8.0)
    elif kind == "another format":
        tensors = {"some.weight": torch.zeros(1)}
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing B", "misses diffusion_model.blocks.0.self_attn.q.lora_B.weight"),
        ("unknown module", "no linear layer blocks.9.self_attn.q"),
        ("wrong shape", r"blocks.0.self_attn.q has A \(4, 5\)"),
        ("all zero", "every lora_B is zero"),
        ("left over", "diffusion_model.head.head.diff has no place"),
        ("mixed alpha", "differ in rank or alpha"),
        ("another format", "not our LoRA"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_key(tmp_path, kind, message):
    model = make_model()
    inject_lora(model, LoRA(rank=4, alpha=4))
    train_a_little(model)
    path = write_lora(model, tmp_path / "good.safetensors", {})
    bad = write_tensors(tmp_path / "bad.safetensors", damaged(read_tensors(path), kind))
    fresh = make_model()
    with pytest.raises(WeightsError, match=message):
        load_lora(fresh, bad)
    assert not lora_layers(fresh)  # nothing half-loaded


def test_a_diverged_adapter_is_not_written(tmp_path):
    model = make_model()
    inject_lora(model, LoRA(rank=4, alpha=4))
    lora_layers(model)["blocks.0.ffn.0"].lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(WeightsError, match=r"blocks.0.ffn.0 holds NaN"):
        write_lora(model, tmp_path / "lora.safetensors", {})
    assert not list(tmp_path.iterdir())
