"""Input images of suites as files: cut to a size and kept, or checked where others cut them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from pusa.atomic import replacing
from pusa.data.hashing import content_key, file_digest
from pusa.data.video import fit, read_frames

TOLERANCE = 0.005  # of a ratio; 26-15 and 7-4 are 1% apart
_MARK = "pusa-input"  # of the text in a PNG that says what it was made from


def fit_image(source: Path, target: Path, width: int, height: int) -> None:
    """Cut the middle of an image to width:height, scale it down if it is larger, write it as PNG.

    What `data.video.fit` "crop" makes of it, but never enlarged: a smaller image keeps its pixels,
    and the model's own reading enlarges them. Upright, 8-bit RGB, over white where transparent. A
    target made from the same bytes for the same size is kept. ValueError if the source is no
    readable image, or if the target is a picture that was not written here.
    """
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} is no size of a picture.")
    key = content_key("crop", file_digest(source), width, height)
    if target.exists() and _made_from(target) == key:
        return
    pixels = read_frames(source)[0]
    grow = max(1.0, height / pixels.shape[2], width / pixels.shape[3])
    pixels = fit(pixels, max(1, round(height / grow)), max(1, round(width / grow)), "crop")[0]
    mark = PngInfo()
    mark.add_text(_MARK, key)
    with replacing(target) as partial:
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image.save(partial, format="PNG", pnginfo=mark)


def _made_from(target: Path) -> str:
    try:
        with Image.open(target) as image:
            mark = image.info.get(_MARK)
    except (UnidentifiedImageError, OSError):
        mark = None
    if mark is None:
        raise ValueError(
            f"{target}: is no picture that was made here and would be overwritten; choose another "
            "folder for the fitted images."
        )
    return mark


def require_ratio(files: Sequence[Path], width: int, height: int) -> None:
    """ValueError unless all are JPEG or PNG and most of them have the ratio width:height.

    Most, not all: how exactly every published crop was cut is its publisher's affair; a folder of
    another ratio is the user's. Only headers are read.
    """
    others = []
    for file in files:
        try:
            with Image.open(file, formats=("JPEG", "PNG")) as image:
                found = image.size
        except (OSError, SyntaxError) as error:
            raise ValueError(
                f"{file}: no JPEG or PNG ({error}); its download may have failed, get it again."
            ) from error
        if abs(found[0] * height / (found[1] * width) - 1) > TOLERANCE:
            others.append((file, found))
    if 2 * len(others) > len(files):
        file, found = others[0]
        raise ValueError(
            f"{file.parent}: {len(others)} of {len(files)} images are not {width}-{height}, such "
            f"as {file.name!r} ({found[0]}x{found[1]}); crop them again to that ratio."
        )
