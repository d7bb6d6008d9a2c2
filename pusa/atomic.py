"""Files that appear whole or not at all."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UMASK = os.umask(0o022)
os.umask(_UMASK)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed onto it at the end, removed on failure.

    Keeps the suffix, by which writers choose a format. Makes missing folders.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share a folder may have processes of one number.
    mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    partial = path.with_name(f".{path.stem}.{mark}.partial{path.suffix}")
    try:
        yield partial
        os.chmod(partial, 0o666 & ~_UMASK)  # some writers make files that only the owner can read
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """ValueError for infinity or NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
