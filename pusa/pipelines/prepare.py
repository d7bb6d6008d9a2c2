"""Makes sure that a data set's clips and latents are there before training or evaluation."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pusa.data import toy
from pusa.data.latents import LatentCache
from pusa.pipelines.build import Model
from pusa.pipelines.encode import (
    EncodeSettings,
    dataset_fingerprint,
    encode_clips,
    folder_fingerprint,
)

log = logging.getLogger(__name__)
Progress = Callable[[str], Callable[[Iterable], Iterable]]  # description -> wrapper


@dataclass(frozen=True)
class ToyClips:
    """How many toy clips of which split to render, and their size."""

    split: str
    num_clips: int
    seed: int
    num_frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Source:
    """A data set: the name of its index in the cache, its manifest, and, for toy data, how to
    render it when it is missing (None: the clips are the user's own)."""

    name: str
    manifest: str
    toy: ToyClips | None = None

    def render(self, progress: Progress) -> None:
        """Draw missing toy clips; nothing for a user's own clips."""
        folder = Path(self.manifest).parent
        if self.toy is None:
            return
        if Path(self.manifest).is_file() and len(toy.read_truth(folder)) == self.toy.num_clips:
            return
        log.info("rendering %d toy clips (%s) to %s", self.toy.num_clips, self.toy.split, folder)
        toy.write_dataset(
            folder, self.toy.split, self.toy.num_clips, self.toy.seed, self.toy.fps,
            progress(f"render {self.toy.split}"), num_frames=self.toy.num_frames,
            height=self.toy.height, width=self.toy.width,
        )  # fmt: skip


def prepare(
    sources: Iterable[Source], cache: str | Path, model: Model, settings: EncodeSettings | None,
    progress: Progress,
) -> None:  # fmt: skip
    """Render and encode what is missing or has changed since; fast when nothing has.

    settings None: clips are used as pixels, nothing is encoded.
    """
    store = LatentCache(cache)
    vae = text_encoder = None
    for source in sources:
        source.render(progress)
        if settings is None:
            continue
        fingerprint = dataset_fingerprint(source.manifest, settings, model.vae, model.text_encoder)
        if store.index_path(source.name).is_file() and store.read_index(source.name)[0] == fingerprint:
            continue
        vae = vae or model.build_vae()
        text_encoder = text_encoder or model.build_text_encoder()
        log.info("encoding %s into %s", source.manifest, store.folder)
        entries = encode_clips(
            source.manifest, store, settings, vae, text_encoder, folder_fingerprint(model.vae),
            folder_fingerprint(model.text_encoder), progress(f"encode {source.name}"),
        )  # fmt: skip
        store.write_index(source.name, fingerprint, entries)
