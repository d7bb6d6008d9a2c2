"""Photographs that scikit-image and scikit-learn ship, with prompts. Nothing is downloaded.

Their credits and licences, as those packages state them, are in photos.csv. The prompts are of this
project and belong to no benchmark.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

from pusa.evaluation.vbench_suite import CAMERA_MOVES, KINDS, Prompt

_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Photo:
    """One photograph. file: from its package on; kind: "subject" or "background", as VBench divides
    its images; image_type: VBench's finer word; text: its prompt; credit, licence: as stated."""

    name: str
    file: str
    kind: str
    image_type: str
    text: str
    credit: str
    licence: str

    @property
    def image_name(self) -> str:
        """Of the picture that is cut from it."""
        return f"{self.name}.png"

    def path(self) -> Path:
        """Its file; ImportError if the package is not installed or does not ship it."""
        package = self.file.split("/")[0]
        distribution = _DISTRIBUTIONS[package]
        spec = find_spec(package)  # found without the seconds that an import takes
        path = Path(spec.origin).parents[1] / self.file if spec and spec.origin else None
        if path is None or not path.is_file():
            fault = "is not installed" if path is None else f"does not ship {self.file}"
            raise ImportError(
                f"{distribution} {fault}; pusa depends on it for its photographs: "
                f"pip install --force-reinstall {distribution}"
            )
        return path


@cache
def photos() -> tuple[Photo, ...]:
    """All of them, subjects and backgrounds in turn."""
    text = resources.files("pusa.evaluation").joinpath("photos.csv").read_text("utf-8")
    return tuple(Photo(**row) for row in csv.DictReader(text.splitlines()))


def photo_prompts() -> tuple[Prompt, ...]:
    """A prompt of each photo, and each background with the seven camera moves.

    In an order of which any beginning is a suite of its own: subject, background and camera in
    turn, and of the latter always another image and another move.
    """
    subjects, backgrounds = (
        [photo for photo in photos() if photo.kind == kind] for kind in ("subject", "background")
    )
    moves = len(CAMERA_MOVES)
    cameras = [
        _prompt(photo, "camera", f"{photo.text}, {CAMERA_MOVES[(place + turn) % moves]}")
        for turn in range(moves)
        for place, photo in enumerate(backgrounds)
    ]
    rounds = zip_longest(
        (_prompt(photo, "subject", photo.text) for photo in subjects),
        (_prompt(photo, "background", photo.text) for photo in backgrounds),
        cameras,
    )
    return tuple(prompt for prompts in rounds for prompt in prompts if prompt is not None)


def _prompt(photo: Photo, kind: str, text: str) -> Prompt:
    return Prompt(text, text, photo.image_name, photo.image_type, KINDS[kind])
