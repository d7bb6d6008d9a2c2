"""Captioned toy clips with known truth: a sprite moves over a photo, as the caption says.

Sprites are real handwritten digits (scikit-learn) or round photo crops, backgrounds are the photos
that scikit-image and scikit-learn ship. Everything is a function of (seed, split, index), so the
true continuation of a clip, and which of its pixels the first frame determines, can be rendered
again at any time. The held-out split uses photo regions and digits that training never shows.
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pusa.atomic import replacing, write_text
from pusa.data import video
from pusa.rng import generator_for

SPLITS = ("train", "heldout")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (dy, dx)
COLORS = {
    "red": (230, 40, 40), "green": (50, 200, 60), "blue": (60, 90, 240), "yellow": (245, 220, 50),
    "white": (250, 250, 250), "magenta": (225, 60, 210), "cyan": (60, 220, 225),
    "orange": (250, 140, 30),
}  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Caption word -> file shipped by skimage.data (a name with a dot) or sklearn.datasets.
PHOTOS = {
    "astronaut": "astronaut.png", "brick": "brick.png", "cameraman": "camera.png",
    "cat": "chelsea.png", "coffee": "coffee.png", "coins": "coins.png", "grass": "grass.png",
    "gravel": "gravel.png", "galaxies": "hubble_deep_field.jpg", "moon": "moon.png",
    "motorcycle": "motorcycle_left.png", "retina": "retina.jpg", "rocket": "rocket.jpg",
    "tissue": "ihc.png", "temple": "china.jpg", "flower": "flower.jpg",
}  # fmt: skip
SPRITE_SPEED = 1.0  # pixels per frame
PAN_SPEED = 0.5  # pixels per frame: one pixel every second frame
SPRITE_SIZE = 12  # pixels
TRAIN_SHARE = 0.7  # left part of every photo; the rest is held out


@dataclass(frozen=True)
class Scene:
    """All that a toy clip is. `direction` and `pan` are keys of DIRECTIONS; pan may be "none"."""

    split: str
    index: int
    seed: int
    photo: str
    sprite: str
    color: str
    direction: str
    pan: str
    num_frames: int
    height: int
    width: int

    @property
    def caption(self) -> str:
        what = (
            f"a round photo of {self.sprite}"
            if self.sprite in PHOTOS
            else f"a {self.color} {self.sprite}"
        )
        camera = "" if self.pan == "none" else f" , camera pan-{self.pan}"
        return f"{what} moves {self.direction} over {self.photo}{camera}"


@dataclass(frozen=True)
class Rendering:
    """frames (T, 3, H, W) uint8; sprite (T, H, W) coverage in [0, 1]; determined (T, H, W) bool:
    True where the first frame and the caption fix the pixel."""

    frames: Tensor
    sprite: Tensor
    determined: Tensor


def make_scene(
    seed: int, split: str, index: int, num_frames: int = 17, height: int = 32, width: int = 32
) -> Scene:
    """The scene number `index` of a split; a function of its arguments alone."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}.")
    generator = generator_for(seed, f"toy/{split}/scene", index)

    def choose(options):
        return list(options)[int(torch.randint(len(options), (), generator=generator))]

    photo = choose(PHOTOS)
    is_digit = float(torch.rand((), generator=generator)) < 0.75
    sprite = choose(DIGITS) if is_digit else choose([name for name in PHOTOS if name != photo])
    pans = float(torch.rand((), generator=generator)) < 0.4
    return Scene(
        split, index, seed, photo, sprite, choose(COLORS), choose(DIRECTIONS),
        choose(DIRECTIONS) if pans else "none", num_frames, height, width,
    )  # fmt: skip


def render(scene: Scene) -> Rendering:
    """Draw a scene, with its sprite's coverage and the pixels that frame 0 determines."""
    generator = generator_for(scene.seed, f"toy/{scene.split}/look", scene.index)
    travel = round(PAN_SPEED * (scene.num_frames - 1))
    canvas = _background(scene, travel, generator)  # (3, H + 2*travel, W + 2*travel)
    look, alpha = _sprite(scene, generator)
    step = np.array(DIRECTIONS[scene.direction]) * SPRITE_SPEED
    pan = np.array(DIRECTIONS.get(scene.pan, (0, 0))) * PAN_SPEED
    start = _start(scene, step, generator)
    seen = torch.zeros(canvas.shape[1:], dtype=torch.bool)
    frames, coverages, determined = [], [], []
    for t in range(scene.num_frames):
        top, left = (travel + np.trunc(pan * t)).astype(int)
        window = np.s_[top : top + scene.height, left : left + scene.width]
        pixels, coverage = _composite(
            canvas[:, window[0], window[1]], look, alpha, start + step * t
        )
        if t == 0:
            seen[window] = coverage < 0.02
        frames.append(pixels)
        coverages.append(coverage)
        determined.append(seen[window] & (coverage < 0.02) | (coverage > 0.98))
    stacked = torch.stack(frames).round().clamp(0, 255).to(torch.uint8)
    return Rendering(stacked, torch.stack(coverages), torch.stack(determined))


def _start(scene: Scene, step: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Top left corner of the sprite in frame 0, such that it never leaves the picture."""
    total = step * (scene.num_frames - 1)
    room = np.array([scene.height - SPRITE_SIZE, scene.width - SPRITE_SIZE])
    if (np.abs(total) > room).any():
        raise ValueError(
            f"num_frames={scene.num_frames} moves the sprite {np.abs(total).max():.0f} pixels, "
            f"more than a {scene.height}x{scene.width} picture holds; "
            "use fewer frames or larger pictures."
        )
    low, high = np.maximum(0, -total), np.minimum(room, room - total)
    return low + (high - low) * torch.rand(2, generator=generator).numpy()


def _composite(
    background: Tensor, look: Tensor, alpha: Tensor, position: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Paste the sprite at a sub-pixel position (y, x), bilinearly."""
    height, width = background.shape[1:]
    whole = np.floor(position).astype(int)
    dy, dx = position - whole
    layer = torch.cat([look * alpha, alpha[None]])  # premultiplied, so edges blend rightly
    layer = functional.pad(layer, (1, 1, 1, 1))
    for axis, shift in ((1, float(dy)), (2, float(dx))):
        layer = (1 - shift) * layer + shift * layer.roll(1, axis)
    full = torch.zeros(4, height + 2, width + 2)
    size = layer.shape[-1]
    full[:, whole[0] : whole[0] + size, whole[1] : whole[1] + size] = layer
    full = full[:, 1:-1, 1:-1]
    return background * (1 - full[3]) + full[:3], full[3]


def _background(scene: Scene, travel: int, generator: torch.Generator) -> Tensor:
    """A random region of the scene's photo at random scale, (3, H + 2 travel, W + 2 travel)."""
    target = scene.height + 2 * travel, scene.width + 2 * travel
    return _random_crop(scene.photo, scene.split, target, (1.5, 3.0), generator)


def _random_crop(
    photo: str, split: str, target: tuple[int, int], zoom: tuple[float, float], generator
) -> Tensor:
    picture = _split_photo(photo, split)
    limits = [have / want for have, want in zip(picture.shape[1:], target, strict=True)]
    high = min(zoom[1], *limits)
    low = min(zoom[0], high)
    y, x, z = torch.rand(3, generator=generator).tolist()
    scale = low + (high - low) * z
    height, width = (int(want * scale) for want in target)
    top = int(y * (picture.shape[1] - height))
    left = int(x * (picture.shape[2] - width))
    crop = picture[None, :, top : top + height, left : left + width]
    resized = functional.interpolate(crop, size=target, mode="bilinear", antialias=True)
    return resized[0].clamp(0, 255)


def _sprite(scene: Scene, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Look (3, size, size) in [0, 255] and opacity (size, size) in [0, 1]."""
    size = SPRITE_SIZE
    if scene.sprite in PHOTOS:
        look = _random_crop(scene.sprite, scene.split, (size, size), (2.0, 5.0), generator)
        axis = torch.arange(size) - (size - 1) / 2
        radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
        ring = ((radius - (size / 2 - 2.5)).clamp(0, 1))[None]
        return look * (1 - ring) + 255 * ring, (size / 2 - radius).clamp(0, 1)
    strokes = _digits()[DIGITS.index(scene.sprite)]
    heldout = strokes[::5]  # every fifth writer's digit is never seen in training
    pool = heldout if scene.split == "heldout" else strokes[np.arange(len(strokes)) % 5 != 0]
    ink = torch.from_numpy(pool[int(torch.randint(len(pool), (), generator=generator))])
    ink = functional.interpolate(ink[None, None], size=(size, size), mode="bicubic")[0, 0]
    ink = ((ink - 0.25) * 2.5).clamp(0, 1)
    outline = functional.max_pool2d(ink[None, None], 3, stride=1, padding=1)[0, 0]
    color = torch.tensor(COLORS[scene.color], dtype=torch.float32)[:, None, None]
    return color * ink + 20 * (1 - ink), outline


@cache
def _digits() -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_digits

    pictures, target = load_digits(return_X_y=True)
    pictures = (np.asarray(pictures) / 16).astype(np.float32).reshape(-1, 8, 8)
    return tuple(pictures[np.asarray(target) == digit] for digit in range(10))


@cache
def _split_photo(photo: str, split: str) -> Tensor:
    """The part of a photo that a split may use, float (3, H, W) in [0, 255]."""
    from PIL import Image

    with Image.open(_photo_path(PHOTOS[photo])) as image:
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float()
    border = int(pixels.shape[2] * TRAIN_SHARE)
    return pixels[:, :, :border] if split == "train" else pixels[:, :, border:]


def _photo_path(name: str) -> Path:
    import skimage.data
    import sklearn.datasets

    if name in ("china.jpg", "flower.jpg"):
        return Path(sklearn.datasets.__file__).parent / "images" / name
    return Path(skimage.data.__file__).parent / name


def write_dataset(
    folder: str | Path,
    scenes: Sequence[Scene],
    fps: float = 16.0,
    progress: Callable[[Iterable[Scene]], Iterable[Scene]] = iter,
) -> Path:
    """Render scenes to `folder/train/*.mp4` with `metadata.csv` and `truth.jsonl`.

    Clips that are already there are kept: a stopped run goes on, and processes may do it at once.
    Returns the manifest's path.
    """
    folder = Path(folder)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for scene in progress(scenes):
        target = folder / "train" / _file_name(scene)
        if not target.exists():
            with replacing(target, keep=True) as partial:  # of a cache that knows it by its time
                video.write_video(partial, render(scene).frames, fps)
    rows = [(_file_name(scene), scene.caption) for scene in scenes]
    truth = "".join(json.dumps(asdict(scene)) + "\n" for scene in scenes)
    write_text(folder / "truth.jsonl", truth)
    with replacing(folder / "metadata.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    return folder / "metadata.csv"


def _file_name(scene: Scene) -> str:
    size = f"{scene.num_frames}x{scene.height}x{scene.width}"
    return f"{scene.split}_{scene.seed}_{scene.index:06d}_{size}.mp4"


def read_truth(folder: str | Path) -> list[Scene]:
    """The scenes of a folder that write_dataset made."""
    path = Path(folder) / "truth.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make the clips with `pusa toy` first.")
    return [Scene(**json.loads(line)) for line in path.read_text().splitlines() if line]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, in a fixed order."""
    fixed = ["a", "round", "photo", "of", "moves", "over", ",", "camera"]
    pans = [f"pan-{name}" for name in DIRECTIONS]
    return [*fixed, *DIRECTIONS, *pans, *COLORS, *DIGITS, *PHOTOS]
