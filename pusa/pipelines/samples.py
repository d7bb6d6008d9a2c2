"""Which samples a manifest makes: of every clip the frames, the bucket and the keys of its tensors.
Decodes nothing but what the probe needs; encodes nothing."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from pusa.data import video
from pusa.data.cache import Entry
from pusa.data.clips import Clip
from pusa.data.facts import Facts
from pusa.data.geometry import FITS, Bucket, choose_bucket
from pusa.data.hashing import content_key
from pusa.data.media import Media
from pusa.data.timeline import Chosen, Where, choose_frames, num_windows, rate
from pusa.rng import generator_for
from pusa.types import LatentSpec

ON_BAD_CLIP = ("stop", "skip")
WHERE = ("first", "middle", "random", "windows")


@dataclass(frozen=True)
class EncodeSettings:
    """What the latents of a clip depend on besides its pixels.

    num_frames (4k+1), height, width in pixels. fps: the rate the model knows, to which clips are
    resampled by time; None takes frames as they come. max_stretch: a rate that differs by no more
    is taken frame by frame. where: "first", "middle", "random" (counted from seed) or "windows",
    one sample every `stride` frames. fit: crop, stretch or pad. buckets: (num_frames, height,
    width) to choose from by what a clip can fill; empty: the one size. on_bad_clip: "stop" ends
    with an error after all good clips are cached, "skip" goes on without the bad ones. batch_size:
    of the VAE; num_workers: decoding threads.
    """

    num_frames: int
    height: int
    width: int
    fps: float | None = None
    max_stretch: float = 0.05
    where: Literal["first", "middle", "random", "windows"] = "first"
    stride: int | None = None
    seed: int = 0
    fit: str = "crop"
    buckets: tuple[Bucket, ...] = ()
    on_bad_clip: str = "stop"
    batch_size: int = 1
    num_workers: int = 2

    def __post_init__(self):
        object.__setattr__(self, "buckets", tuple(Bucket(*_numbers(b)) for b in self.buckets))
        for name, known in (("on_bad_clip", ON_BAD_CLIP), ("fit", FITS), ("where", WHERE)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}."
                )
        for name in ("batch_size", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"encode.{name} must be at least 1, got {getattr(self, name)}.")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"encode.stride must be at least 1, got {self.stride}.")

    def sizes(self) -> tuple[Bucket, ...]:
        return self.buckets or (Bucket(self.num_frames, self.height, self.width),)

    @property
    def look(self) -> str:
        """What decides which pixels are encoded."""
        sizes = ",".join(f"{b.num_frames}x{b.height}x{b.width}" for b in self.sizes())
        rate = f"{self.fps}/{self.max_stretch}" if self.fps else "as they come"
        return f"{sizes}/{self.fit}/{rate}/{self.where}/{self.stride}/{self.seed}"


def _numbers(bucket) -> tuple[int, int, int]:
    if isinstance(bucket, Bucket):
        return bucket.num_frames, bucket.height, bucket.width
    if len(bucket) != 3:
        raise ValueError(f"bucket {list(bucket)} is not [num_frames, height, width].")
    return tuple(int(number) for number in bucket)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Sample:
    """One sample to be encoded: which frames of which clip, at which size, and where it goes."""

    clip: Clip
    probe: video.Probe
    chosen: Chosen
    size: Bucket
    entry: Entry


@dataclass(frozen=True)
class Keys:
    """What the keys of cached tensors contain of the encoders: fingerprints and the text length."""

    vae: str
    text: str
    text_len: int

    def latents(self, facts: Facts, frames: Sequence[int], size: Bucket, fit: str) -> str:
        reader = facts.probe.key if facts.probe else ""
        return content_key(facts.digest, *frames, size.height, size.width, fit, reader, self.vae)

    def caption(self, caption: str) -> str:
        return content_key(caption, self.text, self.text_len)


def plan_samples(
    clips: Sequence[Clip], look_up: Callable[[Media], Facts], settings: EncodeSettings,
    spec: LatentSpec, keys: Keys, progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[list[Sample], dict[str, str]]:  # fmt: skip
    """The samples of all usable clips, in the manifest's order, and why others cannot be used, by
    clip. look_up (FactBook.of) is called in threads: it probes what is not known."""
    for size in settings.sizes():
        spec.num_latent_frames(size.num_frames)
        spec.latent_size(size.height, size.width)
    samples: list[Sample] = []
    bad: dict[str, str] = {}
    with ThreadPoolExecutor(settings.num_workers) as pool:
        every_facts = pool.map(lambda clip: look_up(clip.media), clips)
        for clip, facts in zip(progress(clips), every_facts, strict=True):
            try:
                if facts.probe is None:
                    raise video.VideoError(facts.fault)
                samples += _of_clip(clip, facts, facts.probe, settings, spec, keys)
            except video.VideoError as error:
                bad[clip.name] = str(error)
    return samples, bad


def _of_clip(
    clip: Clip, facts: Facts, probe: video.Probe, settings: EncodeSettings, spec: LatentSpec,
    keys: Keys,
) -> list[Sample]:  # fmt: skip
    samples = []
    for number, (size, chosen) in enumerate(choose(clip, facts.digest, probe, settings)):
        shape = (spec.channels, spec.num_latent_frames(size.num_frames),
                 *spec.latent_size(size.height, size.width))  # fmt: skip
        name = clip.name if settings.where != "windows" else f"{clip.name}#{number}"
        entry = Entry(
            name, clip.caption, keys.latents(facts, chosen.indices, size, settings.fit),
            keys.caption(clip.caption), shape,
        )  # fmt: skip
        samples.append(Sample(clip, probe, chosen, size, entry))
    return samples


def choose(
    clip: Clip, digest: str, probe: video.Probe, settings: EncodeSettings
) -> list[tuple[Bucket, Chosen]]:
    """The samples of one clip: its bucket, and the frames of each of its windows.

    VideoError if it is too short for every bucket, or too slow for the model's rate.
    """
    times, stride = probe.timestamps, settings.stride
    fps = settings.fps or rate(times) or 1.0
    stretch = settings.max_stretch
    lengths = sorted({size.num_frames for size in settings.sizes()})
    filled = [n for n in lengths if num_windows(times, n, fps, stride, stretch)]
    if not filled:  # raises with what the clip has and needs
        choose_frames(times, lengths[0], fps, max_stretch=stretch, name=clip.media)
    size = choose_bucket(max(filled), probe.height, probe.width, settings.sizes())
    assert size is not None, "a filled bucket is among them"

    def chosen(where: Where) -> tuple[Bucket, Chosen]:
        generator = generator_for(settings.seed, "data/clip", int(digest, 16) % 2**62)
        return size, choose_frames(
            times, size.num_frames, fps, where, generator, stretch, stride=stride, name=clip.media
        )

    if settings.where == "windows":
        count = num_windows(times, size.num_frames, fps, stride, stretch)
        return [chosen(("window", i)) for i in range(count)]
    return [chosen(settings.where)]


def table(samples: Sequence[Sample], bad: dict[str, str]) -> str:
    """How many samples fall into which bucket, and how many clips are dropped."""
    counts = Counter(sample.size for sample in samples)
    lines = ["frames x height x width   samples"]
    for size, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        lines.append(f"{f'{size.num_frames} x {size.height} x {size.width}':<24} {count:8,d}")
    lines.append(f"{'dropped clips':<24} {len(bad):8,d}")
    other = [s.chosen.factor for s in samples if abs(s.chosen.factor - 1) > 1e-3]
    if other:
        lines.append(
            f"{len(other)} samples are taken frame by frame at another rate than the model's: they "
            f"play {min(other):.3f} to {max(other):.3f} times as fast as in reality"
        )
    return "\n".join(lines)
