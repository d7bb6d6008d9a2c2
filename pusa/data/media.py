"""Where a media file's bytes are: a file of its own, or a part of a tar shard. Decodes nothing."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Media:
    """One media file. member: its name inside a tar shard at `path`, where it takes `size` bytes
    from `offset` on; "" for a file of its own."""

    path: Path
    member: str = ""
    offset: int = 0
    size: int = -1

    def __str__(self) -> str:
        return f"{self.path}#{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return Path(self.member).name if self.member else self.path.name

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()

    def num_bytes(self) -> int:
        return self.size if self.member else self.path.stat().st_size

    def open(self) -> BinaryIO:
        """The bytes as a seekable stream; a tar member is read into memory."""
        if not self.member:
            return self.path.open("rb")
        with self.path.open("rb") as shard:
            shard.seek(self.offset)
            return io.BytesIO(shard.read(self.size))

    def digest(self) -> str:
        """Content hash, read in pieces."""
        digest = hashlib.blake2b(digest_size=16)
        with self.open() as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()


def as_media(source: "Media | str | Path") -> Media:
    return source if isinstance(source, Media) else Media(Path(source))
