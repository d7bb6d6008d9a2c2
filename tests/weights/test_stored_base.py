"""LoRAs on a base that is kept in 8 bits, and the loading of such a base."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pusa.models.layers import FeedForward, project
from pusa.models.stored import StoredLinear, store_layers, stored_layers
from pusa.models.variants import VARIANTS
from pusa.weights import lora_linear as shorter
from pusa.weights.adapters import Adapter, Target
from pusa.weights.doctor import diagnose_saved
from pusa.weights.files import WeightsError, load_weights, write_tensors
from pusa.weights.lora import LoRA, adapter_of, inject_lora, load_lora, lora_layers, write_lora
from tests.conftest import REPLICA

STORAGES = ("int8", "float8")
BASE = REPLICA / "wan_tiny" / "model.safetensors"


class Small(nn.Module):
    """A block as Wan's: q, k and v of one input, and a feed-forward."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(32, 24), nn.Linear(32, 24, bias=False), nn.Linear(32, 40)
        self.ffn = FeedForward(40, 56)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = project(x, self.q, self.k, self.v)
        return (q * k).sum(-1, keepdim=True) + self.ffn(v)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Small()])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


def pair(storage: str, **options) -> tuple[nn.Module, nn.Module]:
    """Equal LoRAs on a stored base, and on a plain one of its dense weights."""
    models = []
    for stored in (True, False):
        torch.manual_seed(0)
        model = Network().requires_grad_(False)
        store_layers(model, storage)
        if not stored:
            for name in stored_layers(model):
                layer = cast(StoredLinear, model.get_submodule(name))
                plain = nn.Linear(layer.in_features, layer.out_features)
                plain.weight.data, plain.bias = layer.dense_weight(), layer.bias
                model.set_submodule(name, plain)
        torch.manual_seed(1)
        inject_lora(model, LoRA(3, 6.0, ("q", "k", "v", "ffn.0", "ffn.2"), **options))
        for layer in lora_layers(model).values():
            nn.init.normal_(cast(nn.Linear, layer.lora_B["default"]).weight)
        models.append(model.train())
    return models[0], models[1]


def results(model: nn.Module, autocast: bool = False) -> list[Tensor]:
    """Output, gradient of the input and of all that trains."""
    torch.manual_seed(2)
    x = torch.randn(2, 5, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(x).float()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 10
    return [out, *torch.autograd.grad(out.square().sum(), [x, *trained])]


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """How many layers each call of the shorter way had."""
    calls: list[int] = []
    real = shorter.lora_linear

    def count(x, *layers, **options):
        calls.append(len(layers))
        return real(x, *layers, **options)

    monkeypatch.setattr("pusa.weights.lora.lora_linear", count)
    return calls


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_shorter_way_has_the_gradients_of_the_dense_weights(autocast, storage, taken):
    stored, plain = pair(storage)
    found = results(stored, autocast)
    assert taken == [3, 1, 1]
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if autocast else {"atol": 1e-5, "rtol": 1e-5}
    for ours, expected in zip(found, results(plain, autocast), strict=True):
        torch.testing.assert_close(ours / expected.norm(), expected / expected.norm(), **tolerance)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("case", ["dropout", "two adapters", "forbidden"])
def test_pefts_way_has_the_gradients_of_the_dense_weights(case, storage, taken, monkeypatch):
    stored, plain = pair(storage, dropout=0.5 if case == "dropout" else 0.0)
    if case == "two adapters":
        for model in (stored, plain):
            load_lora(model, adapter_of(model), 0.5, adapter="second")
    if case == "forbidden":
        monkeypatch.setattr(shorter.Layer, "fits", lambda *_: False)
    found, expected = results(stored), results(plain)
    assert taken == []
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", ["shorter", "pefts"])
@pytest.mark.parametrize("storage", STORAGES)
def test_no_dense_weight_is_kept_for_the_backward_pass(storage, way, monkeypatch):
    stored, _ = pair(storage)
    if way == "pefts":
        monkeypatch.setattr(shorter.Layer, "fits", lambda *_: False)
    shapes = {tuple(layer.weight.shape) for layer in lora_layers(stored).values()}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stored(torch.randn(2, 5, 32, requires_grad=True))
    weights = [t for t in kept if tuple(t.shape) in shapes]
    assert len(weights) == 5
    assert {t.element_size() for t in weights} == {1}
    owned = {p.untyped_storage().data_ptr() for p in stored.parameters()}
    assert all(t.untyped_storage().data_ptr() in owned for t in weights)  # none is a copy


def load(storage: str | None, dtype=torch.float32) -> nn.Module:
    model = VARIANTS["wan_tiny"].build()
    load_weights(model, BASE, dtype, storage)
    return model.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_checkpoint_is_loaded_as_it_is_stored_after_loading(storage, dtype):
    model, expected = load(storage, dtype), load(None)
    store_layers(expected, storage)
    names = {f"{name}.{part}" for name in stored_layers(expected) for part in ("weight", "scale")}
    assert len(names) == 2 * 6 * 10
    for name, tensor in expected.state_dict().items():
        found = model.get_parameter(name)
        wanted = tensor if name in names else tensor.to(found.dtype)
        assert torch.equal(found, wanted), name
        assert name in names or found.dtype == dtype or "norm" in name or "time" in name or (
            "modulation" in name
        )  # fmt: skip


def test_a_file_that_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    model = VARIANTS["wan_tiny"].build()
    tensors = dict(load(None).state_dict())
    del tensors["blocks.0.ffn.0.weight"]
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(WeightsError, match=r"misses blocks\.0\.ffn\.0\.weight"):
        load_weights(model, tmp_path / "model.safetensors", None, "int8")
    assert not any(isinstance(module, StoredLinear) for module in model.modules())


def test_weights_that_a_lora_adds_outright_are_refused_and_biases_are_added():
    model = load("int8")
    weight, bias = torch.full((160, 160), 0.1), torch.full((160,), 0.1)
    both = Target(diffs={"weight": weight, "bias": bias})
    with pytest.raises(WeightsError, match=r"kept in 8 bits; set model\.storage=null, or merge"):
        load_lora(model, Adapter({"blocks.0.self_attn.q": both}))
    layer = model.get_submodule("blocks.0.self_attn.q")
    before = cast(Tensor, layer.bias).clone()
    load_lora(model, Adapter({"blocks.0.self_attn.q": Target(diffs={"bias": bias})}))
    torch.testing.assert_close(layer.bias, before + 0.1)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_doctor_measures_a_lora_on_it_as_on_the_plain_base(storage, tmp_path):
    found = []
    for kind in (storage, None):
        model = load(kind)
        torch.manual_seed(0)
        inject_lora(model, LoRA(4, 4.0))
        for layer in lora_layers(model).values():
            nn.init.normal_(cast(nn.Linear, layer.lora_B["default"]).weight, std=0.02)
        path = tmp_path / f"{kind}.safetensors"
        write_lora(adapter_of(model), path)
        found.append(diagnose_saved(path, model))
    stored, plain = found
    assert stored.ok
    assert stored.update_over_weight == pytest.approx(plain.update_over_weight, rel=2e-3)
    assert stored.forward is not None
    assert plain.forward is not None
    assert stored.forward.at_0 == 0
    assert stored.forward.at_1 == pytest.approx(plain.forward.at_1, rel=0.05)
