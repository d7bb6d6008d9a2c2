"""The list of dimensions by name, and how each is made ready with its backbone."""

from collections.abc import Mapping
from pathlib import Path

from pusa.evaluation.backbones import registry
from pusa.evaluation.metrics.aesthetic_quality import AestheticQuality
from pusa.evaluation.metrics.background_consistency import BackgroundConsistency
from pusa.evaluation.metrics.camera_motion import CameraMotion
from pusa.evaluation.metrics.dimension import Dimension
from pusa.evaluation.metrics.dynamic_degree import DynamicDegree
from pusa.evaluation.metrics.i2v_background import I2VBackground
from pusa.evaluation.metrics.i2v_subject import I2VSubject
from pusa.evaluation.metrics.imaging_quality import ImagingQuality
from pusa.evaluation.metrics.motion_smoothness import MotionSmoothness
from pusa.evaluation.metrics.resize import Resize
from pusa.evaluation.metrics.subject_consistency import SubjectConsistency
from pusa.evaluation.metrics.temporal_flickering import TemporalFlickering

DIMENSIONS: Mapping[str, type[Dimension]] = {
    dimension.name: dimension
    for dimension in (
        I2VSubject, I2VBackground, CameraMotion, SubjectConsistency, BackgroundConsistency,
        MotionSmoothness, DynamicDegree, AestheticQuality, ImagingQuality, TemporalFlickering,
    )
}  # fmt: skip


def build(
    name: str,
    source: registry.Source = "standin",
    folder: str | Path | None = None,
    device: str = "cpu",
    resize: Resize = "board",
    pins: Mapping[str, str] = {},
) -> Dimension:
    """The dimension `name` with the benchmark's backbone or its stand-in.

    folder, pins: see registry.load. ValueError for an unknown name, a dimension that has no
    stand-in, and missing or wrong files; ImportError for a package that is not installed.
    """
    if name not in DIMENSIONS:
        raise ValueError(f"dimension {name!r} is unknown; use one of {', '.join(DIMENSIONS)}.")
    if DIMENSIONS[name].kind is None:
        return DIMENSIONS[name](resize=resize)
    backbone = registry.choose(name, source)
    return DIMENSIONS[name](registry.load(backbone.id, folder, device, pins), resize)


def build_all(
    source: registry.Source = "standin",
    folder: str | Path | None = None,
    device: str = "cpu",
    resize: Resize = "board",
    pins: Mapping[str, str] = {},
) -> tuple[dict[str, Dimension], dict[str, str]]:
    """Every dimension that can be measured here, and why each other one cannot."""
    ready, missing = {}, {}
    for name in DIMENSIONS:
        try:
            ready[name] = build(name, source, folder, device, resize, pins)
        except (ImportError, ValueError) as error:
            missing[name] = str(error)
    return ready, missing
