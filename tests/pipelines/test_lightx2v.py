"""A LightX2V pair and a VTA pair on the two experts: their order is no part of the result, and the
network sees the four timesteps that the distilled LoRAs were made for.

In float32 (W + a) + b and (W + b) + a differ in the last bits, so that orders are compared with a
tolerance: 1e-6 for weights, and 3e-6 of its norm for what comes out of the networks (5e-7 is what
it is), where leaving out either LoRA changes it by more than a hundredth.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pusa.cli import main
from pusa.diffusion.conditioning import Conditioning
from pusa.entry import build
from pusa.models import wan_dit
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Request, Sampler, sample_latents
from pusa.pipelines.loras import place_loras
from pusa.pipelines.tiny import write_tiny_model
from pusa.types import Text
from pusa.weights.convert import Output
from pusa.weights.files import load_weights, read_checkpoint
from pusa.weights.lora import read_lora, write_lora
from pusa.weights.merge import merge
from tests.conftest import compose_config
from tests.weights.conftest import add_diffs, make_adapter, make_twin

NAME = "wan22_t2v_a14b"
EXPERTS = ("high", "low")
STRENGTH = {"x2v": 1.0, "vta": 1.4}
ROUNDING = 3e-6
CONDITIONING = Conditioning.free((1, 16, 3, 8, 8)).given({0: (torch.full((16, 8, 8), 0.3), 0.2)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The model's own folder and, beside it, x2v-high, x2v-low, vta-high and vta-low.

    LightX2V: rank 6 and alpha 3 under its own names, with biases, norms and modulations; its files
    do not say which expert they are for. VTA: rank 4 under the released files' names, which hold
    no alpha.
    """
    folder = tmp_path_factory.mktemp("lightx2v")
    write_tiny_model(NAME, folder / "model")
    twin = make_twin(f"{NAME}_tiny")
    for seed, expert in enumerate(EXPERTS):
        distilled = add_diffs(make_adapter(twin, 6, 3.0, seed=10 + seed), twin, seed=20 + seed)
        comfy = load_file(write_lora(distilled, folder / "comfy.safetensors", "comfy"))
        theirs = {
            key.replace(".lora_A.", ".lora_down.").replace(".lora_B.", ".lora_up."): tensor
            for key, tensor in comfy.items()
        }
        assert theirs.keys() != comfy.keys()
        save_file(theirs, folder / f"x2v-{expert}.safetensors")
        vta = make_adapter(twin, 4, 8.0, seed=30 + seed)
        write_lora(vta, folder / f"vta-{expert}.safetensors", "pusa")
    return folder


@pytest.fixture
def model(root, folder) -> Model:
    overrides = [f"model.folder={folder}/model", "prompt=a", "output=b"]
    return build(compose_config("generate", "model=wan22_tiny", *overrides).model)


def typed(folder: Path, *kinds: str) -> list[str]:
    """What is typed after --lora, for both experts, in this order."""
    return [f"{expert}={folder}/{kind}-{expert}.safetensors:{STRENGTH[kind]}"
            for kind in kinds for expert in EXPERTS]  # fmt: skip


def prompt() -> Text:
    generator = torch.Generator().manual_seed(1)
    return Text(torch.randn(1, 5, 64, generator=generator), torch.ones(1, 5, dtype=torch.bool))


def lightx2v() -> Sampler:
    return build(compose_config("generate", "sampler=lightx2v", "prompt=a", "output=b").sampler)


def sampled(model: Model, loras: list[str]) -> Tensor:
    """Latents (1, 16, 3, 8, 8) of four steps, two of each expert."""
    experts = model.build_experts(place_loras(loras, model.experts()))
    return sample_latents(experts, model.flow, lightx2v(), CONDITIONING, [Request(prompt())])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_files_are_what_they_should_be(folder):
    x2v, vta = (read_lora(folder / f"{kind}-high.safetensors") for kind in ("x2v", "vta"))
    module = "blocks.1.self_attn.k"
    assert (x2v.format, x2v[module].rank, x2v[module].scale) == ("lightx2v", 6, 0.5)
    assert (vta.format, vta[module].rank, vta[module].scale) == ("pusa", 4, 1.0)
    assert any(target.diffs for target in x2v.targets.values())


def test_unmerged_in_either_order_they_sample_the_same_video(model, folder):
    both = sampled(model, typed(folder, "x2v", "vta"))
    assert distance(sampled(model, typed(folder, "vta", "x2v")), both) < ROUNDING
    for alone in ("x2v", "vta"):
        assert distance(sampled(model, typed(folder, alone)), both) > 1e-2


@pytest.mark.parametrize("expert", EXPERTS)
def test_merged_in_either_order_they_are_the_same_network(model, folder, tmp_path, expert):
    """Also the unmerged one. In float32: rounded to bfloat16, a last bit could turn a rounding."""
    path = folder / "model" / f"{expert}_noise_model"
    velocities, weights = [], []
    x, sigma = CONDITIONING.latents, torch.tensor([[0.1, 0.6, 0.9]])
    for kinds in (("x2v", "vta"), ("vta", "x2v")):
        loras = [(read_lora(folder / f"{kind}-{expert}.safetensors"), STRENGTH[kind])
                 for kind in kinds]  # fmt: skip
        merged = merge(path, loras, Output(tmp_path / "-".join(kinds), dtype=torch.float32))
        weights.append(read_checkpoint(merged).tensors)
        network = model.backbone().eval()
        load_weights(network, merged)
        with torch.no_grad():
            velocities.append(network(x, sigma, prompt()))
    for key, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][key], atol=1e-6, rtol=1e-6)
    plain, unmerged = (
        model.build_experts(place_loras(loras, EXPERTS)).at(1.0 if expert == "high" else 0.0)
        for loras in ([], typed(folder, "x2v", "vta"))
    )
    assert distance(velocities[1], velocities[0]) < ROUNDING
    with torch.no_grad():
        assert distance(velocities[0], unmerged(x, sigma, prompt())) < ROUNDING
        assert distance(velocities[0], plain(x, sigma, prompt())) > 1e-2


def test_the_command_gives_the_same_latents_in_either_order(root, folder):
    found = {}
    for name, kinds in (("ab", ("x2v", "vta")), ("ba", ("vta", "x2v")), ("a", ("x2v",))):
        loras = [part for text in typed(folder, *kinds) for part in ("--lora", text)]
        output = root / f"{name}.mp4"
        main([
            "generate", "--model", "wan22_tiny", "--set", f"model.folder={folder}/model",
            "--sampler", "lightx2v", "--prompt", "a red three moves left", "--num-frames", "5",
            "--save", "latents", "--output", str(output), *loras,
        ])  # fmt: skip
        (found[name],) = load_file(output.with_suffix(".safetensors")).values()
    assert distance(found["ba"], found["ab"]) < ROUNDING
    assert distance(found["a"], found["ab"]) > 1e-2


def test_the_four_timesteps_reach_the_network_that_they_are_for(model, folder, monkeypatch):
    """1000, 937.5 | 833.3, 625: the boundary is 875. The given frame runs at a fifth of the noise
    and is at a fifth of the time."""
    seen: list[tuple[str, Tensor]] = []
    experts = model.build_experts(place_loras(typed(folder, "x2v", "vta"), EXPERTS))
    at_work: list[str] = []
    for (_, network), name in zip(experts.networks, EXPERTS, strict=True):
        network.register_forward_pre_hook(lambda *_, name=name: at_work.append(name))
    sinusoid = wan_dit.sinusoid

    def watched(timestep: Tensor, dim: int) -> Tensor:
        seen.append((at_work[-1], timestep))
        return sinusoid(timestep, dim)

    monkeypatch.setattr(wan_dit, "sinusoid", watched)
    sample_latents(experts, model.flow, lightx2v(), CONDITIONING, [Request(prompt())])
    assert [name for name, _ in seen] == ["high", "high", "low", "low"]
    steps = torch.tensor([1000, 937.5, 2500 / 3, 625])
    expected = steps[:, None] * torch.tensor([0.2, 1, 1])
    torch.testing.assert_close(torch.cat([t for _, t in seen]), expected, atol=1e-3, rtol=0)
