"""LoRAs merged while a checkpoint is loaded: as beside the weights, as merged into a file."""

import pytest
import torch
from torch import nn

from pusa.models.stored import StoredLinear, stored_layers
from pusa.weights import updates
from pusa.weights.convert import Output
from pusa.weights.doctor import fixed_velocity
from pusa.weights.files import WeightsError, load_weights
from pusa.weights.lora import load_lora
from pusa.weights.merge import merge, merge_into
from tests.weights.conftest import VARIANTS, add_diffs, make_adapter, make_twin, save

T2V = "wan21_t2v_14b_tiny"


def loaded(path, dtype=None, storage=None, loras=(), expert=None, name=T2V) -> nn.Module:
    model = VARIANTS[name].build()
    load_weights(model, path, dtype, storage, loras, expert)
    return model.eval().requires_grad_(False)


def two_loras(model: nn.Module, name: str = T2V):
    first, second = make_adapter(model, 2, seed=2), make_adapter(model, 4, seed=4, every=3)
    return [(first, 1.4), (add_diffs(second, model) if name.startswith("wan") else second, -0.5)]


@pytest.fixture
def base(tmp_path):
    model = make_twin(T2V)
    return model, save(model, T2V, tmp_path / "base", shard_bytes=300_000)


def test_it_equals_the_adapters_beside_the_weights(tmp_path, twin):
    model = make_twin(twin)
    path = save(model, twin, tmp_path / "base", shard_bytes=300_000)
    loras = two_loras(model, twin)
    merged = loaded(path, loras=loras, name=twin)
    for number, (adapter, strength) in enumerate(loras):
        load_lora(model, adapter, strength, f"lora{number}")
    torch.testing.assert_close(fixed_velocity(merged), fixed_velocity(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("storage", [None, "int8", "float8"])
def test_it_equals_the_merged_file_bit_for_bit(tmp_path, base, dtype, storage):
    model, path = base
    loras = two_loras(model)
    file = merge(path, loras, Output(tmp_path / "merged.safetensors"))
    found = loaded(path, dtype, storage, loras).state_dict()
    expected = loaded(file, dtype, storage).state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert tensor.dtype == found[key].dtype
        assert torch.equal(tensor, found[key]), key


def test_blocks_of_rows_change_nothing_but_the_order_of_sums(monkeypatch, base):
    model, path = base
    loras = two_loras(model)
    whole = loaded(path, loras=loras).state_dict()
    monkeypatch.setattr(updates, "BLOCK", 1000)
    for key, tensor in loaded(path, loras=loras).state_dict().items():
        torch.testing.assert_close(tensor, whole[key], atol=1e-6, rtol=1e-6)


def test_the_sum_is_packed_without_a_rounding_before(base):
    model, path = base
    loras = two_loras(model)
    found = loaded(path, torch.bfloat16, "int8", loras)
    wide = loaded(path, loras=loras)
    for name in stored_layers(wide):
        layer = found.get_submodule(name)
        assert isinstance(layer, StoredLinear)
        error = (layer.dense_weight() - wide.get_submodule(name).weight).abs()
        assert bool((error <= 0.501 * layer.scale).all()), name  # half a step, of exact weights


def test_a_lora_that_does_not_fit_leaves_the_model_as_it_was(base):
    model, path = base
    other = make_adapter(make_twin("wan21_t2v_1_3b_tiny"))
    empty = VARIANTS[T2V].build()
    with pytest.raises(WeightsError, match="does not fit this model"):
        load_weights(empty, path, storage="int8", loras=[*two_loras(model), (other, 1.0)])
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not any(isinstance(module, StoredLinear) for module in empty.modules())


def test_the_other_experts_lora_is_refused(tmp_path):
    name = "wan22_t2v_a14b_tiny"
    model = make_twin(name)
    path = save(model, name, tmp_path / "high_noise_model")
    save(model, name, tmp_path / "low_noise_model")
    adapter = make_adapter(model)
    low = type(adapter)(adapter.targets, expert="low")
    with pytest.raises(WeightsError, match="low-noise expert"):  # told from the folder's name
        loaded(path, loras=[(low, 1.0)], name=name)
    loaded(tmp_path / "low_noise_model", loras=[(low, 1.0)], name=name)


def test_what_a_lora_leaves_alone_stays_mapped(base):
    model, path = base
    adapter = make_adapter(model)
    few = type(adapter)({"blocks.0.ffn.0": adapter["blocks.0.ffn.0"]})
    plain, merged = loaded(path).state_dict(), loaded(path, loras=[(few, 1.0)]).state_dict()
    changed = [key for key, tensor in plain.items() if not torch.equal(tensor, merged[key])]
    assert changed == ["blocks.0.ffn.0.weight"]
    sizes = {key: tensor.untyped_storage().nbytes() for key, tensor in merged.items()}
    assert sizes["blocks.0.ffn.0.weight"] == merged["blocks.0.ffn.0.weight"].nbytes  # its own
    small = "blocks.0.self_attn.q.bias"
    assert sizes[small] == plain[small].untyped_storage().nbytes()


def test_a_model_in_memory_takes_them_as_well(base):
    model, path = base
    loras = two_loras(model)
    expected = loaded(path, loras=loras)
    merge_into(model, loras)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[key]), key


@pytest.mark.parametrize("storage", [None, "int8", "float8"])
def test_straight_to_a_device_it_is_the_same(base, storage):
    model, path = base
    loras = two_loras(model)
    expected = loaded(path, torch.bfloat16, storage, loras).state_dict()
    found = {}
    for device in map(torch.device, ("cpu", "meta")):  # on meta: that nothing stays behind
        there = VARIANTS[T2V].build()
        load_weights(there, path, torch.bfloat16, storage, loras, device=device)
        found[device.type] = there.state_dict()
        assert {tensor.device.type for tensor in found[device.type].values()} == {device.type}
    for key, tensor in expected.items():
        assert torch.equal(tensor, found["cpu"][key]), key
        assert tensor.dtype == found["meta"][key].dtype
