"""What is known of media files, so that no file is hashed or probed twice: lines of JSON that every
process appends to a file of its own in the cache folder."""

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pusa.data.media import Media
from pusa.data.readers import versions
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
        self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"
        self._versions = versions()
        self._known: dict[str, tuple[float, Facts]] = {}  # with the time when it was found out
        self.reload()
        # What went wrong in an earlier run may have been the disk's or the network's fault.
        self._known = {
            place: (t, facts) for place, (t, facts) in self._known.items() if facts.probe
        }

    def reload(self) -> None:
        """Read what other processes have found out meanwhile."""
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_bytes().split(b"\n"):
                self._learn(line)

    def _learn(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            facts = _facts(row, self._versions)
            time_before, _ = self._known.get(row["place"], (0, None))
            if facts is not None and row["time"] >= time_before:
                self._known[row["place"]] = row["time"], facts
        except (ValueError, KeyError, TypeError):
            return  # the last line of a process that was killed

    def of(self, media: Media) -> Facts:
        """Look up, or hash and probe and write down. A FIFO, a device and what is not there are
        faults at once."""
        facts = self.known(media)
        if facts is None:
            facts = _examine(media)
            self._write(media, facts)
        return facts

    def known(self, media: Media) -> Facts | None:
        """What is known without opening the file; None if it was not examined yet."""
        if not media.path.exists():
            return Facts("", None, f"{media}: no such file; copy it there or drop it.")
        if not media.path.is_file():
            return Facts("", None, f"{media}: is a FIFO, device or folder; drop it.")
        return self._known.get(_place(media), (0, None))[1]

    def blame(self, media: Media, fault: str) -> None:
        """Write down that a file which was probed cannot be used after all."""
        facts = self.known(media)
        self._write(media, Facts(facts.digest if facts else "", None, fault))

    def _write(self, media: Media, facts: Facts) -> None:
        place = _place(media)
        probe = None if facts.probe is None else asdict(facts.probe)
        row = {"place": place, "time": time.time(), "digest": facts.digest, "fault": facts.fault,
               "probe": probe}  # fmt: skip
        self._known[place] = row["time"], facts
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


def _facts(row: Mapping[str, Any], readers: Mapping[str, str]) -> Facts | None:
    """None if the row is of another version of this code, or of a reader."""
    if row["probe"] is None:
        return Facts(row["digest"], None, row["fault"])
    names = {field.name for field in fields(Probe)}
    if row["probe"].keys() != names:
        return None
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in row["probe"].items()
    }
    found = Probe(**values)
    current = found.version == readers.get(found.reader, found.version)
    return Facts(row["digest"], found) if current else None


def _examine(media: Media) -> Facts:
    try:
        digest = media.digest()
    except OSError as error:
        return Facts("", None, f"{media}: cannot be read ({error.strerror}); mend or drop it.")
    try:
        return Facts(digest, probe(media))
    except VideoError as error:
        return Facts(digest, None, str(error))
