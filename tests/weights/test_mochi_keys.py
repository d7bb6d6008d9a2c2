"""The two-way table of Mochi's tensor names against diffusers' own model and converter."""

import pytest
import torch
from diffusers import MochiTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_mochi_transformer_checkpoint_to_diffusers as convert,
)

from pusa.models.mochi_dit import MochiDiT
from pusa.weights.lazy import InMemory, Piece, View, WeightsError
from pusa.weights.mochi_keys import (
    BLOCK_MODULES,
    GLOBAL_MODULES,
    module_to_diffusers,
    module_to_official,
    swapped,
    to_diffusers,
    to_official,
)


def tiny_state(num_layers: int = 3) -> dict[str, torch.Tensor]:
    """Random tensors under the official names, every one different from every other."""
    with torch.device("meta"):
        model = MochiDiT(
            dim=16, text_stream_dim=8, num_heads=2, num_layers=num_layers, in_channels=4, text_dim=8
        )
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(spec.shape, generator=generator)
        for key, spec in model.state_dict().items()
    }


def view(state: dict[str, torch.Tensor], pieces: dict[str, Piece]) -> dict[str, torch.Tensor]:
    return dict(View(InMemory(state), pieces))


@pytest.mark.parametrize("num_layers", [1, 3])
def test_official_to_diffusers_and_back_is_byte_equal(num_layers):
    official = tiny_state(num_layers)
    diffusers = view(official, to_diffusers(official))
    back = view(diffusers, to_official(diffusers))
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], official[key]) for key in official)
    again = view(back, to_diffusers(back))
    assert all(torch.equal(again[key], diffusers[key]) for key in diffusers)


def test_diffusers_loads_the_mapped_tensors_strictly():
    official = tiny_state()
    reference = MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=3, pooled_projection_dim=8,
        in_channels=4, text_embed_dim=8,
    )  # fmt: skip
    reference.load_state_dict(view(official, to_diffusers(official)), strict=True)


def row_numbers() -> dict[str, torch.Tensor]:
    """Every tensor of Mochi-1, each row one number that no other row has; 1 column, no memory."""
    with torch.device("meta"):
        specs = MochiDiT(dim=3072, text_stream_dim=1536, num_heads=24, num_layers=48).state_dict()
    tensors, start = {}, 0
    for key, spec in specs.items():
        tensors[key] = torch.arange(start, start + len(spec))
        start += len(spec)
    return tensors


def test_every_tensor_of_the_full_model_is_what_diffusers_converter_makes_of_it():
    official = row_numbers()
    expected = convert(dict(official))
    ours = view(official, to_diffusers(official))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_unknown_keys_come_back_under_their_own_name():
    strange = [
        "extra.weight", "scaled_fp8", "blocks.0.mod_x.scale", "blocks.0.attn.qkv_z.weight",
        "transformer_blocks.0.mod_x.weight", "blocks.0.attn1.to_q.weight",  # the latter is Wan's
    ]  # fmt: skip
    for convert_keys in (to_diffusers, to_official):
        pieces = convert_keys(strange)
        assert pieces == {key: Piece((key,)) for key in strange}


@pytest.mark.parametrize("convert_keys", [to_diffusers, to_official])
def test_names_of_the_layout_that_is_wanted_are_unknown_too(convert_keys):
    official = list(tiny_state())
    wanted = official if convert_keys is to_official else list(to_diffusers(official))
    assert convert_keys(wanted) == {key: Piece((key,)) for key in wanted}


def test_a_file_with_both_layouts_is_refused():
    with pytest.raises(WeightsError, match="mixes two layouts"):
        to_official(["proj_out.weight", "final_layer.linear.weight"])
    with pytest.raises(WeightsError, match="mixes two layouts"):
        to_diffusers(["final_layer.linear.weight", "proj_out.weight"])


def test_a_fused_tensor_names_its_missing_parts():
    (piece,) = to_official(["transformer_blocks.0.attn1.to_k.weight"]).values()
    assert piece.sources == tuple(f"transformer_blocks.0.attn1.to_{x}.weight" for x in "qkv")


def test_modules_of_lora_files_are_named_in_row_order():
    attention = tuple(f"transformer_blocks.7.attn1.to_{x}" for x in "qkv")
    assert module_to_diffusers("blocks.7.attn.qkv_x") == attention
    assert {module_to_official(name) for name in attention} == {"blocks.7.attn.qkv_x"}
    assert module_to_diffusers("blocks.7.mod_y") == ("transformer_blocks.7.norm1_context.linear",)
    for last in (("blocks.47.mod_y",), ("blocks.2.mod_y", 3)):
        assert module_to_diffusers(*last)[0].endswith(".norm1_context.linear_1")
    assert module_to_diffusers("head.head") == ("head.head",)
    modules = [f"blocks.0.{module}" for module in BLOCK_MODULES] + [*GLOBAL_MODULES]
    exchanged = {module for module in modules if swapped(module)}
    assert exchanged == {"blocks.0.mlp_x.w1", "blocks.0.mlp_y.w1", "final_layer.mod"}
