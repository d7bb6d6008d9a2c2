"""LoRA files: every format as its own tools write it, read; and ours, loaded by others."""

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from safetensors.torch import load_file, save_file

from pusa.types import Text
from pusa.weights.adapters import Adapter, Target
from pusa.weights.convert import diffusers_config
from pusa.weights.keymaps import rename_wan_module
from pusa.weights.lazy import WeightsError
from pusa.weights.lora import load_lora, read_lora, write_lora
from tests.weights.conftest import TWINS, VARIANTS, add_diffs, difference, make_adapter, make_twin

T2V = "wan21_t2v_14b_tiny"
FILE_FORMATS = ("comfy", "diffusers", "kohya", "peft", "pusa")
RANK = 4


@pytest.fixture(scope="module")
def model():
    return make_twin(T2V)


@pytest.fixture(scope="module")
def adapter(model) -> Adapter:
    return make_adapter(model, RANK, alpha=8.0)


def same_update(found: Adapter, expected: Adapter, tolerance: float = 1e-6) -> None:
    assert set(found) == set(expected)
    for module, target in expected.items():
        delta = target.delta()
        if delta is not None:
            assert difference(found[module].delta(), delta) <= tolerance, module
        for part, diff in target.diffs.items():
            assert torch.equal(found[module].diffs[part].reshape(diff.shape), diff), module


def spelled(adapter: Adapter, form: str) -> dict[str, torch.Tensor]:
    """The file that another project would write for these factors (alpha 8, rank 4)."""
    tensors = {}
    for module, t in adapter.items():
        alpha = torch.tensor(8.0)
        theirs = rename_wan_module(module, "diffusers")
        kohya = "lora_unet_" + module.replace(".", "_")
        tensors |= {
            "pusa .pt": {
                f"{module}.lora_A.default.weight": t.A, f"{module}.lora_B.default.weight": 2 * t.B,
            },
            "pusa, prefixed": {
                f"diffusion_model.{module}.lora_A.default.weight": t.A,
                f"diffusion_model.{module}.lora_B.default.weight": 2 * t.B,
            },
            "diffsynth": {
                f"pipe.dit.{module}.lora_A.default.weight": t.A,
                f"pipe.dit.{module}.lora_B.default.weight": 2 * t.B,
            },
            "comfy without alpha": {
                f"diffusion_model.{module}.lora_A.weight": t.A,
                f"diffusion_model.{module}.lora_B.weight": 2 * t.B,
            },
            "comfy": {
                f"diffusion_model.{module}.lora_A.weight": t.A,
                f"diffusion_model.{module}.lora_B.weight": t.B,
                f"diffusion_model.{module}.alpha": alpha,
            },
            "lightx2v": {
                f"diffusion_model.{module}.lora_down.weight": t.A,
                f"diffusion_model.{module}.lora_up.weight": t.B,
                f"diffusion_model.{module}.alpha": alpha,
            },
            "kohya": {
                f"{kohya}.lora_down.weight": t.A, f"{kohya}.lora_up.weight": t.B,
                f"{kohya}.alpha": alpha,
            },
            "diffusers": {
                f"transformer.{theirs}.lora_A.weight": t.A,
                f"transformer.{theirs}.lora_B.weight": 2 * t.B,
            },
            "diffusers, no prefix": {f"{theirs}.lora_A.weight": t.A,
                                     f"{theirs}.lora_B.weight": 2 * t.B},
            "kohya of diffusers names": {
                f"lora_unet_{theirs.replace('.', '_')}.lora_down.weight": t.A,
                f"lora_unet_{theirs.replace('.', '_')}.lora_up.weight": t.B,
                f"lora_unet_{theirs.replace('.', '_')}.alpha": alpha,
            },
        }[form]  # fmt: skip
    return {key: tensor.contiguous().clone() for key, tensor in tensors.items()}


FORMS = ("pusa .pt", "pusa, prefixed", "diffsynth", "comfy without alpha", "comfy", "lightx2v",
         "kohya", "diffusers", "diffusers, no prefix", "kohya of diffusers names")  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_every_spelling_is_read_to_the_same_update(tmp_path, adapter, form, suffix):
    path = tmp_path / f"lora{suffix}"
    (torch.save if suffix == ".pt" else save_file)(spelled(adapter, form), path)
    same_update(read_lora(path), adapter)


def test_the_scale_is_alpha_over_rank_and_one_without_alpha(tmp_path):
    a, b = torch.ones(64, 8), torch.ones(8, 64)
    key = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
    save_file(tensors, tmp_path / "x.safetensors")
    target = read_lora(tmp_path / "x.safetensors")["blocks.0.self_attn.q"]
    assert (target.rank, target.alpha, target.scale) == (64, None, 1.0)
    save_file(tensors | {f"{key}.alpha": torch.tensor(8.0)}, tmp_path / "x.safetensors")
    target = read_lora(tmp_path / "x.safetensors")["blocks.0.self_attn.q"]
    assert (target.alpha, target.scale) == (8.0, 0.125)  # Lightning's rank 64, alpha 8


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("form", FILE_FORMATS)
def test_what_is_written_is_read_back(tmp_path, name, form):
    given = make_adapter(make_twin(name), RANK, alpha=8.0, every=3)
    path = write_lora(given, tmp_path / "lora.safetensors", form)
    found = read_lora(path)
    same_update(found, given)
    assert found.format == form
    if form in ("comfy", "kohya"):  # these hold alpha: the factors are the same bits
        assert all(torch.equal(found[m].A, t.A) and found[m].alpha == 8 for m, t in given.items())


@pytest.mark.parametrize("form", FILE_FORMATS)
def test_with_alpha_equal_to_rank_every_format_is_bit_exact(tmp_path, model, form):
    given = make_adapter(model, RANK, alpha=RANK)
    found = read_lora(write_lora(given, tmp_path / "lora.safetensors", form))
    for module, target in given.items():
        assert torch.equal(found[module].A, target.A)
        assert torch.equal(found[module].B, target.B)
        assert found[module].scale == 1


@pytest.mark.parametrize("form", ["comfy", "kohya"])
def test_lightx2v_additions_keep_their_place(tmp_path, model, adapter, form):
    given = add_diffs(adapter, model)
    path = write_lora(given, tmp_path / "x2v.safetensors", form)
    same_update(read_lora(path), given)
    keys = {key.split(".", 1)[1] for key in load_file(path)}
    if form == "comfy":
        assert {"blocks.0.self_attn.q.diff_b", "blocks.0.diff_m", "head.diff_m",
                "head.head.diff", "blocks.1.norm3.diff"} <= keys  # fmt: skip


@pytest.mark.parametrize("form", ["pusa", "peft", "diffusers"])
def test_what_a_format_cannot_hold_is_not_dropped(tmp_path, model, adapter, form):
    with pytest.raises(WeightsError, match="has no place for what this LoRA"):
        write_lora(add_diffs(adapter, model), tmp_path / "x.safetensors", form)
    assert not list(tmp_path.iterdir())


def test_a_peft_folder_is_peftsown(tmp_path, model):
    """Loaded by PeftModel, which reads ranks and alphas from the configuration."""
    from peft import PeftModel

    targets = dict(make_adapter(model, RANK, alpha=8.0).targets)
    odd = next(iter(targets))
    targets[odd] = Target(torch.randn(2, 64), torch.randn(64, 2), 5.0)
    given = Adapter(targets)
    folder = write_lora(given, tmp_path / "peft", "peft")
    theirs = PeftModel.from_pretrained(make_twin(T2V), folder)
    ours = make_twin(T2V)
    load_lora(ours, read_lora(folder))
    inputs = example(ours)
    with torch.no_grad():
        assert difference(theirs(*inputs), ours(*inputs)) < 1e-5
    same_update(read_lora(folder), given)


def test_peft_configurations_are_honoured(tmp_path):
    tensors = {f"base_model.model.blocks.{i}.ffn.0.lora_{part}.weight": torch.ones(shape)
               for i in (0, 11) for part, shape in (("A", (4, 8)), ("B", (8, 4)))}  # fmt: skip
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"blocks.11.ffn.0": 2}}
    for extra, expected in (({}, (2.0, 0.5)), ({"use_rslora": True}, (4.0, 1.0))):
        folder = tmp_path / f"peft{len(extra)}"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config | extra))
        for path in (folder, folder / "adapter_model.safetensors"):
            found = read_lora(path)
            scales = (found["blocks.0.ffn.0"].scale, found["blocks.11.ffn.0"].scale)
            assert scales == expected
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(WeightsError, match="DoRA is not read"):
        read_lora(folder)


def example(model):
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, model.in_channels, 2, 8, 8, generator=generator)
    text = torch.randn(2, model.text_len, model.text_dim, generator=generator)
    mask = torch.ones(2, model.text_len, dtype=torch.bool)
    return latents, torch.tensor([0.3, 0.7]), Text(text, mask)


@pytest.mark.parametrize("form", ["diffusers", "comfy", "kohya"])
@pytest.mark.parametrize("alpha", [4.0, 8.0, None])
def test_diffusers_loads_what_is_written_and_its_output_changes_alike(tmp_path, form, alpha):
    model = make_twin(T2V)
    theirs = WanTransformer3DModel.from_config(diffusers_config(VARIANTS[T2V]))
    theirs.load_state_dict(
        {_diffusers_name(key): tensor for key, tensor in model.state_dict().items()}
    )
    inputs = example(model)
    given = make_adapter(model, RANK, alpha)
    path = write_lora(given, tmp_path / "lora.safetensors", form)
    with torch.no_grad():
        before = model(*inputs)
        load_lora(model, path)
        ours = model(*inputs)
    assert difference(ours, before) > 0.1
    # What WanPipeline.load_lora_weights does: its conversion by prefix, then the transformer's.
    state = WanLoraLoaderMixin.lora_state_dict(load_file(path))
    theirs.load_lora_adapter(state, prefix="transformer")
    with torch.no_grad():
        found = theirs(hidden_states=inputs[0], timestep=1000 * inputs[1],
                       encoder_hidden_states=inputs[2].embedding).sample  # fmt: skip
    assert difference(found, ours) < 1e-4


def _diffusers_name(key: str) -> str:
    module, _, part = key.rpartition(".")
    return rename_wan_module(key, "diffusers") or f"{rename_wan_module(module, 'diffusers')}.{part}"


def test_diffusers_loads_a_mochi_lora_alike(tmp_path):
    from diffusers import MochiTransformer3DModel

    from pusa.weights import mochi_keys
    from pusa.weights.lazy import InMemory, View

    name = "mochi_1_tiny"
    model = make_twin(name)
    theirs = MochiTransformer3DModel.from_config(diffusers_config(VARIANTS[name]))
    state = InMemory(model.state_dict())
    theirs.load_state_dict(dict(View(state, mochi_keys.to_diffusers(state))))
    path = write_lora(make_adapter(model, RANK, 8.0), tmp_path / "lora.safetensors", "diffusers")
    load_lora(model, path)
    theirs.load_lora_adapter(load_file(path), prefix="transformer")
    latents, sigma, text = example(model)
    with torch.no_grad():
        ours = model(latents, sigma, text)
        found = theirs(latents, text.embedding, 1000 * (1 - sigma), text.mask).sample
    assert difference(-found, ours) < 1e-4


def test_mochi_parts_with_their_own_factors_are_stacked(tmp_path):
    """A diffusers LoRA trained on to_q and to_v alone, each with its own A."""
    generator = torch.Generator().manual_seed(0)
    block = "transformer.transformer_blocks.0.attn1"
    factors = {name: (torch.randn(rank, 96, generator=generator),
                      torch.randn(96, rank, generator=generator))
               for name, rank in (("to_q", 2), ("to_v", 3))}  # fmt: skip
    tensors = {}
    for name, (a, b) in factors.items():
        tensors |= {f"{block}.{name}.lora_A.weight": a, f"{block}.{name}.lora_B.weight": b}
    save_file(tensors, tmp_path / "x.safetensors")
    target = read_lora(tmp_path / "x.safetensors")["blocks.0.attn.qkv_x"]
    q, k, v = target.delta().chunk(3)
    torch.testing.assert_close(q, factors["to_q"][1] @ factors["to_q"][0])
    torch.testing.assert_close(v, factors["to_v"][1] @ factors["to_v"][0])
    assert not k.any()


def test_experts_are_told_apart(tmp_path, model):
    high, low = (make_adapter(model, RANK, RANK, seed=seed) for seed in (1, 2))
    files = {}
    for expert, given in (("high", high), ("low", low)):
        given = Adapter(given.targets, expert)
        files[expert] = write_lora(given, tmp_path / f"{expert}.safetensors", "diffusers")
        comfy = write_lora(given, tmp_path / f"{expert}_comfy.safetensors")
        assert read_lora(comfy).expert == expert
    assert all(key.startswith("transformer_2.") for key in load_file(files["low"]))
    both = tmp_path / "both.safetensors"
    save_file(load_file(files["high"]) | load_file(files["low"]), both)
    with pytest.raises(WeightsError, match="LoRAs of both experts; choose"):
        read_lora(both)
    same_update(read_lora(both, "high"), high)
    same_update(read_lora(both, "low"), low)
    with pytest.raises(WeightsError, match="for the low-noise expert, this is the high-noise one"):
        load_lora(make_twin(T2V), tmp_path / "low_comfy.safetensors", expert="high")
    with pytest.raises(ValueError, match="expert='middle' is unknown"):
        read_lora(both, "middle")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", "belongs to DoRA"),
        ("diffusion_model.blocks.0.self_attn.q.lokr_w1", "belongs to LoKr"),
        ("diffusion_model.blocks.0.self_attn.q.hada_w1_a", "belongs to LoHa"),
        ("lora_te1_text_model.q.lora_down.weight", "is no module of a Wan or Mochi transformer"),
        ("diffusion_model.blocks.0.self_attn.q.weight", "is not a key of any LoRA format"),
        ("diffusion_model.blocks.0.attn.q.lora_A.weight", r"blocks\.0\.attn\.q is no module"),
        ("unet.down_blocks.0.to_q.lora_A.weight", "it is a LoRA for another model"),
        ("lora_unet_down_blocks_0_to_q.lora_down.weight", "it is a LoRA for another model"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.bias", r"lora_A\.bias has no meaning"),
    ],
)
def test_a_key_that_is_not_understood_is_never_skipped(tmp_path, adapter, key, message):
    tensors = {key: torch.zeros(4, 64)}
    if key.startswith("diffusion_model."):
        tensors |= spelled(adapter, "comfy")
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        read_lora(tmp_path / "x.safetensors")


def test_bad_requests_are_named(tmp_path, adapter):
    with pytest.raises(ValueError, match="format 'dora' is unknown"):
        write_lora(adapter, tmp_path / "x.safetensors", "dora")
    with pytest.raises(ValueError, match=r"only pusa has \.pt"):
        write_lora(adapter, tmp_path / "x.pt", "comfy")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        write_lora(adapter, tmp_path / "x", "comfy")
    with pytest.raises(WeightsError, match="adapter is empty"):
        write_lora(Adapter({}), tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"a folder without adapter_config\.json"):
        read_lora(tmp_path)
    two = {f"blocks.0.ffn.0.lora_{part}.{name}.weight": torch.zeros(2, 2)
           for part in "AB" for name in ("one", "two")}  # fmt: skip
    save_file(two, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match=r"several adapters \(one, two\)"):
        read_lora(tmp_path / "two.safetensors")
    save_file({"diffusion_model.blocks.0.ffn.0.alpha": torch.ones(())}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="no LoRA in it"):
        read_lora(tmp_path / "a.safetensors")
