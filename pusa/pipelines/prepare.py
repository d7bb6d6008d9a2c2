"""Makes sure that a data set's clips and latents are there before training or evaluation."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pusa.data import toy
from pusa.data.cache import LatentCache
from pusa.data.clips import Clip, read_manifest, read_quarantine, split_by_hash, usable
from pusa.data.hashing import fingerprint
from pusa.pipelines.build import Model
from pusa.pipelines.encode import dataset_fingerprint, encode_clips, write_index
from pusa.pipelines.parts import Part
from pusa.pipelines.samples import EncodeSettings, Keys

log = logging.getLogger(__name__)
SPLITS = ("all", "train", "heldout")
Progress = Callable[[str], Callable[[Iterable], Iterable]]  # description -> wrapper


@dataclass(frozen=True)
class ToyClips:
    """Toy clips to render: where to, how many of which split, and their size."""

    folder: str
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
    """A data set: the name of its index in the cache, and the manifest of the user's own clips, or
    None for toy clips, which are rendered when they are missing.

    split: "all" clips, or the "train" or "heldout" ones of a division by hash, in which about
    heldout_share are held out; toy clips have splits of their own. What `pusa data check` put in
    quarantine is left out. toy_if: null or false where toy clips will not do: a manifest is needed.
    """

    name: str
    manifest: str | None
    toy: ToyClips | None = None
    split: str = "all"
    heldout_share: float = 0.02
    toy_if: str | bool | None = True

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r} is unknown; use one of {', '.join(SPLITS)}.")
        if self.manifest:
            object.__setattr__(self, "toy", None)
        elif self.toy is not None and self.toy_if:
            object.__setattr__(self, "manifest", f"{self.toy.folder}/metadata.csv")
            object.__setattr__(self, "split", "all")
        else:
            raise ValueError(
                f"data set {self.name!r} has no manifest; set data.train.manifest and "
                "data.heldout.manifest, to a metadata.csv, a folder of clips or what else "
                "docs/data.md names."
            )

    @property
    def path(self) -> Path:
        """The manifest's, named or of the toy clips."""
        assert self.manifest, "always set"
        return Path(self.manifest)

    @property
    def num_clips(self) -> int:
        """Of toy data; ValueError for a user's own clips, which have no known truth."""
        if self.toy is None:
            raise ValueError(
                f"{self.manifest}: the toy suite needs toy clips; leave suite.source.manifest null."
            )
        return self.toy.num_clips

    def clips(self) -> list[Clip]:
        """The usable clips of this split; none may be left for "heldout", of a few clips.

        ValueError if none are left of another split.
        """
        listed = read_manifest(self.path)
        kept = usable(listed, read_quarantine(self.path))
        if len(kept) < len(listed):
            log.info("%s: %d clips are in quarantine.", self.manifest, len(listed) - len(kept))
        if self.split != "all":
            kept = split_by_hash(kept, self.heldout_share)[self.split == "heldout"]
        if not kept and self.split != "heldout":
            raise ValueError(
                f"{self.manifest}: no clips are left for {self.name}; see its quarantine file and "
                "heldout_share."
            )
        return kept

    def render(self, progress: Progress) -> None:
        """Draw missing toy clips; nothing for a user's own clips.

        ValueError if the folder holds toy clips of other settings.
        """
        if self.toy is None:
            return
        folder, scenes = self.path.parent, self.toy.scenes()
        if self.path.is_file():
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
    progress: Progress, part: Part = Part(),  # noqa: B008 - frozen
) -> dict[str, str]:  # fmt: skip
    """Render and encode what is missing or has changed since; fast when nothing has.

    Returns the fingerprint of every source's index, by its name, of those that are whole: with
    several parts, the last one to end makes the index. A held-out split without clips is left out,
    with a warning. settings None: clips are used as pixels, nothing is encoded.
    """
    model.ensure_files()
    store = LatentCache(cache)
    vae = text_encoder = keys = None
    indices = {}
    for source in sources:
        source.render(progress)
        if settings is None:
            continue
        clips = source.clips()
        if not clips:
            log.warning(
                "%s: none of the few clips falls into the held-out share of %g: nothing is held "
                "out for %s. Raise data.train.heldout_share or name a data.heldout.manifest.",
                source.manifest, source.heldout_share, source.name,
            )  # fmt: skip
            continue
        keys = keys or Keys(fingerprint(model.vae), fingerprint(model.text_encoder), model.text_len)
        mark = dataset_fingerprint(clips, settings, keys)
        if not store.has_index(source.name, mark):
            vae = vae or model.build_vae().to(model.run_device())
            text_encoder = text_encoder or model.build_text_encoder().to(model.run_device())
            log.info("encoding %s into %s", source.manifest, store.folder)
            entries = encode_clips(
                clips, store, settings, vae, text_encoder, keys, part,
                lambda what, name=source.name: progress(f"{name}: {what}"),
            )  # fmt: skip
            if entries is None:
                continue
            write_index(store, source.name, mark, entries)
        indices[source.name] = mark
    return indices
