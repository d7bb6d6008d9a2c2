"""The table of variants: counts of the vendors' checkpoints, and detection by names and shapes."""

import pytest
import torch

from pusa.models.variants import BACKBONES, VARIANTS, detect

COUNTS = {  # keys and parameters of the official checkpoints
    "wan21_t2v_1_3b": (825, 1_418_996_800),
    "wan21_t2v_14b": (1095, 14_288_491_584),
    "wan21_i2v_14b": (1303, 16_394_878_784),
    "wan22_t2v_a14b": (1095, 14_288_491_584),
    # The T2V count plus 20 more input channels in the patch embedding: 5120 * 20 * 4.
    "wan22_i2v_a14b": (1095, 14_288_491_584 + 5120 * 20 * 4),
    "wan22_ti2v_5b": (825, 4_999_787_712),
}


@pytest.mark.parametrize("name", COUNTS)
def test_keys_and_parameters_are_the_official_checkpoints(name):
    model = VARIANTS[name].build()
    keys = len(model.state_dict())
    assert (keys, sum(p.numel() for p in model.parameters())) == COUNTS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognized_by_its_tensors(name):
    found = detect(VARIANTS[name].build().state_dict())
    assert name in (found.name, *found.same_tensors)
    assert found.arguments == VARIANTS[name].arguments


@pytest.mark.parametrize("name", [name for name in VARIANTS if "tiny" not in name])
def test_every_variant_has_a_twin_with_the_same_structure(name):
    big, tiny = (VARIANTS[n].build().state_dict() for n in (name, f"{name}_tiny"))

    def in_first_block(state):
        return {
            key for key in state if key.startswith("blocks.0.") or not key.startswith("blocks.")
        }

    assert in_first_block(big) == in_first_block(tiny)


def test_twins_of_equal_tensors_are_named_together():
    found = detect(VARIANTS["wan22_t2v_a14b"].build().state_dict())
    assert found.name == "wan21_t2v_14b"
    assert found.same_tensors == ("wan22_t2v_a14b",)
    assert "same tensors" in str(found)


def test_an_unlisted_size_is_described():
    with torch.device("meta"):
        model = BACKBONES["wan"](dim=256, ffn_dim=512, num_heads=2, num_layers=2)
    found = detect(model.state_dict())
    assert "a size of its own" in found.name
    assert found.arguments["num_heads"] == 2
    assert found.build().state_dict().keys() == model.state_dict().keys()


def test_heads_that_do_not_show_are_not_guessed():
    with torch.device("meta"):
        model = BACKBONES["wan"](dim=80, ffn_dim=96, num_heads=5, num_layers=2)
    with pytest.raises(ValueError, match="number of heads does not show"):
        detect(model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "no Wan or Mochi transformer"),
        (lambda s: {"conv.weight": s["patch_embedding.weight"]}, r"it holds conv\.weight"),
        (
            lambda s: {k: v for k, v in s.items() if k != "patch_embedding.weight"},
            r"misses patch_embedding\.weight",
        ),
        (lambda s: s | {"patch_embedding.weight": s["head.modulation"]}, "expected 5 dimensions"),
    ],
)
def test_what_is_no_backbone_is_refused(change, message):
    state = dict(VARIANTS["wan21_t2v_1_3b_tiny"].build().state_dict())
    with pytest.raises(ValueError, match=message):
        detect(change(state))
