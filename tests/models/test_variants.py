"""Parameter and key counts of every variant; spec of the vendors' checkpoints."""

import pytest
import torch

from pusa.models.variants import WAN_VARIANTS
from pusa.models.wan_dit import WanDiT

COUNTS = {
    "wan21_t2v_1_3b": (825, 1_418_996_800),
    "wan21_t2v_14b": (1095, 14_288_491_584),
    "wan21_i2v_14b": (1303, 16_394_878_784),
    "wan22_t2v_a14b": (1095, 14_288_491_584),
    # The T2V count plus 20 more input channels in the patch embedding: 5120 * 20 * 4.
    "wan22_i2v_a14b": (1095, 14_288_491_584 + 5120 * 20 * 4),
    "wan22_ti2v_5b": (825, 4_999_787_712),
}


@pytest.mark.parametrize("name", WAN_VARIANTS)
def test_keys_and_parameters_are_the_official_checkpoints(name):
    with torch.device("meta"):
        model = WanDiT(**WAN_VARIANTS[name])
    keys = len(model.state_dict())
    assert (keys, sum(p.numel() for p in model.parameters())) == COUNTS[name]


def test_a_block_has_the_official_names():
    with torch.device("meta"):
        model = WanDiT(dim=96, ffn_dim=192, num_heads=3, num_layers=1)
    keys = set(model.state_dict())
    assert {
        "patch_embedding.weight", "text_embedding.2.bias", "time_embedding.0.weight",
        "time_projection.1.weight", "head.head.weight", "head.modulation", "blocks.0.modulation",
        "blocks.0.self_attn.norm_q.weight", "blocks.0.cross_attn.o.bias", "blocks.0.norm3.weight",
        "blocks.0.ffn.0.weight", "blocks.0.ffn.2.bias",
    } <= keys  # fmt: skip
    assert len(keys) == 15 + 27
