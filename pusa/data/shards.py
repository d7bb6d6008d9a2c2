"""Rows of manifests that hold the media themselves: tar shards, folders that `datasets` saved."""

import glob
import hashlib
import os
import re
import tarfile
from pathlib import Path
from typing import Any

from pusa.atomic import replacing
from pusa.data.media import Media
from pusa.data.rows import (
    CAPTION_KEYS,
    SUFFIXES,
    Row,
    Rows,
    decode,
    load_json,
    pick,
    read_text,
    samples,
    unknown_suffix,
)

COLUMN_KEYS = ("video", "image", "file_name", "media")  # of a `datasets` folder
_PACKED = {
    b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd",
}  # fmt: skip
_MAGIC = (
    (0, b"\x89PNG", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (8, b"WEBP", ".webp"),
    (0, b"BM", ".bmp"), (4, b"ftyp", ".mp4"), (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (8, b"AVI ", ".avi"), (0, b"GIF8", ".gif"),
)  # fmt: skip


def read_shards(shards: list[Path], base: Path) -> Rows:
    """Rows of WebDataset shards: members of one stem are a sample, a clip and its caption in a .txt
    or in a .json under text or caption. Nothing is unpacked.

    Names are shard/member. ValueError for a missing, packed (.gz) or damaged shard.
    """
    for shard in shards:
        members = index(shard)
        prefix = os.path.relpath(shard, base)
        for sample in samples(list(members), (".txt", ".json"), str(shard)):
            if isinstance(sample, ValueError):
                yield sample
                continue
            name, caption = sample
            offset, size = members[name].offset_data, members[name].size
            where = f"{shard}, member {caption}"
            with shard.open("rb") as file:
                file.seek(members[caption].offset_data)
                data = file.read(members[caption].size)
            try:
                text = decode(data, where).strip()
                if caption.endswith(".json"):
                    text = pick(load_json(text, where), CAPTION_KEYS, where)
                yield Row(f"{prefix}/{name}", Media(shard, name, offset, size), text, where)
            except ValueError as error:
                yield error


def index(shard: Path) -> dict[str, tarfile.TarInfo]:
    """Members of a shard by name, hidden ones left out."""
    if not shard.is_file():
        raise ValueError(f"{shard}: no such shard; mend the pattern or copy the shard.")
    with shard.open("rb") as file:
        start = file.read(8)
        for magic, command in _PACKED.items():
            if start.startswith(magic):
                raise ValueError(
                    f"{shard}: is packed, so that clips cannot be read in any order; "
                    f"unpack it to a plain .tar ({command})."
                )
        file.seek(0)
        members: dict[str, tarfile.TarInfo] = {}
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    name = os.path.normpath(member.name)
                    if not member.isreg() or member.issparse() or Path(name).name[0] == ".":
                        continue
                    if name in members:
                        raise ValueError(f"{shard}: holds {name} twice; pack it again.")
                    members[name] = member
                end = tar.offset
        except tarfile.TarError as error:
            raise ValueError(f"{shard}: no whole tar file ({error}); copy it again.") from error
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
            raise ValueError(f"{shard}: damaged at byte {end}; copy it again.")
    return members


def expand(pattern: str) -> list[Path]:
    """Files of a pattern: {000..009} and {a,b} are written out, then * ? [] looked up."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        if not re.search(r"[*?\[]", pattern):
            return [Path(pattern)]
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ValueError(f"{pattern}: matches no file; mend the pattern.")
        return [Path(name) for name in found]
    words = brace[1].split(",")
    span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if span:
        width = len(span[1]) if span[1][0] == "0" else 0
        words = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    head, tail = pattern[: brace.start()], pattern[brace.end() :]
    return [path for word in words for path in expand(head + word + tail)]


def read_datasets(folder: Path, media_folder: Path) -> Rows:
    """Rows of a folder that `Dataset.save_to_disk` wrote: columns text or caption, and one of
    video, image, file_name and media, which holds paths or embedded bytes.

    Embedded bytes are written once to media_folder, named by their content.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{folder}: needs the datasets library; pip install 'pusa[datasets]'."
        ) from error

    table: Any = datasets.Dataset.load_from_disk(str(folder)).with_format(None)
    columns = [
        next((key for key in keys if key in table.column_names), "")
        for keys in (COLUMN_KEYS, CAPTION_KEYS)
    ]
    for column, keys in zip(columns, (COLUMN_KEYS, CAPTION_KEYS), strict=True):
        if not column:
            names = ", ".join(table.column_names)
            raise ValueError(f"{folder}: has no column {' or '.join(keys)}, only {names}.")
    if isinstance(table.features[columns[0]], (datasets.Image, datasets.Video)):
        table = table.cast_column(columns[0], type(table.features[columns[0]])(decode=False))
    for number, row in enumerate(table.select_columns(columns)):
        where, value, caption = f"{folder}, row {number}", row[columns[0]], row[columns[1]] or ""
        if isinstance(value, str) or value is None:
            yield Row(value or "", None, caption, where)
        elif not isinstance(value, dict) or not value.keys() >= {"bytes", "path"}:
            yield ValueError(f"{where}: {columns[0]} is neither a path nor embedded bytes.")
        elif value["bytes"] is None:
            yield Row(value["path"] or "", None, caption, where)
        else:
            yield _embedded(value["bytes"], value["path"] or "", caption, where, media_folder)


def _embedded(data: bytes, path: str, caption: str, where: str, folder: Path) -> Row | ValueError:
    suffix = Path(path).suffix.lower() or next(
        (suffix for start, magic, suffix in _MAGIC if data[start:].startswith(magic)), ""
    )
    if suffix not in SUFFIXES:
        return ValueError(f"{where}: {unknown_suffix(suffix)}")
    target = folder / f"{hashlib.blake2b(data, digest_size=16).hexdigest()}{suffix}"
    if not target.is_file() or target.stat().st_size != len(data):
        with replacing(target) as partial:
            partial.write_bytes(data)
    return Row(target.name, Media(target), caption, f"{where} ({path})" if path else where)


def only_split(folder: Path) -> Path:
    file = folder / "dataset_dict.json"
    splits = load_json(read_text(file), str(file))
    names = splits.get("splits", []) if isinstance(splits, dict) else []
    if len(names) != 1:
        raise ValueError(
            f"{folder}: holds the splits {', '.join(names) or '(none)'}; name one, as "
            f"{folder / (names[0] if names else 'train')}."
        )
    return folder / names[0]
