"""Scores with known variances, and the three kinds of prompts of VBench-I2V."""

import numpy as np

from pusa.evaluation.scoring import VideoScore

SUBJECT = (
    "i2v_subject", "subject_consistency", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality",
)  # fmt: skip
BACKGROUND = ("i2v_background", "background_consistency", "aesthetic_quality", "imaging_quality")
KINDS = {"subject": SUBJECT, "background": BACKGROUND, "camera": ("camera_motion",)}


def one_dimension(values: np.ndarray, name: str = "motion_smoothness") -> list[VideoScore]:
    """values: (n, k), a row per prompt; NaN where there is no video."""
    return [
        VideoScore(name, f"p{i:04d}", k, float(value))
        for (i, k), value in np.ndenumerate(values)
        if not np.isnan(value)
    ]


def nested(rng: np.random.Generator, shape: tuple, between: float, within: float) -> np.ndarray:
    """(n, k) around 0, with these standard deviations of prompts and of samples."""
    return between * rng.normal(size=(shape[0], 1)) + within * rng.normal(size=shape)


def whole_suite(rng: np.random.Generator, sizes: dict, num_samples: int) -> list[VideoScore]:
    """Scores around 0.5 in all nine dimensions; a prompt's dimensions go up and down together."""
    scores = []
    for kind, dimensions in KINDS.items():
        shared = nested(rng, (sizes[kind], num_samples), 0.05, 0.05)
        for name in dimensions:
            values = 0.5 + shared + nested(rng, shared.shape, 0.02, 0.04)
            scores += [
                VideoScore(name, f"{kind}{i}", k, float(value))
                for (i, k), value in np.ndenumerate(values)
            ]
    return scores
