"""LoRA files that are odd, foreign or half: read right, or refused by name; never half-read."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa.weights.adapters import Adapter, Target
from pusa.weights.convert import Output
from pusa.weights.doctor import diagnose, fixed_velocity
from pusa.weights.files import load_weights, read_checkpoint
from pusa.weights.lazy import WeightsError
from pusa.weights.lora import LoRA, adapter_of, inject_lora, load_lora, read_lora, write_lora
from pusa.weights.merge import merge
from pusa.weights.resize import resize
from tests.weights.conftest import VARIANTS, add_diffs, difference, make_adapter, make_twin, save

T2V = "wan21_t2v_14b_tiny"
Q = "diffusion_model.blocks.0.self_attn.q"


@pytest.fixture(scope="module")
def model():
    return make_twin(T2V)


@pytest.fixture
def tensors(model, tmp_path):
    return load_file(write_lora(make_adapter(model, 4, 4.0), tmp_path / "good.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{Q}.lora_A.weight": None}, r"blocks\.0\.self_attn\.q misses its A"),
        ({f"{Q}.lora_B.weight": None}, r"blocks\.0\.self_attn\.q misses its B"),
        ({f"{Q}.lora_A.weight": None, f"{Q}.lora_B.weight": None}, "an alpha alone"),
        ({f"{Q}.lora_down.weight": torch.zeros(4, 64)}, "is in the file twice"),
        ({"blocks.0.self_attn.q.alpha": torch.ones(())}, "is in the file twice"),
        ({f"{Q}.lora_A.default.weight": torch.zeros(4, 64)}, "is in the file twice"),
        ({f"{Q}.alpha": torch.tensor(float("nan"))}, r"q\.alpha is no number"),
        ({f"{Q}.alpha": torch.ones(2)}, r"q\.alpha is no number"),
        ({f"{Q}.lora_A.weight": torch.zeros(3, 64)}, "do not fit together"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 64, 3, 3)}, "LoRAs of convolutions are not read"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int8)}, "quantized LoRAs"),
    ],
)
def test_what_is_half_or_double_is_refused(tensors, tmp_path, change, message):
    tensors |= {key: value for key, value in change.items() if value is not None}
    for key in [key for key, value in change.items() if value is None]:
        del tensors[key]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message) as error:
        read_lora(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(error.value)


def test_one_module_in_two_spellings_is_refused(tensors, tmp_path):
    for part in ("A", "B"):
        tensors[f"diffusion_model.blocks.0.attn1.to_q.lora_{part}.weight"] = torch.zeros(64, 64)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="is in the file twice"):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "same",
    [
        lambda t: {k: v[:, :, None, None] if "lora_" in k else v for k, v in t.items()},
        lambda t: {k: v.reshape(1) if "alpha" in k else v for k, v in t.items()},
        lambda t: {k: v.bfloat16() if "alpha" in k else v for k, v in t.items()},
        lambda t: {k.removeprefix("diffusion_model.") if "blocks.0" in k else k: v
                   for k, v in t.items()},
    ],
    ids=["1x1", "alpha of one", "alpha in bfloat16", "half prefixed"],
)  # fmt: skip
def test_odd_but_legal_files_are_the_same_lora(model, tensors, tmp_path, same):
    save_file({k: v.contiguous() for k, v in same(tensors).items()}, tmp_path / "x.safetensors")
    found, expected = read_lora(tmp_path / "x.safetensors"), make_adapter(model, 4, 4.0)
    assert all(torch.equal(found[m].delta(), target.delta()) for m, target in expected.items())


def test_float8_factors_are_read_as_float32(tensors, tmp_path):
    small = {k: v.to(torch.float8_e4m3fn) if "lora_" in k else v for k, v in tensors.items()}
    save_file(small, tmp_path / "x.safetensors")
    target = read_lora(tmp_path / "x.safetensors")["blocks.0.self_attn.q"]
    assert torch.equal(target.A, small[f"{Q}.lora_A.weight"].float())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"recipe": "my wan lora"}, None),
        ({"recipe": "[1, 2]", "pusa.format": "lora"}, None),
        ({"lora_adapter_metadata": "[]"}, "lora_adapter_metadata: is no JSON object"),
        ({"lora_adapter_metadata": "{"}, "lora_adapter_metadata: is not JSON"),
    ],
)
def test_foreign_metadata_never_breaks_reading_without_a_word(tensors, tmp_path, metadata, message):
    plain = {k: v for k, v in tensors.items() if "alpha" not in k}
    save_file(plain, tmp_path / "x.safetensors", metadata)
    if message is None:
        assert read_lora(tmp_path / "x.safetensors").recipe == {}
    else:
        with pytest.raises(WeightsError, match=message):
            read_lora(tmp_path / "x.safetensors")


def test_pefts_alpha_is_found_whatever_the_file_is_called(model, tmp_path):
    given = make_adapter(model, 4, 8.0)
    folder = write_lora(given, tmp_path / "peft", "peft")
    content = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").rename(folder / "renamed.safetensors")
    assert read_lora(folder / "renamed.safetensors")["blocks.0.ffn.0"].scale == 2
    torch.save(content, folder / "adapter_model.bin")
    assert read_lora(folder)["blocks.0.ffn.0"].scale == 2
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"adapter_config\.json: is no JSON object"):
        read_lora(folder)


def test_the_halves_of_a_two_expert_file_know_their_expert(model, tmp_path):
    files = {}
    for expert in ("high", "low"):
        given = Adapter(make_adapter(model, 4, 4.0).targets, expert)
        files |= load_file(write_lora(given, tmp_path / f"{expert}.safetensors", "diffusers"))
    both = tmp_path / "both.safetensors"
    save_file(files, both)
    for expert, other in (("high", "low"), ("low", "high")):
        found = read_lora(both, expert)
        assert found.expert == expert
        assert read_lora(write_lora(found, tmp_path / "half.safetensors")).expert == expert
        with pytest.raises(WeightsError, match=f"for the {expert}-noise expert"):
            load_lora(make_twin(T2V), found, expert=other)
    save_file(files | {"text_encoder.x.lora_A.weight": torch.zeros(1)}, both)
    with pytest.raises(WeightsError, match=r"text_encoder\.x\.lora_A"):
        read_lora(both, "high")


def test_merge_refuses_the_other_experts_lora(model, tmp_path):
    for expert in ("high", "low"):
        save(model, T2V, tmp_path / f"{expert}_noise_model")
    high = Adapter(make_adapter(model, 4, 4.0).targets, "high")
    with pytest.raises(WeightsError, match="this is the low-noise one"):
        merge(tmp_path / "low_noise_model", [(high, 1.0)], Output(tmp_path / "out"))
    merge(tmp_path / "high_noise_model", [(high, 1.0)], Output(tmp_path / "out"))
    with pytest.raises(WeightsError, match="is there already"):
        merge(tmp_path / "high_noise_model", [(high, 1.0)], Output(tmp_path / "out"))


def test_merge_rounds_once_to_the_dtype_that_is_asked_for(model, tmp_path):
    """A small update to a bfloat16 base is not lost in a float32 output."""
    path = save(model, T2V, tmp_path / "base", dtype=torch.bfloat16)
    adapter = make_adapter(model, 4, 4.0)
    merge(path, [(adapter, 0.01)], Output(tmp_path / "x.safetensors", "official", torch.float32))
    for key in ("blocks.0.ffn.0.weight", "blocks.3.self_attn.v.weight"):
        base, merged = (read_checkpoint(p).tensors[key].double() for p in
                        (path, tmp_path / "x.safetensors"))  # fmt: skip
        delta = 0.01 * adapter[key.removesuffix(".weight")].delta().double()
        assert float((merged - base - delta).norm() / delta.norm()) < 1e-3


def test_merge_refuses_nan_and_what_changes_nothing(model, tmp_path):
    path = save(model, T2V, tmp_path / "base")
    good = make_adapter(model, 4, 4.0)
    for bad, message in (
        (lambda t: Target(t.A, torch.zeros_like(t.B), 4.0), "would change nothing"),
        (lambda t: Target(t.A, t.B * float("nan"), 4.0), "B holds NaN"),
        (lambda t: Target(t.A, t.B, float("inf")), "alpha is inf"),
    ):
        adapter = Adapter({m: bad(t) for m, t in good.items()})
        with pytest.raises(WeightsError, match=message):
            merge(path, [(adapter, 1.0)], Output(tmp_path / "out"))
        with pytest.raises(WeightsError, match=message):
            load_lora(make_twin(T2V), adapter)
    assert not (tmp_path / "out").exists()


def test_a_scale_that_overflows_its_dtype_is_not_written(model, tmp_path):
    target = Target(torch.ones(4, 64).half(), torch.full((64, 4), 3000.0).half(), 400.0)
    with pytest.raises(WeightsError, match="holds NaN or infinity"):
        write_lora(Adapter({"blocks.0.self_attn.q": target}), tmp_path / "x.safetensors", "pusa")
    assert not list(tmp_path.iterdir())


def test_a_change_of_another_shape_with_as_many_numbers_is_refused(model):
    shape = model.blocks[0].ffn[0].weight.shape
    adapter = Adapter({"blocks.0.ffn.0": Target(diffs={"weight": torch.ones(shape[::-1])})})
    with pytest.raises(
        WeightsError, match=r"the change of blocks\.0\.ffn\.0\.weight is \(64, 176\)"
    ):
        load_lora(make_twin(T2V), adapter)


def test_a_convolution_is_called_one(model):
    target = Target(torch.ones(2, 64), torch.ones(64, 2))
    with pytest.raises(WeightsError, match="patch_embedding is a convolution"):
        load_lora(make_twin(T2V), Adapter({"patch_embedding": target}))


def test_resize_never_strengthens_a_layer_that_is_smaller_than_the_rank():
    target = Target(torch.randn(128, 64), torch.randn(64, 128), 128.0)
    shrunk = resize(Adapter({"head.head": target}), 100)
    found = shrunk.adapter["head.head"]
    assert found.scale == 1
    assert shrunk.error == pytest.approx(0, abs=1e-6)
    assert difference(found.delta(), target.delta()) < 1e-3


def test_resize_keeps_what_is_added_outright(model):
    adapter = add_diffs(make_adapter(model, 8, 8.0), model)
    shrunk = resize(adapter, 2).adapter
    assert all(shrunk[m].diffs.keys() == target.diffs.keys() for m, target in adapter.items())


def test_fused_parts_keep_their_scales(tmp_path):
    """Mochi's q, k, v with one A but other alphas, and diffusers' swapped SwiGLU with a bias."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 96, generator=generator), torch.randn(96, 2, generator=generator)
    block = "transformer.transformer_blocks.0"
    tensors = {}
    for name, alpha in (("to_q", 2.0), ("to_k", 1.0), ("to_v", 4.0)):
        tensors |= {f"{block}.attn1.{name}.lora_A.weight": a.clone(),
                    f"{block}.attn1.{name}.lora_B.weight": b.clone(),
                    f"{block}.attn1.{name}.alpha": torch.tensor(alpha)}  # fmt: skip
    save_file(tensors, tmp_path / "x.safetensors")
    target = read_lora(tmp_path / "x.safetensors")["blocks.0.attn.qkv_x"]
    for part, scale in zip(target.delta().chunk(3), (1.0, 0.5, 2.0), strict=True):
        torch.testing.assert_close(part, scale * b @ a)


def test_diffusers_bias_is_scaled_with_its_update(tmp_path):
    block = "transformer.blocks.0.attn1.to_q"
    save_file(
        {f"{block}.lora_A.weight": torch.ones(4, 64), f"{block}.lora_B.weight": torch.ones(64, 4),
         f"{block}.lora_B.bias": torch.full((64,), 3.0), f"{block}.alpha": torch.tensor(8.0)},
        tmp_path / "x.safetensors",
    )  # fmt: skip
    diffs = read_lora(tmp_path / "x.safetensors")["blocks.0.self_attn.q"].diffs
    assert torch.equal(diffs["bias"], torch.full((64,), 6.0))


@pytest.mark.parametrize("last", [False, True])
def test_mochis_text_modulation_keeps_its_diffusers_name(tmp_path, last):
    """The last block's is called otherwise, also when it is the only one that is adapted."""
    name = "mochi_1_tiny"
    layers = VARIANTS[name].arguments["num_layers"]
    module = f"blocks.{layers - 1 if last else 0}.mod_y"
    linear = make_twin(name).get_submodule(module)
    target = Target(torch.ones(2, linear.in_features), torch.ones(linear.out_features, 2))
    path = write_lora(Adapter({module: target}), tmp_path / "x.safetensors", "diffusers")
    assert all(("linear_1" in key) == last for key in load_file(path))
    assert set(read_lora(path)) == {module}
    for form in ("kohya", "comfy"):
        path = write_lora(Adapter({module: target}), tmp_path / f"{form}.safetensors", form)
        assert set(read_lora(path)) == {module}


def test_a_diffusers_lora_without_a_prefix_is_called_so(model, tmp_path):
    path = write_lora(make_adapter(model, 4, 4.0), tmp_path / "x.safetensors", "diffusers")
    bare = {key.removeprefix("transformer."): t for key, t in load_file(path).items()}
    save_file(bare, path)
    assert read_lora(path).format == "diffusers"


def test_outside_the_blocks_the_scale_goes_into_b(tmp_path):
    """diffusers' converter knows alpha inside the blocks alone."""
    target = Target(torch.ones(2, 64), torch.ones(64, 2), 6.0)
    path = write_lora(Adapter({"head.head": target}), tmp_path / "x.safetensors")
    assert "diffusion_model.head.head.alpha" not in load_file(path)
    assert torch.equal(read_lora(path)["head.head"].delta(), target.delta())


def test_adapter_names_that_torch_cannot_hold_are_refused(model):
    for name in ("v1.0", "keys", ""):
        with pytest.raises(ValueError, match="cannot be a name"):
            load_lora(make_twin(T2V), make_adapter(model, 4, 4.0), adapter=name)


def test_loading_beside_one_that_trains_leaves_it_training(model):
    training = make_twin(T2V)
    inject_lora(training, LoRA(rank=2, alpha=2))
    before = [name for name, p in training.named_parameters() if p.requires_grad]
    state = torch.get_rng_state()
    load_lora(training, make_adapter(model, 4, 4.0), adapter="lightx2v")
    assert [name for name, p in training.named_parameters() if p.requires_grad] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_loaded_is_written_again_whole(model, tmp_path):
    given = add_diffs(make_adapter(model, 4, 8.0), model)
    loaded = make_twin(T2V)
    load_lora(loaded, given)
    again = read_lora(write_lora(adapter_of(loaded), tmp_path / "x.safetensors"))
    other = make_twin(T2V)
    load_lora(other, again)
    assert torch.equal(fixed_velocity(other), fixed_velocity(loaded))


def test_a_mochi_lora_as_diffusers_saves_it_is_good(tmp_path):
    """Every part has its own A, and alpha stands in the metadata."""
    name = "mochi_1_tiny"
    base = save(make_twin(name), name, tmp_path / "m")
    generator = torch.Generator().manual_seed(0)
    tensors, block = {}, "transformer.transformer_blocks.0.attn1"
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        for letter, shape in (("A", (4, 96)), ("B", (96, 4))):
            value = 0.1 * torch.randn(shape, generator=generator)
            tensors[f"{block}.{part}.lora_{letter}.weight"] = value
    config = {"transformer.r": 4, "transformer.lora_alpha": 8}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    found = diagnose(tmp_path / "x.safetensors", base)
    assert found.ok, found.text()
    target = read_lora(tmp_path / "x.safetensors")["blocks.0.attn.proj_x"]
    assert target.scale == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "mixed"])
def test_the_doctor_takes_bases_of_any_precision(model, tmp_path, dtype):
    state = {
        key: t.bfloat16() if dtype == "mixed" and t.ndim == 2 else t if dtype == "mixed"
        else t.to(dtype)
        for key, t in model.state_dict().items()
    }  # fmt: skip
    save_file(state, tmp_path / "base.safetensors")
    lora = write_lora(make_adapter(model, 4, 4.0), tmp_path / "x.safetensors")
    assert diagnose(lora, tmp_path / "base.safetensors").ok


def test_the_doctor_reads_the_index_that_it_is_given(model, tmp_path):
    base = save(model, T2V, tmp_path / "low_noise_model", shard_bytes=300_000)
    save(model, T2V, tmp_path / "high_noise_model")
    (index,) = base.glob("*.index.json")
    (base / "copy.safetensors.index.json").write_text(index.read_text())
    high = Adapter(make_adapter(model, 4, 4.0).targets, "high")
    path = write_lora(high, tmp_path / "x.safetensors")
    assert "wrong expert" in diagnose(path, index).errors[0]
    assert diagnose(path, index, expert="high").ok


def test_the_time_path_is_float32_of_a_bfloat16_file_too(model, tmp_path):
    path = save(model, T2V, tmp_path / "m", dtype=torch.bfloat16)
    loaded = VARIANTS[T2V].build()
    load_weights(loaded, path, torch.bfloat16)
    state = loaded.state_dict()
    for key in ("time_embedding.0.weight", "blocks.0.modulation", "blocks.0.norm3.weight"):
        assert state[key].dtype == torch.float32, key
    assert state["blocks.0.ffn.0.weight"].dtype == torch.bfloat16
