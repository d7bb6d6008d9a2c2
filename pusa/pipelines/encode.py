"""Clips -> latent cache: decode, fit, encode, store; each piece once."""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pusa.data import clips, video
from pusa.data.latents import Entry, LatentCache, content_key, file_digest, fingerprint
from pusa.models.base import TextEncoder, VideoVAE

log = logging.getLogger(__name__)
ON_BAD_CLIP = ("stop", "skip")


@dataclass(frozen=True)
class EncodeSettings:
    """What the latents of a clip depend on besides its pixels.

    num_frames (4k+1), height, width in pixels; fit: crop, stretch or pad; on_bad_clip: "stop" ends
    with an error after all good clips are cached, "skip" goes on without the bad ones.
    """

    num_frames: int
    height: int
    width: int
    fit: str = "crop"
    on_bad_clip: str = "stop"
    batch_size: int = 1

    def __post_init__(self):
        if self.on_bad_clip not in ON_BAD_CLIP:
            raise ValueError(f"on_bad_clip={self.on_bad_clip!r} is unknown; use stop or skip.")
        if self.fit not in video.FITS:
            raise ValueError(f"fit={self.fit!r} is unknown; use one of {', '.join(video.FITS)}.")

    @property
    def look(self) -> str:
        """What decides the pixels that are encoded."""
        return f"{self.num_frames}x{self.height}x{self.width}/{self.fit}"


def dataset_fingerprint(
    manifest: str | Path, settings: EncodeSettings, vae_folder, text_folder, text_len: int
) -> str:
    """Changes when the manifest, a clip's size or time, the settings or an encoder change."""
    entries = clips.read_manifest(manifest)
    stats = [f"{c.path.name}/{c.path.stat().st_size}/{c.path.stat().st_mtime_ns}" for c in entries]
    return content_key(
        file_digest(manifest), *stats, settings.look, text_len, fingerprint(vae_folder),
        fingerprint(text_folder),
    )  # fmt: skip


def encode_clips(
    manifest: str | Path,
    cache: LatentCache,
    settings: EncodeSettings,
    vae: VideoVAE,
    text_encoder: TextEncoder,
    vae_key: str,
    text_key: str,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Entry]:
    """Encode what the cache lacks and return the entries of all usable clips.

    vae_key, text_key: fingerprints of the encoders. ValueError that lists the bad clips, once all
    good ones are cached, unless settings.on_bad_clip is "skip".
    """
    vae.spec.num_latent_frames(settings.num_frames)
    vae.spec.latent_size(settings.height, settings.width)
    all_clips = clips.read_manifest(manifest)
    keys = [content_key(file_digest(clip.path), settings.look, vae_key) for clip in all_clips]
    texts = [content_key(clip.caption, text_key, text_encoder.text_len) for clip in all_clips]
    _encode_captions(
        {k: c.caption for k, c in zip(texts, all_clips, strict=True)}, cache, text_encoder
    )
    todo = {
        key: clip.path
        for key, clip in zip(keys, all_clips, strict=True)
        if not cache.has("latents", key)
    }
    bad = _encode_pixels(todo, cache, settings, vae, progress)
    if bad:
        report = "\n  ".join(str(error) for error in bad.values())
        message = f"{manifest}: {len(bad)} of {len(all_clips)} clips cannot be used:\n  {report}"
        if settings.on_bad_clip == "stop":
            raise ValueError(f"{message}\nMend or drop them, or set data.encode.on_bad_clip=skip.")
        log.warning(message)
    return [
        Entry(clip.path.name, clip.caption, key, text)
        for clip, key, text in zip(all_clips, keys, texts, strict=True)
        if key not in bad
    ]


def _encode_captions(captions: dict[str, str], cache: LatentCache, encoder: TextEncoder) -> None:
    todo = [(key, caption) for key, caption in captions.items() if not cache.has("text", key)]
    for start in range(0, len(todo), 64):
        part = todo[start : start + 64]
        text = encoder.encode([caption for _, caption in part])
        for (key, _), embedding, mask in zip(part, text.embedding, text.mask, strict=True):
            cache.write("text", key, {"text": embedding[mask].to(torch.bfloat16).cpu()})


def _encode_pixels(
    todo: dict[str, Path], cache: LatentCache, settings: EncodeSettings, vae: VideoVAE, progress
) -> dict[str, Exception]:
    """Encode clips in batches, decoding the next batch meanwhile. Returns errors by key."""
    bad: dict[str, Exception] = {}
    keys = list(todo)
    batches = [keys[i : i + settings.batch_size] for i in range(0, len(keys), settings.batch_size)]
    with ThreadPoolExecutor(1) as pool:
        decoding = (
            [pool.submit(_decode, [todo[k] for k in batches[0]], settings)] if batches else []
        )
        for number, batch in enumerate(progress(batches)):
            decoded = decoding.pop().result()
            if number + 1 < len(batches):
                following = [todo[k] for k in batches[number + 1]]
                decoding.append(pool.submit(_decode, following, settings))
            bad |= {k: d for k, d in zip(batch, decoded, strict=True) if isinstance(d, Exception)}
            good = {k: d for k, d in zip(batch, decoded, strict=True) if isinstance(d, Tensor)}
            if good:
                latents = encode_frames(vae, torch.stack(list(good.values())))
                for key, value in zip(good, latents, strict=True):
                    cache.write("latents", key, {"latents": value.to(torch.bfloat16).cpu()})
    return bad


def _decode(paths: Sequence[Path], settings: EncodeSettings) -> list[Tensor | Exception]:
    """Frames (3, T, H, W) in [-1, 1] of each file, or why it cannot be used."""
    frames: list[Tensor | Exception] = []
    for path in paths:
        try:
            pixels, _ = video.read_frames(path, settings.num_frames)
            pixels = video.fit(pixels, settings.height, settings.width, settings.fit)
            frames.append(video.to_signed(pixels))
        except video.VideoError as error:
            frames.append(error)
    return frames


@torch.no_grad()
def encode_frames(vae: VideoVAE, frames: Tensor) -> Tensor:
    """Frames (B, 3, T, H, W) -> latents, on the VAE's device; ValueError if they are not finite."""
    device = next((p.device for p in vae.parameters()), torch.device("cpu"))
    latents = vae.encode(frames.to(device))
    if not torch.isfinite(latents).all():
        raise ValueError("the VAE gave latents that are not finite; encode in float32 (model.vae).")
    return latents
