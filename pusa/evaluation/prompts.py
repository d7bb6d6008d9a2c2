"""Where a suite's prompts and images come from, as values that a config names. Constructors look at
nothing but their arguments; `read` opens files, and writes fitted images where there are none."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from pusa.evaluation.input_images import fit_image
from pusa.evaluation.photos import photo_prompts, photos
from pusa.evaluation.vbench_suite import (
    KINDS,
    PromptSuite,
    few,
    folder_suite,
    kind_of,
    parse_ratio,
    public_suite,
    ratio_of,
)
from pusa.rng import generator_for

PHOTOS = "photos (of pusa)"


class PromptSource(Protocol):
    def read(self, width: int, height: int, num_samples: int, images: Path) -> PromptSuite:
        """The suite for videos of width x height pixels, `num_samples` of each prompt.

        images: a folder, of this suite and size alone, for input images that have to be cut first.
        The suite's `image` of a prompt is the file that a model is given and that its videos are
        compared with. ValueError, with the remedy, for what is missing or cannot be read.
        """
        ...


@dataclass(frozen=True)
class Public:
    """VBench-I2V: its list and its own crops, which stay where they are.

    info: vbench2_i2v_full_info.json; crop: the folder of folders 1-1, 16-9, ...; ratio: which of
    them, None for that of the videos' size.
    """

    info: str
    crop: str
    ratio: str | None = None

    def __post_init__(self):
        _require_path("info", self.info, "VBench's vbench2_i2v_full_info.json")
        _require_path("crop", self.crop, "VBench's folder of cropped images, data/crop")
        if self.ratio is not None:
            parse_ratio(self.ratio)

    def read(self, width: int, height: int, num_samples: int, images: Path) -> PromptSuite:
        ratio = ratio_of(width, height) if self.ratio is None else self.ratio
        return public_suite(self.info, self.crop, ratio, num_samples)


@dataclass(frozen=True)
class Folder:
    """Images of one's own, with X.txt beside X.png or a prompts.csv: `vbench_suite.folder_suite`.

    Their middles are written into `images` as X.png.
    """

    folder: str

    def __post_init__(self):
        _require_path("folder", self.folder, "the folder of your images and prompts")

    def read(self, width: int, height: int, num_samples: int, images: Path) -> PromptSuite:
        own = folder_suite(self.folder, num_samples)
        if images.resolve() == own.images.resolve():
            raise ValueError(
                f"{images}: your images would be overwritten by their crops; choose another folder "
                "for the fitted images."
            )
        fitted = tuple(replace(p, image_name=f"{p.stem}.png") for p in own.prompts)
        for source, prompt in zip(own.prompts, fitted, strict=True):
            fit_image(own.image(source), images / prompt.image_name, width, height)
        return replace(own, prompts=fitted, images=images)


@dataclass(frozen=True)
class Photos:
    """The small suite that ships: photographs of scikit-image and scikit-learn.

    num_prompts: how many from the beginning of `photos.photo_prompts`, which takes the kinds in
    turn; None for all.
    """

    num_prompts: int | None = None

    def __post_init__(self):
        _require_count("num_prompts", self.num_prompts, at_least=1)

    def read(self, width: int, height: int, num_samples: int, images: Path) -> PromptSuite:
        prompts = photo_prompts()
        total = len(prompts)
        if self.num_prompts is not None and self.num_prompts > total:
            raise ValueError(f"num_prompts={self.num_prompts}, but there are {total} of photos.")
        prompts = prompts[: self.num_prompts]
        needed = {prompt.image_name for prompt in prompts}
        for photo in photos():
            if photo.image_name in needed:
                fit_image(photo.path(), images / photo.image_name, width, height)
        name = PHOTOS if len(prompts) == total else f"{PHOTOS}, first {len(prompts)} of {total}"
        return PromptSuite(name, prompts, images, num_samples)


@dataclass(frozen=True)
class Subset:
    """Some prompts of another source, as `subset` chooses them."""

    of: PromptSource
    subject: int | None = None
    background: int | None = None
    camera: int | None = None
    seed: int = 0

    def __post_init__(self):
        _counts(self.subject, self.background, self.camera)

    def read(self, width: int, height: int, num_samples: int, images: Path) -> PromptSuite:
        suite = self.of.read(width, height, num_samples, images)
        return subset(suite, self.subject, self.background, self.camera, self.seed)


def subset(
    suite: PromptSuite,
    subject: int | None,
    background: int | None,
    camera: int | None,
    seed: int,
) -> PromptSuite:
    """So many prompts of each of VBench's kinds, drawn by seed; None takes all, 0 none of a kind.

    The suite's order is kept and does not matter to the draw; a smaller number of a kind is part of
    a larger one. Camera prompts are drawn singly, not all seven moves of an image.

    The ablations of Pusa V1.0 (arXiv 2507.16116) are on 750 videos; 50 prompts of each kind with
    five videos each would be as many. The paper does not say which prompts: those drawn here are
    others, and such figures stand beside its own only roughly.

    ValueError for more than there are, no prompt at all, or prompts of no kind of VBench's.
    """
    counts = _counts(subject, background, camera)
    strata: dict[str | None, list[str]] = {}
    for prompt in suite.prompts:
        strata.setdefault(kind_of(prompt), []).append(prompt.stem)
    if None in strata:
        raise ValueError(
            f"{suite.name}: {few(strata[None], 'prompts')} are of none of the kinds "
            f"{', '.join(KINDS)}, so that none can be chosen by kind."
        )
    chosen: set[str] = set()
    for kind, count in counts.items():
        stems = sorted(strata.get(kind, []))
        if count is not None and count > len(stems):
            raise ValueError(f"{kind}={count}, but {suite.name} has {len(stems)} such prompts.")
        generator = generator_for(seed, f"suite/subset/{kind}")
        order = torch.randperm(len(stems), generator=generator).tolist()
        chosen.update(stems[i] for i in order[:count])
    prompts = tuple(prompt for prompt in suite.prompts if prompt.stem in chosen)
    if not prompts:
        raise ValueError(f"{suite.name}: no prompt is left; ask for at least one of some kind.")
    if prompts == suite.prompts:
        return suite
    asked = ", ".join(f"{kind} {'all' if n is None else n}" for kind, n in counts.items())
    return replace(suite, name=f"subset of {suite.name} ({asked}, seed {seed})", prompts=prompts)


def _counts(
    subject: int | None, background: int | None, camera: int | None
) -> Mapping[str, int | None]:
    counts = {"subject": subject, "background": background, "camera": camera}
    for kind, count in counts.items():
        _require_count(kind, count, at_least=0)
    if not any(count is None or count for count in counts.values()):
        raise ValueError("a subset of no prompts; ask for at least one of some kind.")
    return counts


def _require_count(name: str, count: int | None, at_least: int) -> None:
    if count is not None and (type(count) is not int or count < at_least):
        raise ValueError(f"{name}={count!r}; use a number from {at_least} on, or null for all.")


def _require_path(name: str, path: str, what: str) -> None:
    if not path:
        raise ValueError(f"{name} is empty; give the path of {what}.")
