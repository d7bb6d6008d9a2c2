"""LoRA: what it matches, that it starts as nothing, strength, and its file."""

import json

import pytest
import torch

from pusa.models.wan_dit import WanDiT
from pusa.types import Text
from pusa.weights.doctor import fixed_velocity
from pusa.weights.files import WeightsError, read_metadata, read_tensors, write_tensors
from pusa.weights.lora import (
    VTA_TARGETS,
    LoRA,
    adapter_of,
    format_matches,
    inject_lora,
    load_lora,
    lora_layers,
    set_strength,
    without,
    write_lora,
)
from tests.weights.conftest import add_diffs, make_adapter, make_twin


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
    path = write_lora(adapter_of(model, recipe={"lr": 1e-5}), tmp_path / "lora.safetensors")
    keys = set(read_tensors(path))
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in keys
    assert len(keys) == 3 * 2 * len(VTA_TARGETS)
    assert json.loads(read_metadata(path)["recipe"]) == {"lr": 1e-5}
    other = make_model()
    assert load_lora(other, path).recipe == {"lr": 1e-5}
    assert torch.equal(velocity(other), trained)
    set_strength(other, 0.0)
    assert torch.equal(velocity(other), base)
    set_strength(other, 1.0)
    assert torch.equal(velocity(other), trained)


def test_strength_scales_the_update_by_alpha_over_rank(tmp_path):
    model = make_model()
    inject_lora(model, LoRA(rank=4, alpha=8))
    train_a_little(model)
    path = write_lora(adapter_of(model), tmp_path / "lora.safetensors")
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
        tensors["diffusion_model.head.head.difference"] = torch.zeros(1)
    elif kind == "diff of another shape":
        tensors["diffusion_model.head.head.diff"] = torch.zeros(1)
    elif kind == "diff of nothing":
        tensors["diffusion_model.blocks.7.norm3.diff"] = torch.zeros(48)
    elif kind == "another format":
        tensors = {"some.weight": torch.zeros(1)}
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing B", r"blocks\.0\.self_attn\.q misses its B"),
        ("unknown module", "no linear layer blocks.9.self_attn.q"),
        ("wrong shape", r"blocks.0.self_attn.q has A \(4, 5\)"),
        ("all zero", "every lora_B is zero"),
        ("left over", r"head\.head\.difference is not a key of any LoRA"),
        ("diff of another shape", r"the change of head\.head\.weight is \(1,\)"),
        ("diff of nothing", r"no blocks\.7\.norm3\.weight"),
        ("another format", r"some\.weight is not a key of any LoRA format"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_key(tmp_path, kind, message):
    model = make_model()
    inject_lora(model, LoRA(rank=4, alpha=4))
    train_a_little(model)
    path = write_lora(adapter_of(model), tmp_path / "good.safetensors")
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
        write_lora(adapter_of(model), tmp_path / "lora.safetensors")
    assert not list(tmp_path.iterdir())


def test_several_adapters_add_up_and_go_back_exactly(tmp_path):
    """Two adapters of other ranks, one with LightX2V's additions: the sum is that of merged
    weights, strength 0 of all is the base bit for bit, and coming back gives the same bits."""
    name = "wan21_t2v_14b_tiny"
    model, merged = make_twin(name), make_twin(name)
    base = fixed_velocity(model)
    first = make_adapter(model, rank=4, alpha=8.0, seed=1)
    second = add_diffs(make_adapter(model, rank=2, alpha=None, seed=2, every=2), model)
    load_lora(model, first, 0.7, "vta")
    load_lora(model, second, 1.3, "lightx2v")
    both = fixed_velocity(model)
    for adapter, strength in ((first, 0.7), (second, 1.3)):
        for module, target in adapter.items():
            if target.delta() is not None:
                merged.get_parameter(f"{module}.weight").data += strength * target.delta()
            for part, diff in target.diffs.items():
                if part != "weight":
                    merged.get_parameter(f"{module}.{part}").data += strength * diff
    torch.testing.assert_close(both, fixed_velocity(merged), atol=1e-5, rtol=1e-5)
    for adapter in ("vta", "lightx2v"):
        set_strength(model, 0.0, adapter)
    assert torch.equal(fixed_velocity(model), base)
    set_strength(model, 1.3, "lightx2v")
    only_second = fixed_velocity(model)
    set_strength(model, 0.7, "vta")
    assert torch.equal(fixed_velocity(model), both)
    fresh = make_twin(name)
    load_lora(fresh, second, 1.3)
    torch.testing.assert_close(fixed_velocity(fresh), only_second, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="has an adapter 'vta' already"):
        load_lora(model, first, adapter="vta")
    with pytest.raises(ValueError, match="no adapter 'other'; it has lightx2v, vta"):
        set_strength(model, 1.0, "other")


def test_order_of_adapters_does_not_matter():
    name = "wan21_t2v_14b_tiny"
    adapters = {}
    velocities = []
    for order in (("a", "b"), ("b", "a")):
        model = make_twin(name)
        adapters = adapters or {n: make_adapter(model, seed=i) for i, n in enumerate("ab")}
        for adapter in order:
            load_lora(model, adapters[adapter], adapter=adapter)
        velocities.append(fixed_velocity(model))
    torch.testing.assert_close(*velocities, atol=1e-6, rtol=1e-6)


def test_a_lora_is_trained_on_top_of_another():
    """A distilled LoRA stays frozen and active below the one that is trained."""
    model = make_twin("wan21_t2v_14b_tiny")
    load_lora(model, make_adapter(model), adapter="lightx2v")
    below = fixed_velocity(model)
    matches = inject_lora(model, LoRA(rank=2, alpha=2))
    assert sum(match.num_modules for match in matches) == 40
    assert torch.equal(fixed_velocity(model), below)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".default." in name for name in trainable)
    with without(model, "default"):
        assert torch.equal(fixed_velocity(model), below)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable


def test_an_adapter_in_bfloat16_weights_is_applied_in_float32():
    model = make_twin("wan21_t2v_14b_tiny").bfloat16()
    adapter = make_adapter(model)
    load_lora(model, adapter)
    (layer, *_) = lora_layers(model).values()
    assert layer.lora_A["default"].weight.dtype == torch.float32
    assert torch.isfinite(fixed_velocity(model)).all()
