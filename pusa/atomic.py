"""Files that appear whole or not at all, and the room for them."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UMASK = os.umask(0o022)
os.umask(_UMASK)


@contextmanager
def replacing(path: str | Path, keep: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed onto it at the end, removed on failure.

    Keeps the suffix, by which writers choose a format. Makes missing folders. keep: a file that
    another process has made meanwhile stays, where the file system has hard links.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share a folder may have processes of one number.
    mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    partial = path.with_name(f".{path.stem}.{mark}.partial{path.suffix}")
    try:
        yield partial
        os.chmod(partial, 0o666 & ~_UMASK)  # some writers make files that only the owner can read
        if not (keep and _linked(partial, path)):
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _linked(partial: Path, path: Path) -> bool:
    """Whether `path` is there now, of this process or another; False if it cannot be told."""
    try:
        os.link(partial, path)
    except OSError as error:
        return isinstance(error, FileExistsError)
    return True


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """ValueError for infinity or NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds, or will hold, a folder."""
    here = folder.absolute()
    return shutil.disk_usage(next(p for p in (here, *here.parents) if p.exists())).free


def size_text(num_bytes: float) -> str:
    """Bytes for people: 3.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"
