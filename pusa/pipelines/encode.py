"""Samples -> latent cache: decode, fit, encode, store; each piece once, whole, by any number of
processes that need not know of one another."""

import errno
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pusa.atomic import free_bytes, size_text
from pusa.data import video
from pusa.data.cache import Entry, LatentCache
from pusa.data.clips import Clip
from pusa.data.facts import FactBook
from pusa.data.hashing import content_key
from pusa.models.base import TextEncoder, VideoVAE
from pusa.pipelines.parts import Part
from pusa.pipelines.samples import EncodeSettings, Keys, Sample, plan_samples, table

log = logging.getLogger(__name__)
CAPTIONS_AT_ONCE = 64
FILE_OVERHEAD = 400  # bytes of a cache file besides its tensor
Progress = Callable[[Iterable], Iterable]


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
    part: Part = Part(),  # noqa: B008 - frozen
    progress: Callable[[str], Progress] = lambda _: iter,
) -> list[Entry] | None:
    """Encode what the cache lacks of this part; the entries of all usable clips once every part is
    there, else None.

    ValueError that lists the bad clips, once all good ones are cached, unless settings.on_bad_clip
    is "skip". OSError before the start if the disk cannot hold what is to come.
    """
    book = FactBook(cache.folder)
    mine = part.of(clips)
    samples, bad = plan_samples(mine, book.of, settings, vae.spec, keys, progress("probe clips"))
    log.info("%s", table(samples, bad))
    captions, todo = _missing_captions(samples, cache), _missing_latents(samples, cache)
    _predict(todo, captions, cache, text_encoder)
    _encode_captions(captions, cache, text_encoder, progress("encode captions"))
    faults = _encode_pixels(todo, cache, settings, vae, progress("encode clips"))
    for sample in samples:  # copies of a faulty file, too
        if sample.entry.latents in faults:
            fault = faults[sample.entry.latents]
            fault = fault if str(sample.clip.media) in fault else f"{sample.clip.media}: {fault}"
            book.blame(sample.clip.media, fault)
            bad[sample.clip.name] = fault
    _report(bad, len(mine), settings)
    return _whole_set(clips, bad, book, cache, settings, vae, keys)


def _whole_set(
    clips: Sequence[Clip], reported: Container[str], book: FactBook, cache: LatentCache,
    settings: EncodeSettings, vae: VideoVAE, keys: Keys,
) -> list[Entry] | None:  # fmt: skip
    """Entries of all usable clips, by what all parts have written down; None while one is at it."""
    book.reload()
    cache.forget_packs()
    facts = [book.known(clip.media) for clip in clips]
    waiting = sum(fact is None for fact in facts)
    if not waiting:
        found = {clip.media: fact for clip, fact in zip(clips, facts, strict=True) if fact}
        samples, bad = plan_samples(clips, found.__getitem__, settings, vae.spec, keys)
        waiting = len(_missing_captions(samples, cache)) + len(_missing_latents(samples, cache))
        if not waiting:
            others = {name: fault for name, fault in bad.items() if name not in reported}
            _report(others, len(clips), settings)
            return [sample.entry for sample in samples]
    log.info("%d clips or captions are left to the other parts.", waiting)
    return None


def _missing_captions(samples: Sequence[Sample], cache: LatentCache) -> dict[str, str]:
    """Captions, by key, that the cache does not hold."""
    captions = {s.entry.text: s.entry.caption for s in samples}
    return {key: caption for key, caption in captions.items() if not cache.has("text", key)}


def _missing_latents(samples: Sequence[Sample], cache: LatentCache) -> list[Sample]:
    """Samples to be encoded, without repeats, those of one size together."""
    distinct = {s.entry.latents: s for s in samples}
    todo = [s for key, s in distinct.items() if not cache.has("latents", key)]
    return sorted(todo, key=lambda s: (s.size.num_frames, s.size.height, s.size.width))


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


def _predict(
    todo: Sequence[Sample], captions: Mapping[str, str], cache: LatentCache, encoder: TextEncoder
) -> None:
    """Say how much will be written; OSError if it does not fit on the disk.

    The caption of median length stands for all.
    """
    latents = sum(2 * prod(sample.entry.shape) + FILE_OVERHEAD for sample in todo)
    text = 0
    if captions:
        typical = sorted(captions.values(), key=len)[len(captions) // 2]
        one = encoder.encode([typical])
        text = len(captions) * (2 * int(one.mask.sum()) * one.embedding.shape[-1] + FILE_OVERHEAD)
    free = free_bytes(cache.folder)
    log.info(
        "%d clips and %d captions to encode, %s of latents and about %s of text; %s are free.",
        len(todo), len(captions), size_text(latents), size_text(text), size_text(free),
    )  # fmt: skip
    if latents + text > free:
        raise OSError(
            errno.ENOSPC,
            f"needs {size_text(latents + text)} for latents and text, {size_text(free)} are free",
            str(cache.folder),
        )


def _encode_captions(
    captions: Mapping[str, str], cache: LatentCache, encoder: TextEncoder, progress: Progress
) -> None:
    todo = list(captions.items())
    starts = range(0, len(todo), CAPTIONS_AT_ONCE)
    for start in progress(starts) if todo else ():
        group = todo[start : start + CAPTIONS_AT_ONCE]
        text = encoder.encode([caption for _, caption in group])
        if not torch.isfinite(text.embedding).all():
            raise ValueError(
                "the text encoder gave embeddings that are not finite; check its weights "
                "(model.text_encoder)."
            )
        for (key, _), embedding, mask in zip(group, text.embedding, text.mask, strict=True):
            cache.write("text", key, embedding[mask].to(torch.bfloat16).cpu())


def _encode_pixels(
    todo: Sequence[Sample], cache: LatentCache, settings: EncodeSettings, vae: VideoVAE,
    progress: Progress,
) -> dict[str, str]:  # fmt: skip
    """Encode samples in batches of one size, decoding ahead in threads. Returns faults, by the key
    of the latents that are not there for it."""
    faults: dict[str, str] = {}
    batches = _batches(todo, settings.batch_size)
    with ThreadPoolExecutor(settings.num_workers) as pool:
        decoded = _ahead(pool, batches, settings)
        bar, written = progress(batches) if batches else (), 0
        for batch in bar:
            good: dict[str, Tensor] = {}
            for sample, frames in zip(batch, next(decoded), strict=True):
                if isinstance(frames, Exception):
                    faults[sample.entry.latents] = str(frames)
                else:
                    good[sample.entry.latents] = frames
            if good:
                latents = encode_frames(vae, torch.stack(list(good.values())))
                for key, value in zip(good, latents, strict=True):
                    cache.write("latents", key, value.to(torch.bfloat16).cpu())
                    written += 2 * value.numel()
            if isinstance(bar, tqdm):
                bar.set_postfix_str(size_text(written), refresh=False)
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
