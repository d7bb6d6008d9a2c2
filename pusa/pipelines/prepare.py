"""Makes sure that a data set's clips and latents are there before training or evaluation."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pusa.data import toy
from pusa.data.latents import LatentCache, fingerprint
from pusa.pipelines.build import Model
from pusa.pipelines.encode import (
    EncodeSettings,
    dataset_fingerprint,
    encode_clips,
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

    def scenes(self) -> list[toy.Scene]:
        size = (self.num_frames, self.height, self.width)
        return [toy.make_scene(self.seed, self.split, i, *size) for i in range(self.num_clips)]


@dataclass(frozen=True)
class Source:
    """A data set: the name of its index in the cache, its manifest, and, for toy data, how to
    render it when it is missing (None: the clips are the user's own)."""

    name: str
    manifest: str
    toy: ToyClips | None = None

    def __post_init__(self):
        if not self.manifest:
            raise ValueError(
                f"data set {self.name!r} has no manifest; set data.train.manifest and "
                "data.heldout.manifest to a metadata.csv each."
            )

    @property
    def num_clips(self) -> int:
        """Of toy data; ValueError for a user's own clips, which have no known truth."""
        if self.toy is None:
            raise ValueError(f"{self.manifest}: the toy suite needs toy clips (suite.source.toy).")
        return self.toy.num_clips

    def render(self, progress: Progress) -> None:
        """Draw missing toy clips; nothing for a user's own clips.

        ValueError if the folder holds toy clips of other settings.
        """
        folder = Path(self.manifest).parent
        if self.toy is None:
            return
        scenes = self.toy.scenes()
        if Path(self.manifest).is_file():
            if toy.read_truth(folder) != scenes:
                raise ValueError(
                    f"{folder} holds toy clips of other settings; "
                    "remove it or choose another folder (paths.toy)."
                )
            return
        log.info("rendering %d toy clips (%s) to %s", self.toy.num_clips, self.toy.split, folder)
        toy.write_dataset(folder, scenes, self.toy.fps, progress(f"render {self.toy.split}"))


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
        mark = dataset_fingerprint(
            source.manifest, settings, model.vae, model.text_encoder, model.text_len
        )
        if store.index_path(source.name).is_file() and store.read_index(source.name)[0] == mark:
            continue
        vae = vae or model.build_vae()
        text_encoder = text_encoder or model.build_text_encoder()
        log.info("encoding %s into %s", source.manifest, store.folder)
        entries = encode_clips(
            source.manifest, store, settings, vae, text_encoder, fingerprint(model.vae),
            fingerprint(model.text_encoder), progress(f"encode {source.name}"),
        )  # fmt: skip
        store.write_index(source.name, mark, entries)
