"""Suites of images and prompts: VBench-I2V's public one, and one's own out of a folder.

What is asked for, under which exact file names, and which dimension needs which videos. Which of
the videos are there is in presence.py.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.data.hashing import content_key
from pusa.evaluation.scoring import KNOWN

NUM_SAMPLES = 5  # videos of a prompt in VBench
RATIOS = ("1-1", "8-5", "7-4", "16-9")  # those that VBench offers; others are cut by its script
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
FIRST_FEW = 5
# The list of prompts that "VBench-I2V" means, as `prompts_key` names it.
PUBLIC_KEY = "f2a58a2cdbc93894a74afbffdb6e65cd"
CAMERA_MOVES = (
    "camera pans left", "camera pans right", "camera tilts up", "camera tilts down",
    "camera zooms in", "camera zooms out", "camera static",
)  # fmt: skip
WITHOUT_CAMERA = tuple(name for name in KNOWN if name != "camera_motion")
_KEYS = {"prompt_en", "dimension", "image_type", "image_name"}


@dataclass(frozen=True)
class Prompt:
    """An image and what is to happen to it. stem: of its videos' names; in VBench the text itself.

    dimensions: that its videos are scored in.
    """

    stem: str
    text: str
    image_name: str
    image_type: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class SuiteVideo:
    """One video to be made. index: of its prompt in the suite; sample: counts a prompt's videos."""

    index: int
    prompt: Prompt
    sample: int

    @property
    def name(self) -> str:
        """Its file. Nothing is replaced or shortened: VBench finds videos by these very names."""
        return f"{self.prompt.stem}-{self.sample}.mp4"


@dataclass(frozen=True)
class PromptSuite:
    """Prompts, the folder of their images, and how many videos each gets."""

    name: str
    prompts: tuple[Prompt, ...]
    images: Path
    num_samples: int

    def videos(self, dimensions: Iterable[str] = KNOWN) -> list[SuiteVideo]:
        """Every video that one of these dimensions needs, samples of a prompt side by side."""
        return videos_of(self.prompts, self.num_samples, dimensions)

    def image(self, prompt: Prompt) -> Path:
        return self.images / prompt.image_name


def videos_of(
    prompts: Sequence[Prompt], num_samples: int = NUM_SAMPLES, dimensions: Iterable[str] = KNOWN
) -> list[SuiteVideo]:
    """The videos that `num_samples` of each prompt make, for these dimensions; in suite order.

    ValueError for an unknown dimension or fewer than one sample.
    """
    wanted = set(dimensions)
    unknown = sorted(wanted - set(KNOWN))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no dimension; there are {', '.join(KNOWN)}.")
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}; a prompt needs at least one video.")
    return [
        SuiteVideo(index, prompt, sample)
        for index, prompt in enumerate(prompts)
        if wanted & set(prompt.dimensions)
        for sample in range(num_samples)
    ]


def public_suite(info: str | Path, crop: str | Path, ratio: str) -> PromptSuite:
    """VBench-I2V: its vbench2_i2v_full_info.json and its folder of cropped images.

    ratio: W-H, the folder below `crop`: one of RATIOS, or one that VBench's crop_to_diff_ratio.py
    made (1 <= W/H <= 16/9). ValueError if the folder or an image is not there.
    """
    prompts = read_info(info)
    width, height = _ratio(ratio)
    if not 1 <= width / height <= 16 / 9:
        raise ValueError(f"ratio {ratio}: VBench's images are cut from 1-1 to 16-9 and no wider.")
    folder = Path(crop) / ratio
    if not folder.is_dir():
        there = sorted(p.name for p in Path(crop).glob("*-*") if p.is_dir())
        raise ValueError(
            f"{folder}: no such folder of images; {crop} has {', '.join(there) or 'none'}. Make it "
            f"with VBench's crop_to_diff_ratio.py --target_ratio {ratio}."
        )
    suite = PromptSuite(f"VBench-I2V {ratio}", prompts, folder, NUM_SAMPLES)
    missing = sorted({p.image_name for p in prompts if not suite.image(p).is_file()})
    if missing:
        raise ValueError(f"{folder}: {few(missing, 'images')} missing; crop the images again.")
    return suite


def ratio_of(width: int, height: int) -> str:
    """The crop folder that fits a size exactly: 26-15 for 832x480. ValueError if none can."""
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} is no size of a picture.")
    common = math.gcd(width, height)
    return f"{width // common}-{height // common}"


def read_info(path: str | Path) -> tuple[Prompt, ...]:
    """Prompts of a file of the form of vbench2_i2v_full_info.json, in its order.

    ValueError, with the entry's number, for anything else: other keys, unknown dimensions, a prompt
    that is no file name or is there twice (letter case aside: file systems may not tell), a camera
    prompt without one of CAMERA_MOVES.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; VBench's repository has it as vbench2_beta_i2v/"
            "vbench2_i2v_full_info.json."
        )
    try:
        entries = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of prompts, as VBench publishes it.")
    prompts = tuple(_entry(f"{path}, entry {i}", entry) for i, entry in enumerate(entries))
    _check_stems(str(path), prompts)
    return prompts


def folder_suite(folder: str | Path, num_samples: int = NUM_SAMPLES) -> PromptSuite:
    """A suite of one's own: images with X.txt beside X.png, or a prompts.csv (image_name, text).

    Its videos are X-0.mp4, X-1.mp4, ..., as VBench's custom mode has them, and are scored in every
    dimension; in camera_motion if X names one of CAMERA_MOVES, which VBench reads there.
    ValueError for an image without a prompt, a prompt without an image, or neither.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images and prompts.")
    table = folder / "prompts.csv"
    texts = _csv_texts(table) if table.is_file() else _txt_texts(folder)
    if not texts:
        raise ValueError(f"{folder}: no {', '.join(IMAGE_SUFFIXES)} there; a suite needs images.")
    prompts = tuple(_own_prompt(name, text) for name, text in texts.items())
    missing = [name for name in texts if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{table}: {few(missing, 'images')} missing in {folder}.")
    _check_stems(str(folder), prompts)
    return PromptSuite(folder.name, prompts, folder, num_samples)


def prompts_key(prompts: Sequence[Prompt]) -> str:
    """A name of what is asked for: texts, images' names and dimensions, in whatever order."""
    return content_key(
        *(
            content_key(p.stem, p.text, p.image_name, *sorted(p.dimensions))
            for p in sorted(prompts, key=lambda p: p.stem)
        )
    )


def is_public(prompts: Sequence[Prompt]) -> bool:
    """True for the whole list of VBench-I2V, unchanged."""
    return prompts_key(prompts) == PUBLIC_KEY


def few(names: Sequence[str], noun: str) -> str:
    """How many, and the first few of them, for messages."""
    shown = ", ".join(repr(name) for name in names[:FIRST_FEW])
    rest = f" and {len(names) - FIRST_FEW} more" if len(names) > FIRST_FEW else ""
    return f"{len(names)} {noun} ({shown}{rest})"


def _ratio(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)-([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"ratio {text!r} is not W-H, as {', '.join(RATIOS)}.")
    return int(match[1]), int(match[2])


def _entry(where: str, entry: Any) -> Prompt:
    if not isinstance(entry, dict) or not entry.keys() >= _KEYS:
        raise ValueError(f"{where}: expected an object with {', '.join(sorted(_KEYS))}.")
    text, dimensions = entry["prompt_en"], entry["dimension"]
    if not isinstance(dimensions, list) or not dimensions:
        raise ValueError(f"{where}: dimension must be a list of at least one name.")
    unknown = [str(name) for name in dimensions if name not in KNOWN]
    if unknown:
        raise ValueError(
            f"{where}: {', '.join(unknown)}: no dimension of VBench-I2V; there are "
            f"{', '.join(KNOWN)}."
        )
    if "camera_motion" in dimensions and not _names_move(text):
        raise ValueError(f"{where}: {text!r} names none of {', '.join(CAMERA_MOVES)}.")
    return Prompt(text, text, entry["image_name"], entry["image_type"], tuple(dimensions))


def _names_move(text: str) -> bool:
    return any(move in text for move in CAMERA_MOVES)


def _own_prompt(image_name: str, text: str) -> Prompt:
    stem = Path(image_name).stem
    dimensions = KNOWN if _names_move(stem) else WITHOUT_CAMERA
    return Prompt(stem, text, image_name, "", dimensions)


def _csv_texts(table: Path) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"image_name", "text"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{table}: its first line must name the columns image_name and text.")
        texts: dict[str, str] = {}
        for row in reader:
            name, text = row["image_name"] or "", (row["text"] or "").strip()
            where = f"{table}:{reader.line_num}"
            if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(f"{where}: {name!r} is no {', '.join(IMAGE_SUFFIXES)}.")
            if not text or name in texts:
                fault = "is there twice" if name in texts else "has no text"
                raise ValueError(f"{where}: {name} {fault}; every image has one prompt.")
            texts[name] = text
    return texts


def _txt_texts(folder: Path) -> dict[str, str]:
    images = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
    stems = {image.stem for image in images}
    alone = [p.name for p in sorted(folder.glob("*.txt")) if p.stem not in stems]
    if alone:
        raise ValueError(f"{folder}: {few(alone, 'prompts')} without an image of that name.")
    texts = {}
    for image in images:
        path = image.with_suffix(".txt")
        text = path.read_text("utf-8").strip() if path.is_file() else ""
        if not text:
            raise ValueError(f"{image}: no prompt; write it into {path.name} or a prompts.csv.")
        texts[image.name] = text
    return texts


def _check_stems(where: str, prompts: Sequence[Prompt]) -> None:
    """Every stem is a file name, and no two are one file where letter case does not count."""
    for prompt in prompts:
        stem = prompt.stem
        if not isinstance(stem, str) or not stem.strip() or "/" in stem or "\0" in stem:
            raise ValueError(
                f"{where}: {stem!r} cannot name a file; VBench's videos are {{it}}-0.mp4."
            )
    counts = Counter(prompt.stem.casefold() for prompt in prompts)
    twice = sorted({p.stem for p in prompts if counts[p.stem.casefold()] > 1})
    if twice:
        raise ValueError(
            f"{where}: {few(twice, 'prompts')} are there twice, letter case aside; their videos "
            "would overwrite one another."
        )
