"""The LoRA's shorter way against peft's, and where it is not taken."""

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from pusa.models.layers import project
from pusa.weights import lora_linear as module
from pusa.weights.lora import LoRA, adapter_of, inject_lora, load_lora, lora_layers, without


def make(adapters: int = 1, dropout: float = 0.0, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=bias), nn.GELU(), nn.Linear(8, 5, bias=bias))
    inject_lora(model, LoRA(rank=3, alpha=6.0, targets=("0", "2"), dropout=dropout))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B["default"].weight)
    if adapters > 1:
        load_lora(model, adapter_of(model), 0.5, adapter="second")
    return model.train()


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input and of everything that trains."""
    x = x.clone().requires_grad_()
    out = model(x)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [out, *torch.autograd.grad(out.float().square().sum(), [x, *trained])]


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """One entry for each layer that went the shorter way."""
    calls: list[int] = []
    real = module.lora_linear

    def count(x, *layers, **options):
        calls.extend(1 for _ in layers)
        return real(x, *layers, **options)

    monkeypatch.setattr("pusa.weights.lora.lora_linear", count)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 3, 2, 6)])
def test_output_and_gradients_are_pefts(shape, bias, taken, monkeypatch):
    model, x = make(bias=bias), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = gradients(model, x)
    assert len(taken) == 2
    monkeypatch.setattr(module.Layer, "fits", lambda *_: False)
    expected = gradients(model, x)
    assert len(taken) == 2
    assert len(found) == len(expected) == 6
    for ours, pefts in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, pefts, atol=1e-5, rtol=1e-5)


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, a, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 3, 4), (5, 4), (5,), (2, 4), (5, 2))
    )
    for tensor in (x, a, b):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, a, b: module.lora_linear(x, module.Layer(weight, bias, a, b, 0.7)), (x, a, b)
    )


def three_of_one_input() -> nn.Module:
    torch.manual_seed(0)
    widths = {"q": 5, "k": 5, "v": 7}
    model = nn.ModuleDict({name: nn.Linear(6, width) for name, width in widths.items()})
    inject_lora(model, LoRA(rank=3, alpha=6.0, targets=tuple("qkv")))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B["default"].weight)
    return model.train()


def test_several_layers_of_one_input_are_each_of_them(taken):
    model, x = three_of_one_input(), torch.randn(2, 4, 6)
    trained = [p for p in model.parameters() if p.requires_grad]

    def results(outs: list[Tensor]) -> list[Tensor]:
        total = torch.stack([out.square().sum() for out in outs]) @ torch.arange(1.0, 4.0)
        return [*outs, *torch.autograd.grad(total, [given, *trained])]

    given = x.clone().requires_grad_()
    found = results(project(given, *model.values()))
    assert len(taken) == 3
    expected = results([layer(given) for layer in model.values()])
    assert len(found) == len(expected) == 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_layer_that_cannot_share_is_called_as_it_is(taken):
    model = three_of_one_input()
    model["k"].base_layer.weight.requires_grad_(True)
    outs = project(torch.randn(4, 6), *model.values())
    assert [out.shape[-1] for out in outs] == [5, 5, 7]
    assert len(taken) == 2


def test_gradients_after_a_gelu_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x, weight, a, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 3, 4), (5, 4), (2, 4), (5, 2))
    )
    for tensor in (x, a, b):
        tensor.requires_grad_()

    def call(x, a, b):
        return module.lora_linear(x, module.Layer(weight, None, a, b, 0.7), gelu=True)

    assert torch.autograd.gradcheck(call, (x, a, b))
    expected = module.lora_linear(
        nn.functional.gelu(x, approximate="tanh"), module.Layer(weight, None, a, b, 0.7)
    )[0]
    torch.testing.assert_close(call(x, a, b)[0], expected)
    with torch.no_grad():
        torch.testing.assert_close(call(x.clone(), a, b)[0], expected)


@pytest.mark.parametrize("case", ["default", "two adapters"])
def test_a_lora_after_a_gelu_is_the_layer_after_a_gelu(case):
    model = make(2 if case == "two adapters" else 1)
    hidden = torch.randn(4, 8)
    expected = model[2](nn.functional.gelu(hidden, approximate="tanh"))
    torch.testing.assert_close(model[2].after_gelu(hidden), expected)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_pefts_in_bfloat16(weights, taken, monkeypatch):
    model, x = make(), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for layer in lora_layers(model).values():
        layer.base_layer.to(weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, x)
        monkeypatch.setattr(module.Layer, "fits", lambda *_: False)
        expected = gradients(model, x)
    assert len(taken) == 2
    for ours, pefts in zip(found, expected, strict=True):
        assert ours.dtype == pefts.dtype
        assert (ours - pefts).abs().max() <= 0.03 * pefts.abs().max()


def test_an_untrained_lora_is_the_base_bit_for_bit():
    model, x = make(), torch.randn(4, 6)
    for layer in lora_layers(model).values():
        nn.init.zeros_(layer.lora_B["default"].weight)
    with without(model, "default"):
        base = model(x)
    assert torch.equal(model(x), base)


@pytest.mark.parametrize("case", ["dropout", "two adapters", "trained base", "mixed", "zero3"])
def test_elsewhere_it_is_pefts_own_way(case, taken):
    model = make(2 if case == "two adapters" else 1, 0.5 if case == "dropout" else 0.0)
    for layer in lora_layers(model).values():
        assert isinstance(layer, Linear)
        if case == "trained base":
            layer.base_layer.weight.requires_grad_(True)
        elif case == "mixed":
            layer.base_layer.bfloat16()
        elif case == "zero3":
            layer.base_layer.weight.ds_id = 0
    x = torch.randn(4, 6)
    model(x.bfloat16() if case == "mixed" else x).sum().backward()
    assert not taken
    if case == "dropout":  # which is nothing in evaluation
        model.eval()(x)
        assert len(taken) == 2


def test_no_rows_give_no_rows():
    """An empty caption of Mochi is a tensor without tokens."""
    x = torch.empty(2, 0, 6, requires_grad=True)
    a = torch.randn(3, 6, requires_grad=True)
    layer = module.Layer(torch.randn(5, 6), None, a, torch.randn(5, 3), 0.5)
    (out,) = module.lora_linear(x, layer)
    assert out.shape == (2, 0, 5)
    out.sum().backward()
    assert a.grad is not None
    assert not a.grad.any()
