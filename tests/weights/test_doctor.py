"""The doctor's verdicts: every illness that is known is found, a healthy file is not slandered."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa.weights import doctor
from pusa.weights.adapters import Adapter, Target
from pusa.weights.doctor import diagnose, diagnose_saved, fixed_velocity
from pusa.weights.lora import LoRA, adapter_of, inject_lora, load_lora, lora_layers, write_lora
from tests.weights.conftest import TWINS, add_diffs, make_adapter, make_twin, save

T2V = "wan21_t2v_14b_tiny"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(make_twin(T2V), T2V, tmp_path_factory.mktemp("base") / "m")


@pytest.fixture
def healthy(tmp_path):
    return write_lora(make_adapter(make_twin(T2V), alpha=4.0), tmp_path / "lora.safetensors")


@pytest.mark.parametrize("name", TWINS)
def test_a_healthy_lora_is_good_and_its_effect_measured(tmp_path, name):
    model = make_twin(name)
    path = save(model, name, tmp_path / "m")
    adapter = make_adapter(model, alpha=4.0)
    lora = write_lora(adapter, tmp_path / "lora.safetensors", "kohya")
    found = diagnose(lora, path)
    assert found.ok, found.text()
    assert not found.warnings
    assert all(n == every for n, every in found.covered.values())
    bare = fixed_velocity(model)
    load_lora(model, adapter)
    change = float((fixed_velocity(model) - bare).norm() / bare.norm())
    assert found.forward.at_0 == 0
    assert found.forward.at_1 == pytest.approx(change, rel=1e-4)
    module = next(iter(adapter))
    ratio = adapter[module].delta().norm() / model.get_submodule(module).weight.norm()
    assert found.update_over_weight[module] == pytest.approx(float(ratio), rel=1e-4)


def sick(path, kind: str):
    tensors = load_file(path)
    key = "diffusion_model.blocks.1.self_attn.q"
    if kind == "zero":
        tensors = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in tensors.items()}
    elif kind == "nan":
        tensors[f"{key}.lora_A.weight"][0, 0] = float("nan")
    elif kind == "alpha lost":
        del tensors[f"{key}.alpha"]
    elif kind == "unmatched":
        for part in ("lora_A.weight", "lora_B.weight", "alpha"):
            tensors[f"{key.replace('.1.', '.7.')}.{part}"] = tensors.pop(f"{key}.{part}")
    elif kind == "foreign":
        tensors["diffusion_model.blocks.1.attn.qq.lora_A.weight"] = torch.zeros(4, 64)
    elif kind == "half":
        del tensors[f"{key}.lora_B.weight"]
    elif kind == "alpha zero":
        tensors = {k: torch.zeros_like(t) if "alpha" in k else t for k, t in tensors.items()}
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zero", "every lora_B is zero"),
        ("nan", "blocks.1.self_attn.q: A holds NaN"),
        ("alpha lost", "alpha is lost in 1 of 40 modules"),
        ("unmatched", "no linear layer blocks.7.self_attn.q (the nearest is blocks."),
        ("foreign", "is no module of a Wan or Mochi transformer"),
        ("half", "blocks.1.self_attn.q misses its B"),
        ("alpha zero", "every lora_B is zero"),
    ],
)
def test_every_illness_is_named(base, healthy, kind, message):
    sick(healthy, kind)
    found = diagnose(healthy, base)
    assert not found.ok
    assert message in " ".join(found.errors)
    assert found.verdict().startswith("BAD")
    assert json.dumps(found.to_json(), allow_nan=False)


def test_a_lora_for_another_model_is_bad(tmp_path, base):
    other = make_adapter(make_twin("wan21_t2v_1_3b_tiny"))
    found = diagnose(write_lora(other, tmp_path / "x.safetensors"), base)
    assert not found.ok
    assert "has A (4, 48) and B (48, 4), the layer is (64, 64)" in found.errors[0]


def test_the_wrong_expert_is_told_from_the_bases_place(tmp_path):
    name = "wan22_t2v_a14b_tiny"
    model = make_twin(name)
    for expert in ("high", "low"):
        save(model, name, tmp_path / f"{expert}_noise_model")
    low = Adapter(make_adapter(model, alpha=4.0).targets, "low")
    path = write_lora(low, tmp_path / "low.safetensors")
    assert diagnose(path, tmp_path / "low_noise_model").ok
    found = diagnose(path, tmp_path / "high_noise_model")
    assert "wrong expert: a LoRA of the low-noise network on the high-noise one" in found.errors[0]


def test_doubts_are_warnings(tmp_path, base):
    model = make_twin(T2V)
    part = make_adapter(model, alpha=None)
    targets = {m: t for m, t in part.items() if "blocks.0" in m or "ffn" in m}
    zero = "blocks.0.self_attn.q"
    targets[zero] = Target(targets[zero].A, torch.zeros_like(targets[zero].B))
    tensors = {}
    for module, t in targets.items():
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": t.A, f"{name}.lora_up.weight": 300 * t.B}
    save_file(tensors, tmp_path / "x.safetensors")
    found = diagnose(tmp_path / "x.safetensors", base)
    assert found.ok
    text = found.text()
    assert "no alpha, though this format has it" in text
    assert "B is zero in 1 of 16 modules" in text
    assert "not every block is adapted" in text
    assert "the update is larger than the weight" in text
    weak = Adapter({m: Target(t.A, 1e-9 * t.B, 4.0) for m, t in part.items()})
    found = diagnose(write_lora(weak, tmp_path / "weak.safetensors"), base)
    assert found.ok
    assert "hardly any effect" in found.warnings[0]


def test_additions_outright_are_measured_too(tmp_path, base):
    model = make_twin(T2V)
    adapter = add_diffs(Adapter({}), model)
    found = diagnose(write_lora(adapter, tmp_path / "x.safetensors"), base)
    assert found.ok, found.text()
    assert found.forward.at_0 == 0
    assert found.forward.at_1 > 1e-3
    diff = adapter["head.head"].diffs["weight"].norm() / model.head.head.weight.norm()
    assert found.update_over_weight["head.head"] == pytest.approx(float(diff), rel=1e-5)


def test_without_a_base_the_file_alone_is_judged(healthy):
    found = diagnose(healthy)
    assert found.ok
    assert found.forward is None
    assert "is well formed" in found.verdict()


def test_the_trainers_check_measures_the_live_model(tmp_path):
    model = make_twin(T2V)
    inject_lora(model, LoRA(rank=4, alpha=4))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    model.train()
    path = write_lora(adapter_of(model), tmp_path / "lora.safetensors")
    found = diagnose_saved(path, model)
    assert found.ok, found.text()
    assert found.forward.at_0 == 0
    assert 1e-3 < found.forward.at_1 < math.inf
    assert model.training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
    for layer in lora_layers(model).values():
        torch.nn.init.zeros_(layer.lora_B["default"].weight)
    path = write_lora(adapter_of(model), tmp_path / "dead.safetensors")
    assert "every lora_B is zero" in diagnose_saved(path, model).errors[0]


@pytest.mark.parametrize(
    ("velocities", "message"),
    [
        ((1.0, 1.0), "does not change at all"),
        ((1.0, float("nan")), "is not finite"),
        ((1.5, 2.0), "strength 0 is not the base model"),
        ((1.0, 4.0), "a very strong effect (3 relative)"),
        ((1.0, 1.0 + 1e-6), "hardly any effect"),
    ],
)
def test_what_the_forward_pass_says_is_judged(monkeypatch, velocities, message):
    shown = iter(velocities)
    monkeypatch.setattr(doctor, "set_strength", lambda *_: None)
    monkeypatch.setattr(doctor, "fixed_velocity", lambda _: torch.full((4,), next(shown)).double())
    found = doctor.Diagnosis("x")
    doctor.measure(found, torch.nn.Identity(), torch.ones(4).double())
    assert message in " ".join(found.errors + found.warnings)
    assert found.ok == message.startswith(("a very", "hardly"))
