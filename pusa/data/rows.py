"""Rows of a manifest, a name and a caption each: out of csv, jsonl, and a folder of clips with .txt
captions. Decodes nothing; clips.py makes clips of the rows.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.data.media import Media
from pusa.data.video import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv",
        ".ogv", ".3gp", ".gif",
    }
)  # fmt: skip
SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
NAME_KEYS, CAPTION_KEYS = ("file_name", "video", "media"), ("text", "caption")


@dataclass(frozen=True)
class Row:
    """What a manifest says of one clip. media: None if `name` is yet to be looked up."""

    name: str
    media: Media | None
    caption: str
    where: str


Rows = Iterator[Row | ValueError]  # an error takes the place of the row that it is about


def read_csv(path: Path) -> Rows:
    """Rows of a csv with columns file_name and text; further columns are ignored.

    ValueError for a missing column, broken quotes and text that is not UTF-8.
    """
    limit = csv.field_size_limit(sys.maxsize)  # captions of any length; a setting of the process
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name or "" for name in reader.fieldnames or ()]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: broken csv ({error}); a caption with commas, quotes "
            'or line breaks stands in quotes, and a quote in it is doubled ("").'
        ) from error
    finally:
        csv.field_size_limit(limit)
    for column in ("file_name", "text"):
        if column not in header:
            raise ValueError(
                f"{path}: misses column {column!r}; the header must be file_name,text, "
                f"it is {','.join(header)!r}."
            )
    for line, row in rows:
        where = f"{path}, line {line}"
        if None in row:  # the rest of a caption would be lost
            given = len(header) + len(row[None])
            yield ValueError(
                f"{where}: has {given} fields, the header has {len(header)}; put a caption with "
                "commas in quotes."
            )
        else:
            yield Row(row["file_name"] or "", None, row["text"] or "", where)


def read_jsonl(path: Path) -> Rows:
    """Rows of a file with one JSON object per line: file_name, video or media; text or caption.

    Of several such keys the first counts. ValueError if the file is not UTF-8.
    """
    # Not splitlines(), which breaks lines at characters that JSON allows in a string.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            value = load_json(line, where)
            yield Row(pick(value, NAME_KEYS, where), None, pick(value, CAPTION_KEYS, where), where)
        except ValueError as error:
            yield error


def pick(value: Any, keys: tuple[str, ...], where: str) -> str:
    """The string under the first of the keys that is there. ValueError if there is none."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: is no JSON object; expected {{...}} with {' or '.join(keys)}.")
    for key in keys:
        if key in value:
            if not isinstance(value[key], str):
                raise ValueError(f"{where}: {key} is {value[key]!r}; expected a string.")
            return value[key]
    raise ValueError(f"{where}: has no {' or '.join(keys)}, only {', '.join(value) or 'nothing'}.")


def read_folder(folder: Path) -> Rows:
    """Rows of every clip below a folder, in order of their names; the caption is in the .txt of the
    same stem. Hidden files and files of other kinds are passed over."""
    for sample in samples(files_below(folder), (".txt",), str(folder)):
        if isinstance(sample, ValueError):
            yield sample
            continue
        name, caption = sample
        try:
            text = read_text(folder / caption).strip()
            yield Row(name, Media(folder / name), text, str(folder / caption))
        except ValueError as error:
            yield error


def unknown_suffix(suffix: str) -> str:
    return f"unknown suffix {suffix!r}; expected one of {' '.join(sorted(SUFFIXES))}."


def samples(
    names: list[str], captions: tuple[str, ...], where: str
) -> Iterator[tuple[str, str] | ValueError]:
    """Pairs (clip, caption file) of names that share a stem. Names of neither are passed over."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        stems.setdefault(stem, []).append(suffix)
    for stem, suffixes in stems.items():
        clips = [suffix for suffix in suffixes if suffix.lower() in SUFFIXES]
        texts = [suffix for suffix in captions if suffix in suffixes]
        others = [suffix for suffix in suffixes if suffix not in (*clips, *captions)]
        if len(clips) > 1:
            both = " and ".join(stem + suffix for suffix in clips)
            yield ValueError(f"{where}: {both} share a stem, and a caption; rename one.")
        elif clips and texts:
            yield stem + clips[0], stem + texts[0]
        elif clips:
            yield ValueError(
                f"{where}: {stem}{clips[0]} has no caption; expected "
                f"{' or '.join(stem + suffix for suffix in captions)} beside it."
            )
        elif texts and others:
            yield ValueError(f"{where}: {stem}{others[0]}: {unknown_suffix(others[0])}")


def files_below(folder: Path) -> list[str]:
    """Sorted names, relative to the folder, of all files below it but hidden ones."""
    names, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(root)
        folders[:] = [] if here in seen else [name for name in folders if name[0] != "."]
        if here not in seen:  # a link may lead back up
            names += [os.path.relpath(os.path.join(root, n), folder) for n in files if n[0] != "."]
        seen.add(here)
    return sorted(names)


def read_text(path: Path) -> str:
    """A file's text, with or without a byte order mark. ValueError if it is not UTF-8."""
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8."
        ) from error


def load_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: broken JSON ({error}); mend or drop it.") from error
