"""What is known of media files, so that no file is hashed or probed twice: lines of JSON that every
process appends to a file of its own in the cache folder."""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pusa.data.media import Media
from pusa.data.video import Probe, VideoError, probe

FOLDER = "media"


@dataclass(frozen=True)
class Facts:
    """A file's content hash and its probe, or why it cannot be used (then probe is None)."""

    digest: str
    probe: Probe | None
    fault: str = ""


class FactBook:
    """Facts of media files by place, size and time of change; kept in `<cache>/media/*.jsonl`."""

    def __init__(self, cache: str | Path):
        self.folder = Path(cache) / FOLDER
        self._known: dict[str, Mapping[str, Any]] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_bytes().split(b"\n"):
                self._learn(line)
        self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"

    def _learn(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            self._known[row["place"]] = row
        except (ValueError, KeyError, TypeError):
            return  # the last line of a process that was killed

    def of(self, media: Media) -> Facts:
        """Look up, or hash and probe and write down. OSError if the file is not there."""
        place = _place(media)
        row = self._known.get(place)
        facts = None if row is None else _facts(row)
        if facts is None:
            facts = _examine(media)
            self._write(place, facts)
        return facts

    def _write(self, place: str, facts: Facts) -> None:
        row = {"place": place, "digest": facts.digest, "fault": facts.fault,
               "probe": None if facts.probe is None else asdict(facts.probe)}  # fmt: skip
        self._known[place] = row
        self.folder.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _place(media: Media) -> str:
    stat = media.path.stat()
    return f"{media}|{media.path.parent.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def _facts(row: Mapping[str, Any]) -> Facts | None:
    """None if the row is of another version of this code."""
    if row["probe"] is None:
        return Facts(row["digest"], None, row["fault"])
    names = {field.name for field in fields(Probe)}
    if row["probe"].keys() != names:
        return None
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in row["probe"].items()
    }
    return Facts(row["digest"], Probe(**values), row["fault"])


def _examine(media: Media) -> Facts:
    digest = media.digest()
    try:
        return Facts(digest, probe(media))
    except VideoError as error:
        return Facts(digest, None, str(error))
