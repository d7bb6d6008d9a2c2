"""Key tables of the VAEs: both ways, against diffusers' own converter, at full size on meta."""

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from pusa.pipelines.tiny_parts import VAE_ARGUMENTS, make_vae
from pusa.weights import vae_keys
from pusa.weights.lazy import InMemory, View, WeightsError

# What diffusers' folders say of the released VAEs.
FULL_SIZE = {
    "wan21": {},
    "wan22": {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True,
        "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
    },
    "mochi": {},
}  # fmt: skip
KINDS = list(FULL_SIZE)


def full_size(kind: str) -> torch.nn.Module:
    build = diffusers.AutoencoderKLMochi if kind == "mochi" else diffusers.AutoencoderKLWan
    with torch.device("meta"):
        return build(**FULL_SIZE[kind])


def official_view(state) -> View:
    return View(InMemory(state), vae_keys.to_official(state))


@pytest.mark.parametrize(
    ("kind", "num_keys", "num_parameters"),
    [("wan21", 194, 126_892_531), ("wan22", 196, 704_688_668), ("mochi", 405, 459_748_611)],
)
def test_official_files_have_as_many_keys_and_numbers(kind, num_keys, num_parameters):
    """Wan's counts are of the vendor's files; Mochi's 362 M are the decoder alone, see below."""
    specs = official_view(full_size(kind).state_dict()).specs()
    assert len(specs) == num_keys
    assert sum(spec.numel() for spec in specs.values()) == num_parameters


def test_mochis_decoder_has_the_published_size():
    """Genmo's model card counts 362 M parameters."""
    decoder = full_size("mochi").get_submodule("decoder")
    assert sum(p.numel() for p in decoder.parameters()) // 10**6 == 362


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact_to_the_byte(kind):
    state = make_vae(kind).state_dict()
    official = official_view(state)
    back = View(official, vae_keys.to_diffusers(official))
    assert set(back) == set(state)
    for key, tensor in state.items():
        assert torch.equal(back[key], tensor), key
        assert back.spec(key).shape == tensor.shape
    again = View(back, vae_keys.to_official(back))
    assert all(torch.equal(again[key], official[key]) for key in official)


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_wan21_names_are_those_of_diffusers_converter(size):
    vae = make_vae("wan21") if size == "tiny" else full_size("wan21")
    official = official_view(vae.state_dict())
    theirs = convert_wan_vae_to_diffusers({key: key for key in official})
    ours = vae_keys.to_diffusers(official)
    assert {key: piece.sources for key, piece in ours.items()} == {
        key: (source,) for key, source in theirs.items()
    }


@pytest.mark.parametrize(
    ("kind", "official", "ours"),
    [  # from the vendors' modules: Wan's vae.py and vae2_2.py, Genmo's models.py
        ("wan21", "conv2.bias", "post_quant_conv.bias"),
        (
            "wan21",
            "decoder.upsamples.7.time_conv.weight",
            "decoder.up_blocks.1.upsamplers.0.time_conv.weight",
        ),
        (
            "wan21",
            "decoder.upsamples.12.residual.3.gamma",
            "decoder.up_blocks.3.resnets.0.norm2.gamma",
        ),
        ("wan21", "encoder.middle.1.to_qkv.weight", "encoder.mid_block.attentions.0.to_qkv.weight"),
        (
            "wan22",
            "encoder.downsamples.1.downsamples.2.resample.1.bias",
            "encoder.down_blocks.1.downsampler.resample.1.bias",
        ),
        (
            "wan22",
            "encoder.downsamples.3.downsamples.1.residual.6.weight",
            "encoder.down_blocks.3.resnets.1.conv2.weight",
        ),
        (
            "wan22",
            "decoder.upsamples.0.upsamples.3.time_conv.bias",
            "decoder.up_blocks.0.upsampler.time_conv.bias",
        ),
        (
            "wan22",
            "decoder.upsamples.2.upsamples.0.shortcut.weight",
            "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
        ),
        ("mochi", "encoder.layers.0.weight", "encoder.proj_in.weight"),
        ("mochi", "encoder.layers.4.layers.0.weight", "encoder.down_blocks.0.conv_in.conv.weight"),
        (
            "mochi",
            "encoder.layers.6.layers.6.stack.5.bias",
            "encoder.down_blocks.2.resnets.5.conv2.conv.bias",
        ),
        (
            "mochi",
            "encoder.layers.9.attn_block.norm.weight",
            "encoder.block_out.norms.2.norm_layer.weight",
        ),
        (
            "mochi",
            "decoder.blocks.0.3.stack.0.weight",
            "decoder.block_in.resnets.2.norm1.norm_layer.weight",
        ),
        ("mochi", "decoder.blocks.1.proj.bias", "decoder.up_blocks.0.proj.bias"),
        (
            "mochi",
            "decoder.blocks.4.2.stack.2.weight",
            "decoder.block_out.resnets.2.conv1.conv.weight",
        ),
    ],
)
def test_names_of_the_released_files(kind, official, ours):
    assert vae_keys.to_official(full_size(kind).state_dict())[official].sources == (ours,)


def test_mochis_rows_of_q_k_and_v_are_one_tensor():
    state = make_vae("mochi").state_dict()
    place = "encoder.down_blocks.0.attentions.0"
    fused = official_view(state)["encoder.layers.2.layers.1.attn_block.attn.qkv.weight"]
    parts = [state[f"{place}.to_{name}.weight"] for name in "qkv"]
    assert torch.equal(fused, torch.cat(parts))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_names_come_back_as_they_are(kind):
    keys = [*make_vae(kind).state_dict(), "extra.weight", "encoder.middle.1.residual.9.weight"]
    for table in (vae_keys.to_official(keys), vae_keys.to_diffusers(vae_keys.to_official(keys))):
        for key in keys[-2:]:
            assert table[key].sources == (key,)


def test_a_lone_q_is_not_fused():
    key = "encoder.block_out.attentions.0.to_q.weight"
    assert vae_keys.to_official(["encoder.proj_in.weight", key])[key].sources == (key,)


def test_the_prefix_of_wrapped_files_is_taken_off():
    official = list(official_view(make_vae("wan21").state_dict()))
    plain = vae_keys.to_diffusers(official)
    wrapped = vae_keys.to_diffusers([f"model.{key}" for key in official])
    assert list(plain) == list(wrapped)
    assert wrapped["quant_conv.bias"].sources == ("model.conv1.bias",)


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_told_from_shapes(kind):
    for vae, said in ((full_size(kind), FULL_SIZE[kind]), (make_vae(kind), VAE_ARGUMENTS[kind])):
        found = vae_keys.constructor_arguments(vae.state_dict())
        with torch.device("meta"):
            rebuilt = type(vae)(**found).state_dict()
        assert {k: v.shape for k, v in rebuilt.items()} == {
            k: v.shape for k, v in vae.state_dict().items()
        }
        for name, value in said.items():
            assert found[name] == value, name


def test_strange_names_and_missing_shapes_are_named():
    with pytest.raises(WeightsError, match=r"blocks\.0\.weight, \.\.\. are not the names of a VAE"):
        vae_keys.constructor_arguments({"blocks.0.weight": torch.zeros(1)})
    state = make_vae("wan21").state_dict()
    del state["decoder.conv_out.weight"]
    with pytest.raises(WeightsError, match=r"decoder\.conv_out\.weight is missing"):
        vae_keys.constructor_arguments(state)
    with torch.device("meta"):
        other = diffusers.AutoencoderKLWan(base_dim=8, z_dim=4).state_dict()
    with pytest.raises(WeightsError, match="wan21 VAE of 4 channels"):
        vae_keys.constructor_arguments(other)


def test_statistics_are_the_published_ones():
    """The numbers of Wan's vae.py and vae2_2.py; Wan2.1's and Mochi's are diffusers' too."""
    sums = {key: [round(sum(values), 4) for values in s] for key, s in vae_keys.STATISTICS.items()}
    assert sums["wan21", 16] == [-0.7332, 34.2747]
    assert sums["wan22", 48] == [-0.5589, 32.536]
    mean, std = vae_keys.STATISTICS["wan22", 48]
    assert (mean[0], mean[19], mean[-1]) == (-0.2289, 0.5109, -0.0667)
    assert (std[3], std[39], std[-1]) == (1.1677, 1.6887, 0.7744)
    for kind, channels in (("wan21", 16), ("mochi", 12)):
        config = full_size(kind).config
        assert tuple(config.latents_mean) == vae_keys.STATISTICS[kind, channels][0]
        assert tuple(config.latents_std) == vae_keys.STATISTICS[kind, channels][1]
