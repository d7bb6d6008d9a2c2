"""Region similarity: a correlation, blind to brightness, near 0 for a lost subject."""

import numpy as np
import pytest
import torch

from pusa.metrics.similarity import (
    STABILISER,
    background_similarity,
    structure_similarity,
    subject_similarity,
)
from pusa.rng import generator_for
from tests.metrics.samples import sample_of_scene, still


def pixels(index: int, low: int = 0, high: int = 200) -> torch.Tensor:
    generator = generator_for(0, "tests/pixels", index)
    return torch.randint(low, high, (3, 400), generator=generator, dtype=torch.uint8)


def test_it_is_the_correlation_coefficient_but_for_the_stabiliser():
    one, other = pixels(0)[:1], pixels(1)[:1]
    mixed = (one.double() * 0.6 + other.double() * 0.4).round().to(torch.uint8)
    x, y = one[0].double().numpy(), mixed[0].double().numpy()
    stabilised = (np.cov(x, y, bias=True)[0, 1] + STABILISER) / (x.std() * y.std() + STABILISER)
    assert structure_similarity(one, mixed) == pytest.approx(stabilised)
    assert structure_similarity(one, mixed) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=0.01)


def test_brightness_and_contrast_do_not_matter():
    original = pixels(0)
    assert structure_similarity(original + 50, original) == pytest.approx(1)
    assert structure_similarity(original // 2 + 30, original) > 0.99


def test_negative_correlation_is_clipped_and_flat_regions_agree():
    original = pixels(0)
    assert structure_similarity(255 - original, original) == 0
    flat = torch.full((3, 50), 70, dtype=torch.uint8)
    assert structure_similarity(flat, flat) == 1
    almost = pixels(2, 69, 72)[:, :50]
    assert structure_similarity(almost, flat) > 0.9


def test_a_still_copy_loses_the_subject_but_not_an_unmoved_background():
    indices = [i for i in range(20) if sample_of_scene(i).pan == "none"][:5]
    for index in indices:
        truth = sample_of_scene(index).truth
        copy = sample_of_scene(index, still(truth))
        assert background_similarity(copy) > 0.7
        assert subject_similarity(copy) < 0.6


def test_without_a_sprite_there_is_no_subject():
    sample = sample_of_scene(0)
    sample.sprite.zero_()
    assert subject_similarity(sample) is None
    assert background_similarity(sample) == pytest.approx(1)
