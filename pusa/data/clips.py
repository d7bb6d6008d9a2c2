"""Captioned clips: out of a manifest of any kind, split, and without those in quarantine. Opens no
video; the kinds of manifests are in manifests.py."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from pusa.atomic import write_text
from pusa.data.manifests import Manifest, open_manifest
from pusa.data.media import Media
from pusa.data.rows import SUFFIXES, Row, load_json, read_text, unknown_suffix


@dataclass(frozen=True)
class Clip:
    """A video or image and its caption. where: "file, line N" of the manifest, for messages; name:
    its path relative to the manifest's folder, shard/member in a shard, the path if it is outside.
    """

    media: Media
    caption: str
    where: str
    name: str

    @property
    def path(self) -> Path:
        """The file of its own; of a clip in a shard, the shard."""
        return self.media.path


def _stop(error: ValueError) -> NoReturn:
    raise error


def read_manifest(
    path: str | Path,
    media_folder: str | Path | None = None,
    on_fault: Callable[[ValueError], object] = _stop,
) -> list[Clip]:
    """Clips of a manifest, in its order. An image is a one-frame clip. path is one of

    - a `metadata.csv` with columns file_name and text (further ones are ignored);
    - a `.jsonl` of objects with file_name, video or media, and text or caption. Files named by
      either lie under `train/` beside the manifest (the layout of the public PusaV1_training set)
      or directly beside it;
    - a folder with one of these two called metadata, or of clips, at any depth, with captions in
      .txt files of the same stem;
    - a folder that the `datasets` library saved, with columns video, image, file_name or media,
      and text or caption. Bytes embedded in it are written to media_folder, by default
      `<dataset>.media` beside it;
    - WebDataset shards: a .tar, a folder of them, or a pattern as `shards-{000..009}.tar`.

    Absolute paths are taken; relative ones that leave the folder by `..` are not, because the data
    set would break when it is moved. A clip may be listed more than once. Devices and FIFOs are let
    through, for `pusa data check` to find.

    ValueError, with file and line, for a missing column, caption, file or shard, an unknown suffix,
    a name that fits two files, broken JSON, csv or tar, and text that is not UTF-8. on_fault: is
    called with the errors that concern one clip, which is then left out; by default it raises them.
    """
    manifest = open_manifest(path, media_folder)
    clips, num_faults = [], 0
    for row in manifest.read():
        try:
            if isinstance(row, ValueError):
                raise row
            clips.append(_clip(row, manifest))
        except ValueError as error:
            on_fault(error)
            num_faults += 1
    if not clips and not num_faults:
        raise ValueError(f"{manifest.path}: lists no clips; add a file and its caption per clip.")
    return clips


def _clip(row: Row, manifest: Manifest) -> Clip:
    media, name = row.media, row.name
    if not name.strip():
        raise ValueError(f"{row.where}: the file's name is empty.")
    if not row.caption.strip():
        raise ValueError(f"{row.where}: {name} has no caption; write one or drop it.")
    if media is None:
        media, name = _find(row, manifest)
    if media.suffix not in SUFFIXES:
        raise ValueError(f"{row.where}: {name}: {unknown_suffix(media.suffix)}")
    return Clip(media, row.caption, row.where, name)


def _find(row: Row, manifest: Manifest) -> tuple[Media, str]:
    """The file that a row names, and its name relative to the manifest."""
    path = Path(os.path.normpath(row.name))
    if path.parts[0] == "..":
        raise ValueError(
            f"{row.where}: {row.name} leads out of {manifest.base}; write it as an absolute path."
        )
    folders = [Path()] if path.is_absolute() else manifest.folders
    # os.path, which says no where Path raises: of a caption in the place of a name, for example.
    there = [f / path for f in folders if os.path.exists(f / path) and not os.path.isdir(f / path)]
    if not there:
        places = " nor in ".join(map(str, folders)) if not path.is_absolute() else "its folder"
        raise ValueError(
            f"{row.where}: {row.name} is not in {places}; copy it there or drop it from the "
            "manifest."
        )
    if not all(os.path.samefile(there[0], other) for other in there):
        both = " and ".join(map(str, there))
        raise ValueError(f"{row.where}: {row.name} fits two files, {both}; remove one.")
    inside = not path.is_absolute() or there[0].is_relative_to(manifest.base.absolute())
    name = os.path.relpath(there[0], manifest.base) if inside else str(path)
    return Media(there[0]), name


def split_by_hash(
    clips: Sequence[Clip], share: float, seed: int = 0
) -> tuple[list[Clip], list[Clip]]:
    """(train, held-out) clips, each in the order given; about `share` in [0, 1] is held out.

    A function of each clip's name and the seed alone: clips that are added or removed move no
    other. Copies under other names may fall on both sides; `pusa data check` finds them.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} of held-out clips; it must be in [0, 1].")
    heldout = [_fraction(clip.name, seed) < share for clip in clips]
    return (
        [clip for clip, out in zip(clips, heldout, strict=True) if not out],
        [clip for clip, out in zip(clips, heldout, strict=True) if out],
    )


def _fraction(name: str, seed: int) -> float:
    """A number in [0, 1) out of the name."""
    digest = hashlib.blake2b(f"{seed}/".encode() + os.fsencode(name), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


@dataclass(frozen=True)
class Quarantined:
    """A clip that is not to be used, by its name, and the bytes that this was said of.

    digest: "" if they could not be read to their end.
    """

    media: str
    size: int
    mtime_ns: int
    digest: str
    reason: str


def beside(manifest: str | Path, ending: str) -> Path:
    """The file that belongs to a manifest: `metadata.csv` -> `metadata.csv.<ending>`."""
    path = open_manifest(manifest).path
    name = re.sub(r"[*?{}\[\],]", "_", os.path.basename(os.path.abspath(path)))
    return path.absolute().with_name(f"{name}.{ending}")


def quarantine_path(manifest: str | Path) -> Path:
    return beside(manifest, "quarantine.jsonl")


def read_quarantine(manifest: str | Path) -> dict[str, Quarantined]:
    """What `pusa data check` put in quarantine, by name; empty if there is no such file.

    ValueError, with file and line, if it is not one.
    """
    path = quarantine_path(manifest)
    listed = {}
    for number, line in enumerate(read_text(path).split("\n") if path.is_file() else (), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                entry = Quarantined(**load_json(line, where))
            except TypeError as error:
                raise ValueError(
                    f"{where}: no line of a quarantine; run `pusa data check` again."
                ) from error
            listed[entry.media] = entry
    return listed


def write_quarantine(manifest: str | Path, entries: Iterable[Quarantined]) -> Path:
    """Replace the quarantine of a manifest, whole or not at all; without entries, remove it."""
    path = quarantine_path(manifest)
    lines = [json.dumps(asdict(entry)) + "\n" for entry in entries]
    if lines:
        write_text(path, "".join(lines))
    else:
        path.unlink(missing_ok=True)
    return path


def usable(clips: Iterable[Clip], quarantine: Mapping[str, Quarantined]) -> list[Clip]:
    """The clips that are not in quarantine, or whose file was repaired since."""
    return [c for c in clips if c.name not in quarantine or _mended(c.media, quarantine[c.name])]


def _mended(media: Media, entry: Quarantined) -> bool:
    if media.num_bytes() != entry.size:
        return True
    if media.path.stat().st_mtime_ns == entry.mtime_ns or not entry.digest:
        return False
    return media.digest() != entry.digest
