"""Suites of images and prompts: VBench-I2V's public one, and one's own out of a folder.

What is asked for, under which exact file names, and which dimension needs which videos. Which of
the videos are there is in presence.py.
"""

import csv
import json
import math
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.data.hashing import content_key, file_digest
from pusa.evaluation.input_images import require_ratio
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
# VBench's kinds of prompts and what the videos of each are scored in.
KINDS = {
    "subject": (
        "i2v_subject", "subject_consistency", "motion_smoothness", "dynamic_degree",
        "aesthetic_quality", "imaging_quality", "temporal_flickering",
    ),
    "background": (
        "i2v_background", "background_consistency", "aesthetic_quality", "imaging_quality",
        "temporal_flickering",
    ),
    "camera": ("camera_motion",),
}  # fmt: skip
# Bytes. File systems allow names of 255; what is left is for "-0.mp4" and temporary names.
LONGEST_STEM = 200
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


def public_suite(
    info: str | Path, crop: str | Path, ratio: str, num_samples: int = NUM_SAMPLES
) -> PromptSuite:
    """VBench-I2V: its vbench2_i2v_full_info.json and its folder of cropped images.

    ratio: W-H, the folder below `crop`: one of RATIOS, or one that VBench's crop_to_diff_ratio.py
    made (1 <= W/H <= 16/9); no other is taken in its place. ValueError if the folder or an image is
    not there, is no image, or the folder holds another ratio. Called VBench-I2V if the list is.
    """
    prompts = read_info(info)
    width, height = parse_ratio(ratio)
    if not 1 <= width / height <= 16 / 9:
        nearest = "1-1" if width < height else "16-9"
        raise ValueError(
            f"ratio {ratio}: VBench's images are cut from 1-1 to 16-9 and no narrower or wider. "
            f"Choose such a size, or ratio={nearest}, of which the model is given the middle."
        )
    folder = Path(crop) / ratio
    if not folder.is_dir():
        raise ValueError(_no_crop(Path(crop), ratio))
    name = "VBench-I2V" if is_public(prompts) else f"another list ({Path(info).stem})"
    suite = PromptSuite(f"{name} {ratio}", prompts, folder, num_samples)
    names = sorted({p.image_name for p in prompts})
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: {few(missing, 'images')} missing; crop the images again.")
    require_ratio([folder / name for name in names], width, height)
    return suite


def ratio_of(width: int, height: int) -> str:
    """The crop folder that fits a size exactly: 26-15 for 832x480. ValueError if none can."""
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} is no size of a picture.")
    common = math.gcd(width, height)
    return f"{width // common}-{height // common}"


def parse_ratio(text: str) -> tuple[int, int]:
    """W and H of "W-H", as VBench's folders are called; ValueError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)-([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"ratio {text!r} is not W-H, as {', '.join(RATIOS)}.")
    return int(match[1]), int(match[2])


def read_info(path: str | Path) -> tuple[Prompt, ...]:
    """Prompts of a file of the form of vbench2_i2v_full_info.json, in its order.

    ValueError, with the entry's number, for anything else: other keys, unknown dimensions, a prompt
    that is no file name or is there twice (letter case aside: file systems may not tell), an image
    of another type than IMAGE_SUFFIXES, a camera prompt without one of CAMERA_MOVES.
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
    dimension; in camera_motion if X names one of CAMERA_MOVES, which VBench reads there. Hidden
    files are passed over. Names that look alike are alike (X is in Unicode's form NFC, whatever
    macOS made of it). ValueError for an image without a prompt, a prompt without an image, neither,
    or two images of one X.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images and prompts.")
    table = folder / "prompts.csv"
    files = _by_spelling(folder)
    texts = _csv_texts(table, files) if table.is_file() else _txt_texts(folder, files)
    if not texts:
        raise ValueError(f"{folder}: no {', '.join(IMAGE_SUFFIXES)} there; a suite needs images.")
    prompts = tuple(_own_prompt(name, text) for name, text in texts.items())
    missing = [name for name in texts if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{table}: {few(missing, 'images')} missing in {folder}.")
    _check_stems(str(folder), prompts)
    return PromptSuite(folder.resolve().name, prompts, folder, num_samples)


def prompts_key(prompts: Sequence[Prompt]) -> str:
    """A name of what is asked for: texts, images' names and dimensions, in whatever order."""
    return content_key(
        *(
            content_key(p.stem, p.text, p.image_name, *sorted(p.dimensions))
            for p in sorted(prompts, key=lambda p: p.stem)
        )
    )


def images_key(suite: PromptSuite) -> str:
    """A name of the pictures that are given: contents, in the order of their names."""
    names = sorted({prompt.image_name for prompt in suite.prompts})
    files = [suite.images / name for name in names]
    return content_key(*(part for file in files for part in (file.name, file_digest(file))))


def is_public(prompts: Sequence[Prompt]) -> bool:
    """True for the whole list of VBench-I2V, unchanged."""
    return prompts_key(prompts) == PUBLIC_KEY


def kind_of(prompt: Prompt) -> str | None:
    """Its key of KINDS, by the dimensions of its videos; None if they are those of no kind."""
    asked = set(prompt.dimensions)
    return next((kind for kind, names in KINDS.items() if asked == set(names)), None)


def few(names: Sequence[str], noun: str) -> str:
    """How many, and the first few of them, for messages."""
    shown = ", ".join(repr(name) for name in names[:FIRST_FEW])
    rest = f" and {len(names) - FIRST_FEW} more" if len(names) > FIRST_FEW else ""
    return f"{len(names)} {noun} ({shown}{rest})"


def _no_crop(crop: Path, ratio: str) -> str:
    folders = sorted(p.name for p in crop.glob("[1-9]*-[1-9]*") if p.is_dir())
    there = f"{', '.join(folders)}, and none replaces another" if folders else "no ratio at all"
    return (
        f"{crop / ratio}: no such folder of images; {crop} has {there}. Make it in VBench's "
        "checkout, after its download_data.sh, with: python "
        f"vbench2_beta_i2v/crop_to_diff_ratio.py --target_ratio {ratio} "
        f"--result_path {shlex.quote(str(crop.absolute()))}"
    )


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
    image_name, image_type = entry["image_name"], entry["image_type"]
    if not isinstance(image_name, str) or Path(image_name).suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{where}: {image_name!r} is no {', '.join(IMAGE_SUFFIXES)}.")
    if not isinstance(text, str) or not isinstance(image_type, str):
        raise ValueError(f"{where}: prompt_en and image_type must be texts.")
    if "camera_motion" in dimensions and not _names_move(text):
        raise ValueError(f"{where}: {text!r} names none of {', '.join(CAMERA_MOVES)}.")
    return Prompt(text, text, image_name, image_type, tuple(dimensions))


def _names_move(text: str) -> bool:
    return any(move in text for move in CAMERA_MOVES)


def _own_prompt(image_name: str, text: str) -> Prompt:
    stem = _spelling(Path(image_name).stem)
    dimensions = KNOWN if _names_move(stem) else WITHOUT_CAMERA
    return Prompt(stem, text, image_name, "", dimensions)


def _spelling(name: str) -> str:
    """One form of names that look alike: macOS may have taken accents and letters apart."""
    return unicodedata.normalize("NFC", name)


def _by_spelling(folder: Path) -> dict[str, str]:
    """Files' own names by their spelling. ValueError if two cannot be told apart by looking."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
    counts = Counter(map(_spelling, names))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"{folder}: {few(twice, 'names')} are there twice, in two of Unicode's forms; keep one."
        )
    return {_spelling(name): name for name in names}


def _csv_texts(table: Path, files: dict[str, str]) -> dict[str, str]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"image_name", "text"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{table}: its first line must name the columns image_name and text.")
        texts: dict[str, str] = {}
        for row in reader:
            name, text = row["image_name"] or "", (row["text"] or "").strip()
            name = files.get(_spelling(name), name)
            where = f"{table}:{reader.line_num}"
            if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(f"{where}: {name!r} is no {', '.join(IMAGE_SUFFIXES)}.")
            if not text or name in texts:
                fault = "is there twice" if name in texts else "has no text"
                raise ValueError(f"{where}: {name} {fault}; every image has one prompt.")
            texts[name] = text
    return texts


def _txt_texts(folder: Path, files: dict[str, str]) -> dict[str, str]:
    images = [name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    beside = {name: f"{Path(name).stem}.txt" for name in images}
    alone = sorted({n for n in files if n.endswith(".txt")} - set(beside.values()))
    if alone:
        raise ValueError(f"{folder}: {few(alone, 'prompts')} without an image of that name.")
    texts = {}
    for image, path in beside.items():
        text = (folder / files[path]).read_text("utf-8").strip() if path in files else ""
        if not text:
            raise ValueError(f"{folder / image}: no prompt; write it into {path} or a prompts.csv.")
        texts[files[image]] = text
    return texts


def _check_stems(where: str, prompts: Sequence[Prompt]) -> None:
    """Every stem is a file name, and no two are one file where letter case does not count."""
    for stem in (prompt.stem for prompt in prompts):
        if not stem.strip() or stem[0] == "." or "/" in stem or "\0" in stem:
            raise ValueError(
                f"{where}: {stem!r} cannot name a file; VBench's videos are {{it}}-0.mp4."
            )
        if len(stem.encode()) > LONGEST_STEM:
            raise ValueError(
                f"{where}: {stem!r} has {len(stem.encode())} bytes, too long for the names of its "
                f"videos; use at most {LONGEST_STEM}."
            )
    counts = Counter(prompt.stem.casefold() for prompt in prompts)
    twice = sorted({p.stem for p in prompts if counts[p.stem.casefold()] > 1})
    if twice:
        raise ValueError(
            f"{where}: {few(twice, 'prompts')} are there twice, letter case aside; their videos "
            "would overwrite one another."
        )
