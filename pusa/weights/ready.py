"""A checkpoint in the dtype that training wants, written once, so that all processes of a machine
map one copy instead of casting one each."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from pusa.weights.convert import Output, write
from pusa.weights.files import Checkpoint, WeightsError, read_checkpoint
from pusa.weights.layouts import Cast
from pusa.weights.writing import SHARD_BYTES, Progress

log = logging.getLogger(__name__)


def ready_copy(
    path: str | Path, target: Path, dtype: torch.dtype, keep_float32: Iterable[str] = (),
    shard_bytes: int = SHARD_BYTES, progress: Progress = iter,
) -> Path:  # fmt: skip
    """The checkpoint itself if its tensors can be mapped as they are, else a copy at `target`.

    keep_float32: parts of names whose tensors stay float32. The copy is written whole or not at
    all, and not again if it is there: give each source and dtype a target of its own.
    """
    checkpoint = read_checkpoint(path)
    cast = Cast(checkpoint.tensors, dtype, tuple(keep_float32))
    # What stays float32 is small, and read by copy anyhow: it may have any dtype in the file.
    large = [key for key in cast if cast.spec(key).dtype == dtype]
    if all(checkpoint.tensors.spec(key).dtype == dtype for key in large):
        return Path(path)
    if not target.exists():
        log.info("%s: writing a %s copy to %s, for all processes to map", path, dtype, target)
        converted = Checkpoint(checkpoint.variant, cast)
        try:
            write(converted, Output(target, "official", shard_bytes=shard_bytes), progress)
        except (OSError, WeightsError):
            if not target.exists():  # else another run was first, with the same copy
                raise
    return target
