"""Samples -> latent cache: decode, fit, encode, store; each piece once, whole, by any number of
processes that need not know of one another."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from pusa.data import video
from pusa.data.cache import Entry, LatentCache
from pusa.data.care import free_bytes
from pusa.data.clips import Clip
from pusa.data.facts import FactBook
from pusa.data.hashing import content_key
from pusa.models.base import TextEncoder, VideoVAE
from pusa.pipelines.samples import EncodeSettings, Keys, Sample, plan_samples, table

log = logging.getLogger(__name__)
CAPTIONS_AT_ONCE = 64
FILE_OVERHEAD = 400  # bytes of a cache file besides its tensor
Progress = Callable[[Iterable], Iterable]


@dataclass(frozen=True)
class Part:
    """Which share of the work is this process's: every `count`-th sample, from `index` on."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"part {self.index}/{self.count} is none; write 0/4 to 3/4.")

    def of(self, items: Sequence) -> Sequence:
        return items[self.index :: self.count]


def dataset_fingerprint(clips: Sequence[Clip], settings: EncodeSettings, keys: Keys) -> str:
    """Changes when a clip's file (size or time), a caption, the settings or an encoder change."""
    stats = []
    for clip in clips:
        stat = clip.path.stat()
        stats.append(f"{clip.name}/{clip.caption}/{stat.st_size}/{stat.st_mtime_ns}")
    return content_key(*stats, settings.look, keys.vae, keys.text, keys.text_len)


def encode_clips(
    clips: Sequence[Clip],
    cache: LatentCache,
    settings: EncodeSettings,
    vae: VideoVAE,
    text_encoder: TextEncoder,
    keys: Keys,
    part: Part = Part(),
    progress: Callable[[str], Progress] = lambda _: iter,
) -> list[Entry] | None:
    """Encode what the cache lacks of this part; the entries of all usable clips once every part is
    there, else None.

    ValueError that lists the bad clips, once all good ones are cached, unless settings.on_bad_clip
    is "skip". OSError before the start if the disk cannot hold what is to come.
    """
    book = FactBook(cache.folder)
    samples, bad = plan_samples(clips, book, settings, vae.spec, keys, progress("probe clips"))
    log.info("%s", table(samples, bad))
    mine = part.of(samples)
    _encode_captions(part.of(samples), cache, text_encoder, progress("encode captions"))
    todo = list({s.entry.latents: s for s in mine if not cache.has("latents", s.entry.latents)}
                .values())  # fmt: skip
    _predict(todo, cache)
    faults = _encode_pixels(todo, cache, settings, vae, progress("encode clips"))
    failed = {s.entry.latents for s in todo if s.clip.name in faults}
    _report(bad | faults, len(clips), settings)
    entries = [s.entry for s in samples if s.entry.latents not in failed]
    waiting = sum(
        not (cache.has("latents", e.latents) and cache.has("text", e.text)) for e in entries
    )
    if waiting:
        log.info("%d samples are left to the other parts.", waiting)
        return None
    return entries


def _report(bad: dict[str, str], num_clips: int, settings: EncodeSettings) -> None:
    if not bad:
        return
    message = f"{len(bad)} of {num_clips} clips cannot be used:\n  " + "\n  ".join(bad.values())
    if settings.on_bad_clip == "stop":
        raise ValueError(
            f"{message}\nMend or drop them (`pusa data check` puts them in quarantine), or set "
            "data.encode.on_bad_clip=skip."
        )
    log.warning("%s", message)


def _predict(todo: Sequence[Sample], cache: LatentCache) -> None:
    """Say how much will be written; OSError if it does not fit on the disk."""
    need = sum(2 * prod(sample.entry.shape) + FILE_OVERHEAD for sample in todo)
    free = free_bytes(cache.folder)
    log.info(
        "%d clips to encode, %.2f GB of latents; %.1f GB are free.",
        len(todo), need / 1e9, free / 1e9,
    )  # fmt: skip
    if need > free:
        raise OSError(
            28, f"needs {need / 1e9:.1f} GB for latents, {free / 1e9:.1f} GB are free",
            str(cache.folder),
        )  # fmt: skip


def _encode_captions(
    samples: Sequence[Sample], cache: LatentCache, encoder: TextEncoder, progress: Progress
) -> None:
    captions = {s.entry.text: s.entry.caption for s in samples}
    todo = [(key, caption) for key, caption in captions.items() if not cache.has("text", key)]
    starts = range(0, len(todo), CAPTIONS_AT_ONCE)
    for start in progress(starts) if todo else ():
        group = todo[start : start + CAPTIONS_AT_ONCE]
        text = encoder.encode([caption for _, caption in group])
        if not torch.isfinite(text.embedding).all():
            raise ValueError("the text encoder gave embeddings that are not finite.")
        for (key, _), embedding, mask in zip(group, text.embedding, text.mask, strict=True):
            cache.write("text", key, embedding[mask].to(torch.bfloat16).cpu())


def _encode_pixels(
    todo: Sequence[Sample], cache: LatentCache, settings: EncodeSettings, vae: VideoVAE,
    progress: Progress,
) -> dict[str, str]:  # fmt: skip
    """Encode samples in batches of one size, decoding ahead in threads. Returns faults by clip."""
    faults: dict[str, str] = {}
    batches = _batches(todo, settings.batch_size)
    with ThreadPoolExecutor(settings.num_workers) as pool:
        decoded = _ahead(pool, batches, settings)
        for batch in progress(batches) if batches else ():
            good: dict[str, Tensor] = {}
            for sample, frames in zip(batch, next(decoded), strict=True):
                if isinstance(frames, Exception):
                    faults[sample.clip.name] = str(frames)
                else:
                    good[sample.entry.latents] = frames
            if good:
                latents = encode_frames(vae, torch.stack(list(good.values())))
                for key, value in zip(good, latents, strict=True):
                    cache.write("latents", key, value.to(torch.bfloat16).cpu())
    return faults


def _batches(todo: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    batches = []
    for _, group in groupby(todo, key=lambda sample: sample.size):
        same = list(group)
        batches += [same[i : i + batch_size] for i in range(0, len(same), batch_size)]
    return batches


def _ahead(
    pool: ThreadPoolExecutor, batches: Sequence[Sequence[Sample]], settings: EncodeSettings
) -> Iterator[list[Tensor | Exception]]:
    """Decoded batches in order, with as many samples ahead as there are threads and one batch."""
    waiting: list[list[Future]] = []
    following = iter(batches)
    while True:
        while sum(map(len, waiting)) < settings.num_workers + settings.batch_size:
            batch = next(following, None)
            if batch is None:
                break
            waiting.append([pool.submit(_decode, sample, settings.fit) for sample in batch])
        if not waiting:
            return
        yield [future.result() for future in waiting.pop(0)]


def _decode(sample: Sample, fit: str) -> Tensor | Exception:
    """Frames (3, T, H, W) in [-1, 1] of a sample, or why it cannot be used."""
    try:
        pixels = video.read_fitted(
            sample.clip.media, sample.chosen.indices, sample.size.height, sample.size.width, fit,
            sample.probe,
        )  # fmt: skip
        return video.to_signed(pixels)
    except video.VideoError as error:
        return error


@torch.no_grad()
def encode_frames(vae: VideoVAE, frames: Tensor) -> Tensor:
    """Frames (B, 3, T, H, W) -> latents, on the VAE's device; ValueError if they are not finite."""
    device = next((p.device for p in vae.parameters()), torch.device("cpu"))
    latents = vae.encode(frames.to(device))
    if not torch.isfinite(latents).all():
        raise ValueError("the VAE gave latents that are not finite; encode in float32 (model.vae).")
    return latents


def write_index(cache: LatentCache, name: str, fingerprint: str, entries: Sequence[Entry]) -> Path:
    """Record a data set; ValueError if nothing of it can be used."""
    if not entries:
        raise ValueError(f"{name}: no clip can be used; nothing to train on.")
    cache.write_index(name, fingerprint, entries)
    return cache.index_path(name, fingerprint)
