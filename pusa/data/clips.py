"""Manifests of captioned clips. Reads names and captions; opens no video."""

import csv
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("file_name", "text")


@dataclass(frozen=True)
class Clip:
    """A video or image file and its caption."""

    path: Path
    caption: str


def read_manifest(path: str | Path) -> list[Clip]:
    """Clips of a `metadata.csv` with columns file_name and text.

    Files lie under `train/` beside the manifest (the layout of the public PusaV1_training set) or
    directly beside it. ValueError, with file and line, for a missing column, caption or file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest; expected a metadata.csv (data.manifest).")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: misses column {missing[0]!r}; the header must be file_name,text."
            )
        clips = [_clip(path, reader.line_num, row) for row in reader]
    if not clips:
        raise ValueError(f"{path}: lists no clips; add a line file_name,text per clip.")
    return clips


def _clip(manifest: Path, line: int, row: dict[str, str | None]) -> Clip:
    name, caption = (row[column] or "" for column in COLUMNS)
    if not name.strip():
        raise ValueError(f"{manifest}, line {line}: file_name is empty.")
    if not caption.strip():
        raise ValueError(f"{manifest}, line {line}: {name} has no caption in column text.")
    for folder in (manifest.parent / "train", manifest.parent):
        if (folder / name).is_file():
            return Clip(folder / name, caption)
    raise ValueError(
        f"{manifest}, line {line}: {name} is neither in {manifest.parent / 'train'} nor beside the "
        "manifest; copy it there or drop the line."
    )
