"""Metrics are found by name, listed once, and given what they need."""

import dataclasses

import pytest
import torch

from pusa.metrics import registry
from tests.metrics.samples import sample_of_scene


def test_every_metric_has_its_name_once_and_higher_is_better_for_all():
    assert registry.names() == (
        "psnr_first_frame", "psnr_continuation", "ssim_first_frame", "ssim_continuation",
        "background_similarity", "subject_similarity", "direction_accuracy", "pan_accuracy",
        "temporal_flickering", "dynamic_degree",
    )  # fmt: skip
    assert {registry.lookup(name).better for name in registry.names()} == {"higher"}


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'psnr_first_frame' is registered twice"):
        registry.register(registry.names()[0])(lambda sample: 0.0)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'fvd' is unknown; use one of psnr_first_frame, "):
        registry.lookup("fvd")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("video", torch.zeros(16, 3, 32, 32, dtype=torch.uint8)),
        ("video", torch.zeros(17, 3, 32, 32)),
        ("sprite", torch.zeros(17, 16, 16)),
        ("determined", torch.zeros(17, 32, 32)),
    ],
)
def test_a_sample_whose_parts_disagree_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"Sample\.{field} is"):
        dataclasses.replace(sample_of_scene(0), **{field: value})


def test_the_truth_itself_reaches_the_top_of_every_metric_that_compares_with_it():
    sample = sample_of_scene(3)
    values = {name: registry.lookup(name).function(sample) for name in registry.names()}
    assert values["psnr_first_frame"] == values["psnr_continuation"] == 60
    for name in ("ssim_first_frame", "ssim_continuation"):
        assert values[name] == pytest.approx(1)
    for name in ("background_similarity", "subject_similarity", "direction_accuracy"):
        assert values[name] == pytest.approx(1)
