"""Where a condition stands."""

import pytest

from pusa.pipelines.positions import parse_condition
from pusa.types import LatentSpec

SPEC = LatentSpec(16, 4, 8)


@pytest.mark.parametrize(
    ("text", "index", "multiplier"),
    [
        ("0=a.png", 0, 0.2),
        ("0=a.png:0.5", 0, 0.5),
        ("1=a.png:0", 1, 0.0),
        ("77=a.png:1", 20, 1.0),
        ("last=a.png:0.3", 20, 0.3),
        ("-1=a.png", 20, 0.2),
        ("latent:7=dir/a=b:c.png:0.4", 7, 0.4),
        ("latent:-21=a.png", 0, 0.2),
    ],
)
def test_positions_are_pixel_frames_unless_they_say_latent(text, index, multiplier):
    condition = parse_condition(text, SPEC, 81)
    assert (condition.latent_index, condition.multiplier) == (index, multiplier)


def test_the_mapping_is_described_in_both_units():
    said = parse_condition("last=a.png:0.3", SPEC, 81).describe(SPEC)
    assert said == "a.png -> latent frame 20 (pixel frames 77..80), noise multiplier 0.3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("81=a.png", r"81 is outside a video of 81 frames; use 0\.\.80"),
        ("latent:21=a.png", "21 latent frames"),
        ("first=a.png", "is not a frame, last or latent:K"),
        ("a.png", "expected POSITION=FILE"),
        ("0=a.png:1.5", r"must be in \[0, 1\]"),
    ],
)
def test_bad_conditions_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_condition(text, SPEC, 81)
