"""The table of backbones: constructor arguments of every variant that people have weights of."""

from collections.abc import Mapping
from types import MappingProxyType

_WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}

# Sources: the vendors' config.json files; the counts in tests/models/test_variants.py pin them.
WAN_VARIANTS: Mapping[str, Mapping[str, int | bool]] = MappingProxyType({
    "wan21_t2v_1_3b": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "wan21_t2v_14b": _WAN_14B,
    "wan21_i2v_14b": _WAN_14B | {"in_channels": 36, "image_branch": True},
    "wan22_t2v_a14b": _WAN_14B,  # twice: a high-noise and a low-noise expert
    "wan22_i2v_a14b": _WAN_14B | {"in_channels": 36},
    "wan22_ti2v_5b": {
        "dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30,
        "in_channels": 48, "out_channels": 48,
    },
})  # fmt: skip
