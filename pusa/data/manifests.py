"""Which kind of manifest is at a path: csv, jsonl, folder of clips, `datasets` folder or shards."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pusa.data.rows import SUFFIXES, Rows, files_below, read_csv, read_folder, read_jsonl
from pusa.data.shards import expand, only_split, read_datasets, read_shards

INNER = ("metadata.csv", "metadata.jsonl")  # Hugging Face's videofolder and imagefolder layouts
_KINDS = (
    "a metadata.csv, a .jsonl file, a folder of clips with .txt captions, a folder that "
    "`datasets` saved, or .tar shards"
)


@dataclass(frozen=True)
class Manifest:
    """A manifest of a known kind. base: names are relative to it; folders: where files are looked
    for, the first first."""

    path: Path
    base: Path
    folders: tuple[Path, ...]
    read: Callable[[], Rows]


def open_manifest(path: str | Path, media_folder: str | Path | None = None) -> Manifest:
    """Find out which kind of manifest is at `path`; see clips.read_manifest for the kinds.

    media_folder: where media embedded in a `datasets` folder are written. ValueError if there is
    none, or if it is of no known kind.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, media_folder)
    if not path.exists():
        if not re.search(r"[*?\[{]", str(path)):
            raise ValueError(f"{path}: no such manifest; expected {_KINDS}.")
        fixed = Path(re.split(r"[*?\[{]", str(path))[0] + "_").parent
        return Manifest(path, fixed, (), lambda: read_shards(expand(str(path)), fixed))
    base = path.parent
    beside = (base / "train", base)
    if path.suffix == ".csv":
        return Manifest(path, base, beside, lambda: read_csv(path))
    if path.suffix == ".jsonl":
        return Manifest(path, base, beside, lambda: read_jsonl(path))
    if ".tar" in path.suffixes or path.suffix == ".tgz":
        return Manifest(path, base, (), lambda: read_shards([path], base))
    raise ValueError(f"{path}: not a manifest of a known kind; expected {_KINDS}.")


def _open_folder(folder: Path, media_folder: str | Path | None) -> Manifest:
    inner = [folder / name for name in INNER if (folder / name).is_file()]
    if len(inner) > 1:
        raise ValueError(f"{folder}: holds {INNER[0]} and {INNER[1]}; name the one that is meant.")
    if inner:
        return open_manifest(inner[0])
    if (folder / "dataset_dict.json").is_file():
        return _open_folder(only_split(folder), media_folder)
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        target = Path(
            media_folder or folder.absolute().with_name(f"{folder.absolute().name}.media")
        )
        folders = (folder, folder.parent)
        return Manifest(folder, folder, folders, lambda: read_datasets(folder, target))
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        return Manifest(folder, folder, (folder,), lambda: read_folder(folder))
    if any(Path(name).suffix.lower() in SUFFIXES for name in files_below(folder)):
        raise ValueError(
            f"{folder}: holds clips and .tar shards; name the shards ({folder}/*.tar) or move them."
        )
    return Manifest(folder, folder, (), lambda: read_shards(shards, folder))
