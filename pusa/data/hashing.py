"""Names by content: keys of cache files, digests of files, fingerprints of models."""

import hashlib
from pathlib import Path


def content_key(*parts: str | bytes | int | float) -> str:
    """A name that changes when any part does."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def file_digest(path: str | Path) -> str:
    """Content hash of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256(path: str | Path) -> str:
    """Of a file's bytes, as model hubs list it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


LARGE = 2**28  # bytes; larger weight files are known by samples of their content
_SAMPLES, _SAMPLE = 256, 2**14
_WEIGHT_FILES = (".json", ".safetensors", ".pth", ".pt", ".bin", ".model")


def fingerprint(path: str | Path) -> str:
    """What the weight and config files at a path are: a file, or a folder with all below it.

    Content hashes; of files of 256 MB and more, the size and evenly spaced samples, so that 60 GB
    of weights take milliseconds. ValueError if there are no such files.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _counts(p))
    if not files:
        raise ValueError(f"{path}: no weight files there; check the paths of the model.")
    return content_key(*(part for p in files for part in (p.name, _mark(p))))


def _counts(path: Path) -> bool:
    return path.is_file() and path.suffix in _WEIGHT_FILES


def _mark(path: Path) -> str:
    size = path.stat().st_size
    if size < LARGE:
        return file_digest(path)
    with path.open("rb") as file:
        samples = []
        for i in range(_SAMPLES):
            file.seek(i * (size - _SAMPLE) // (_SAMPLES - 1))
            samples.append(file.read(_SAMPLE))
    return content_key(size, *samples)
