"""Key table of the UMT5 encoder: both ways, at full size on meta."""

import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from pusa.weights import text_keys
from pusa.weights.lazy import InMemory, View, WeightsError

XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
       "num_heads": 64}  # fmt: skip
TINY = {"vocab_size": 11, "d_model": 6, "d_kv": 4, "d_ff": 10, "num_layers": 2, "num_heads": 3,
        "relative_attention_num_buckets": 8}  # fmt: skip


def official_view(state) -> View:
    return View(InMemory(state), text_keys.to_official(state))


def test_umt5_xxl_on_meta_has_the_names_and_size_of_wans_file():
    """24 layers of 10 tensors, the table and the last norm; sizes by the published widths."""
    with torch.device("meta"):
        state = UMT5EncoderModel(UMT5Config(**XXL)).state_dict()
    specs = official_view(state).specs()
    assert len(specs) == 242
    layer = 4 * 4096 * 4096 + 3 * 4096 * 10240 + 2 * 4096 + 32 * 64
    assert sum(spec.numel() for spec in specs.values()) == 256384 * 4096 + 24 * layer + 4096
    shapes = {key: tuple(spec.shape) for key, spec in specs.items()}
    assert shapes["token_embedding.weight"] == (256384, 4096)
    assert shapes["blocks.23.pos_embedding.embedding.weight"] == (32, 64)
    assert shapes["blocks.0.ffn.gate.0.weight"] == (10240, 4096)
    assert shapes["blocks.7.ffn.fc2.weight"] == (4096, 10240)
    assert shapes["norm.weight"] == (4096,)
    back = View(InMemory(specs), text_keys.to_diffusers(specs)).specs()
    assert text_keys.constructor_arguments(back) == XXL | {"relative_attention_num_buckets": 32}


def test_round_trip_is_exact_to_the_byte():
    encoder = UMT5EncoderModel(UMT5Config(**TINY))
    state = {key: value.bfloat16() for key, value in encoder.state_dict().items()}
    official = official_view(state)
    back = View(official, text_keys.to_diffusers(official))
    assert set(back) == set(state) - {text_keys.TIED}
    assert all(torch.equal(back[key], state[key]) for key in back)
    again = View(back, text_keys.to_official(back))
    assert list(again) == list(official)
    assert text_keys.constructor_arguments(back) == TINY


def test_the_table_is_found_under_either_name():
    for names in (["shared.weight"], ["encoder.embed_tokens.weight"]):
        assert list(text_keys.to_official(names)) == ["token_embedding.weight"]
    both = text_keys.to_official(["shared.weight", "encoder.embed_tokens.weight"])
    assert both["token_embedding.weight"].sources == ("shared.weight",)


def test_unknown_names_come_back_as_they_are():
    names = ["blocks.0.ffn.gate.1.weight", "lm_head.weight"]
    assert list(text_keys.to_diffusers(names)) == names
    names = ["encoder.block.0.layer.2.x.weight", "decoder.final_layer_norm.weight"]
    assert list(text_keys.to_official(names)) == names


def test_a_file_without_the_table_is_named():
    with pytest.raises(WeightsError, match=r"shared\.weight is missing"):
        text_keys.constructor_arguments({})
