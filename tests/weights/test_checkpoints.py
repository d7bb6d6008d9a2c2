"""Checkpoints of every variant in every layout: read, written, there and back, refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa.models.variants import VARIANTS
from pusa.weights.convert import Output, convert
from pusa.weights.doctor import fixed_velocity
from pusa.weights.files import WeightsError, find_experts, load_weights, read_checkpoint
from tests.weights.conftest import TWINS, checkpoint_of, make_twin, save

T2V = "wan21_t2v_14b_tiny"
NAMES = {"official": "m", "diffusers": "m", "comfy": "m.safetensors"}
SHARD = 300_000


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.is_file()}


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_there_and_back_is_byte_equal_and_computes_the_same(tmp_path, twin, first, second):
    model = make_twin(twin)
    a = save(model, twin, tmp_path / "a" / NAMES[first], first, shard_bytes=SHARD)
    (b,) = convert(a, Output(tmp_path / "b" / NAMES[second], second, shard_bytes=SHARD))
    (c,) = convert(b, Output(tmp_path / "c" / NAMES[first], first, shard_bytes=SHARD))
    assert contents(a) == contents(c)
    checkpoint = read_checkpoint(b)
    assert checkpoint.layout == second
    assert twin in (checkpoint.variant.name, *checkpoint.variant.same_tensors)
    loaded = checkpoint.variant.build()
    load_weights(loaded, b)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    # Not bit for bit: where a tensor lies in memory may change the order of a sum.
    torch.testing.assert_close(fixed_velocity(loaded), fixed_velocity(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TWINS)
def test_diffusers_loads_the_converted_folder_and_computes_the_same(tmp_path, name):
    import diffusers

    model = make_twin(name)
    path = save(model, name, tmp_path / "transformer", "diffusers", shard_bytes=SHARD)
    family = VARIANTS[name].family
    kind = {"wan": diffusers.WanTransformer3DModel, "mochi": diffusers.MochiTransformer3DModel}
    theirs = kind[family].from_pretrained(path).eval()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, model.in_channels, 2, 8, 8, generator=generator)
    text = torch.randn(1, model.text_len, model.text_dim, generator=generator)
    mask = torch.ones(1, model.text_len, dtype=torch.bool)
    from pusa.types import Text

    sigma = torch.tensor([0.3])
    inputs = {"hidden_states": latents, "encoder_hidden_states": text, "timestep": 1000 * sigma}
    extra = []
    if family == "mochi":
        inputs |= {"encoder_attention_mask": mask, "timestep": 1000 * (1 - sigma)}
    if VARIANTS[name].arguments.get("image_branch"):
        extra = [torch.randn(1, 257, 1280, generator=generator)]
        inputs["encoder_hidden_states_image"] = extra[0]
    with torch.no_grad():
        ours = model(latents, sigma, Text(text, mask), *extra)
        expected = theirs(**inputs).sample
    expected = -expected if family == "mochi" else expected
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_a_pickled_checkpoint_and_other_prefixes_are_read(tmp_path):
    model = make_twin(T2V)
    state = model.state_dict()
    for name, prefix, rest in (
        ("plain.pth", "", {}),
        ("module.pth", "module.", {}),
        ("kijai.safetensors", "diffusion_model.", {}),
        ("all_in_one.safetensors", "model.diffusion_model.", {"vae.conv1.weight": torch.ones(2)}),
    ):
        tensors = {prefix + key: t.clone() for key, t in state.items()} | rest
        (torch.save if name.endswith("pth") else save_file)(tensors, tmp_path / name)
        loaded = VARIANTS[T2V].build()
        load_weights(loaded, tmp_path / name)
        torch.testing.assert_close(
            fixed_velocity(loaded), fixed_velocity(model), atol=1e-5, rtol=1e-5
        )


def test_a_diffusers_pipeline_is_entered(tmp_path):
    save(make_twin(T2V), T2V, tmp_path / "pipe" / "transformer", "diffusers")
    assert read_checkpoint(tmp_path / "pipe").layout == "diffusers"


def test_two_experts_are_converted_together_and_one_must_be_named(tmp_path):
    name = "wan22_t2v_a14b_tiny"
    models = {"high": make_twin(name, 1), "low": make_twin(name, 2)}
    for expert, model in models.items():
        save(model, name, tmp_path / "official" / f"{expert}_noise_model")
    with pytest.raises(WeightsError, match="holds two experts; name one"):
        read_checkpoint(tmp_path / "official")
    written = convert(tmp_path / "official", Output(tmp_path / "pipe", "diffusers"))
    assert [path.name for path in written] == ["transformer", "transformer_2"]
    assert find_experts(tmp_path / "pipe").keys() == {"high", "low"}
    convert(tmp_path / "pipe", Output(tmp_path / "back", "official"))
    assert contents(tmp_path / "back") == contents(tmp_path / "official")
    loaded = VARIANTS[name].build()
    load_weights(loaded, tmp_path / "pipe" / "transformer_2")
    torch.testing.assert_close(
        fixed_velocity(loaded), fixed_velocity(models["low"]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("generation", [("scale_weight", "scale_input"), ("weight_scale", "x")])
@pytest.mark.parametrize("per_row", [False, True])
def test_float8_with_scales_is_read_scaled(tmp_path, generation, per_row):
    model = make_twin(T2V)
    expected, tensors = {}, {}
    for key, t in model.state_dict().items():
        if ".ffn." in key and key.endswith(".weight"):
            scale = (t.abs().amax(1) if per_row else t.abs().max()) / 448
            rows = scale[:, None] if per_row else scale
            packed = (t / rows).to(torch.float8_e4m3fn)
            expected[key] = packed.float() * rows
            tensors[key] = packed
            module = key.removesuffix("weight")
            tensors[f"{module}{generation[0]}"] = scale
            if generation[0] == "scale_weight":
                tensors[f"{module}{generation[1]}"] = torch.tensor(1.0)
            else:
                mark = json.dumps({"format": "float8_e4m3fn"}).encode()
                tensors[f"{module}comfy_quant"] = torch.tensor(list(mark), dtype=torch.uint8)
        else:
            expected[key] = tensors[key] = t
    if generation[0] == "scale_weight":
        tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    path = tmp_path / "fp8.safetensors"
    save_file({f"model.diffusion_model.{k}": t for k, t in tensors.items()}, path)
    loaded = VARIANTS[T2V].build()
    load_weights(loaded, path)
    for key, t in loaded.state_dict().items():
        assert torch.equal(t, expected[key]), key
    (bf16,) = convert(path, Output(tmp_path / "bf16", "official"))
    found = load_file(bf16 / "diffusion_pytorch_model.safetensors")
    assert torch.equal(found["blocks.0.ffn.0.weight"], expected["blocks.0.ffn.0.weight"].bfloat16())


def test_quantization_that_is_not_read_is_named(tmp_path):
    state = dict(make_twin(T2V).state_dict())
    key = "blocks.0.ffn.0.weight"
    mark = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    for extra, message in (
        ({key: torch.zeros(4, 4, dtype=torch.uint8)}, "is packed integers"),
        ({"blocks.0.ffn.0.scale_weight": torch.tensor(1.0)}, "has a scale but is torch.float32"),
        ({"blocks.9.ffn.0.scale_weight": torch.tensor(1.0)}, "which is not there"),
        ({"blocks.0.ffn.0.comfy_quant": mark}, "says nvfp4; only float8"),
    ):
        save_file(state | extra, tmp_path / "x.safetensors")
        with pytest.raises(WeightsError, match=message):
            read_checkpoint(tmp_path / "x.safetensors")


def damage_key(folder: Path, kind: str) -> None:
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    key = "blocks.1.cross_attn.q.weight"
    if kind == "missing key":
        del state[key]
    elif kind == "extra key":
        state["blocks.1.cross_attn.q.extra"] = torch.zeros(1)
    elif kind == "wrong shape":
        state[key] = torch.zeros(3, 3)
    save_file(state, file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing key", r"misses blocks\.1\.cross_attn\.q\.weight"),
        ("extra key", r"has an unknown blocks\.1\.cross_attn\.q\.extra"),
        (
            "wrong shape",
            r"blocks\.1\.cross_attn\.q\.weight is \(3, 3\), the model needs \(64, 64\)",
        ),
    ],
)
@pytest.mark.parametrize("reader", ["read_checkpoint", "load_weights", "convert"])
def test_a_wrong_key_is_refused_by_name_and_nothing_is_loaded(tmp_path, kind, message, reader):
    path = save(make_twin(T2V), T2V, tmp_path / "m")
    damage_key(path, kind)
    model = VARIANTS[T2V].build()
    read = {
        "read_checkpoint": read_checkpoint,
        "load_weights": lambda p: load_weights(model, p),
        "convert": lambda p: convert(p, Output(tmp_path / "out", "diffusers")),
    }[reader]
    with pytest.raises(WeightsError, match=message):
        read(path)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not (tmp_path / "out").exists()


def damage_shards(folder: Path, kind: str) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    (index,) = folder.glob("*.index.json")
    content = json.loads(index.read_text())
    if kind == "missing shard":
        shards[1].unlink()
    elif kind == "truncated shard":
        shards[1].write_bytes(shards[1].read_bytes()[:-10])
    elif kind == "swapped shards":
        shutil.copy(shards[0], shards[1])
    elif kind == "index without a key":
        content["weight_map"].popitem()
        index.write_text(json.dumps(content))
    elif kind == "broken index":
        index.write_text("{")
    elif kind == "two indices":
        shutil.copy(index, folder / "other.safetensors.index.json")
    elif kind == "no index":
        index.unlink()
    elif kind == "nothing":
        for file in (*shards, index):
            file.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing shard", "1 of 4 shards are missing .*-00002-of-00004"),
        ("truncated shard", r"00002-of-00004\.safetensors: not a whole safetensors file"),
        ("swapped shards", r"0000[12]-of-00004\.safetensors as well"),
        ("index without a key", "shards and index are of different checkpoints"),
        ("broken index", "not a readable index"),
        ("two indices", r"2 indices .*name the file, or the index\.json"),
        ("no index", "4 .safetensors files and 0 indices"),
        ("nothing", "no .safetensors files in it"),
    ],
)
def test_damaged_shards_are_refused_by_name(tmp_path, kind, message):
    path = save(make_twin(T2V), T2V, tmp_path / "m", shard_bytes=SHARD)
    damage_shards(path, kind)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)


def test_another_variants_file_is_refused_with_what_it_lacks(tmp_path):
    path = save(make_twin("wan21_t2v_1_3b_tiny"), "wan21_t2v_1_3b_tiny", tmp_path / "m")
    with pytest.raises(WeightsError, match=r"does not fit WanDiT.*choose the model="):
        load_weights(VARIANTS[T2V].build(), path)


def test_a_fused_tensor_with_a_part_missing_is_named(tmp_path):
    name = "mochi_1_tiny"
    path = save(make_twin(name), name, tmp_path / "m", "diffusers")
    file = path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["transformer_blocks.1.attn1.to_k.weight"]
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"misses transformer_blocks\.1\.attn1\.to_k\.weight"):
        read_checkpoint(path)


def test_a_dtype_may_be_asked_for_and_float32_parts_stay(tmp_path):
    model = make_twin(T2V)
    path = save(model, T2V, tmp_path / "m")
    loaded = VARIANTS[T2V].build()
    load_weights(loaded, path, torch.bfloat16)
    state = loaded.state_dict()
    assert state["blocks.0.ffn.0.weight"].dtype == torch.bfloat16
    assert state["blocks.0.modulation"].dtype == torch.float32
    assert torch.equal(state["blocks.0.modulation"], model.state_dict()["blocks.0.modulation"])


def test_metadata_goes_with_the_weights(tmp_path):
    checkpoint = checkpoint_of(make_twin(T2V), T2V)
    checkpoint.tensors.metadata = {"format": "pt", "licence": "Apache-2.0"}
    from pusa.weights.convert import write

    path = write(checkpoint, Output(tmp_path / "x.safetensors", "comfy"))
    assert read_checkpoint(path).tensors.metadata["licence"] == "Apache-2.0"


def test_a_comfy_checkpoint_is_one_file(tmp_path):
    path = save(make_twin(T2V), T2V, tmp_path / "m")
    with pytest.raises(ValueError, match="a ComfyUI checkpoint is one file"):
        convert(path, Output(tmp_path / "out", "comfy"))
