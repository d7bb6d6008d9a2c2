"""One video from one description, with a sidecar that makes it again bit for bit."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pusa.atomic import replacing
from pusa.data import video
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Request, Sampler
from pusa.pipelines.loras import LORA_PATHS, Strength, choose_path, place_loras
from pusa.pipelines.media import Medium, Shown, open_medium, read_given, shown
from pusa.pipelines.placements import Placement, mapping, multipliers_of, place
from pusa.pipelines.positions import Timing
from pusa.pipelines.sequence import Chain, assemble
from pusa.pipelines.sidecar import digest, is_sidecar, write_sidecar
from pusa.pipelines.studio import Memory, Studio
from pusa.pipelines.tasks import Given, Join, Task, parse_given

log = logging.getLogger(__name__)
SAVED = {"grid": ".png", "latents": ".safetensors"}
GRID_COLUMNS = 8
Bar = Callable[[Iterable], Iterable]


@dataclass(frozen=True)
class Description:
    """What to make: prompts, what is given, size, seed, output.

    prompt: of the first generation and, where the video goes on, of those that follow; the last one
    is that of all others. task, media: a task and its files; at: more conditions, see
    `parse_given`; encode_as: of those that leave it open, see `Given`. fps: of the video, in which
    seconds are counted. fit: crop, stretch or pad; pace: time or frames, see `open_medium`. lora:
    `[EXPERT=]FILE[:STRENGTH]` each, see `place_loras`; strength: a factor for all of them, or one
    per expert; lora_path: see `choose_path`. save: "grid" (a picture of its frames),
    "latents"; crf: of x264, 0 (lossless) to 51.
    """

    prompt: tuple[str, ...]
    seed: int
    num_frames: int
    height: int
    width: int
    fps: float
    output: str
    task: Task = field(default=Task("t2v"))
    media: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    encode_as: str = "auto"
    fit: str = "crop"
    pace: str = "time"
    lora: tuple[str, ...] = ()
    strength: Strength = 1.0
    lora_path: str = "low_rank"
    chain: Chain = field(default=Chain())
    save: tuple[str, ...] = ()
    crf: int = 12

    def __post_init__(self):
        for name in ("prompt", "media", "at", "lora", "save"):
            value = getattr(self, name)
            alone = isinstance(value, str)
            object.__setattr__(self, name, (value,) if alone else tuple(value or ()))
        if not self.prompt:
            raise ValueError("there is no prompt; an empty one is --prompt ''.")
        if not 0 < self.fps < inf:
            raise ValueError(f"fps must be above 0 and finite, got {self.fps}.")
        video.require_quality(self.crf)
        if self.lora_path not in LORA_PATHS:
            raise ValueError(f"lora_path={self.lora_path!r}: use {', '.join(LORA_PATHS)}.")
        for what in self.save:
            if what not in SAVED:
                raise ValueError(f"--save {what}: unknown; use {' or '.join(SAVED)}.")

    def prompt_of(self, generation: int) -> str:
        return self.prompt[min(generation, len(self.prompt) - 1)]


@dataclass(frozen=True)
class Plan:
    """A description with everything looked up and checked, and nothing loaded."""

    what: Description
    timing: Timing
    shape: tuple[int, int, int, int]
    rows: tuple[Given, ...]
    media: Mapping[str, Medium]
    placements: tuple[Placement, ...]

    def ends(self) -> tuple[tuple[Medium, range, range] | None, tuple[Medium, range, range] | None]:
        """What comes before what is generated and what comes behind: the medium, its frames that
        are not generated, and those that are generated, too."""
        join = self.what.task.join or Join()
        return self._end(join.before, at_start=True), self._end(join.after, at_start=False)

    def _end(self, number: int | None, at_start: bool) -> tuple[Medium, range, range] | None:
        if number is None:
            return None
        edge = 0 if at_start else self.timing.num_latents - 1
        for row, placement in zip(self.rows, self.placements, strict=True):
            if row.medium == number and row in self.rows[: len(self.what.task.given)]:
                medium, used = self.media[row.file], placement.frames
                if placement.latents[0 if at_start else -1] != edge:
                    break
                if placement.is_picture and len(placement.latents) > 1:
                    raise ValueError(
                        f"{row.file}: is a single picture; task {self.what.task.name!r} goes on "
                        "from a clip (from a picture: --task i2v)."
                    )
                shared = range(used[0], used[-1] + 1)
                if at_start:
                    return medium, range(shared.start), shared
                return medium, range(shared.stop, medium.num_frames), shared
        side = "first" if at_start else "last"
        raise ValueError(
            f"task {self.what.task.name!r}: medium {number} is to be joined, but does not give the "
            f"{side} frames of what is generated."
        )

    def num_tokens(self) -> int:
        """Of one generation, as the networks see it: patches of 2 x 2 latents."""
        _, frames, height, width = self.shape
        return frames * (height // 2) * (width // 2)

    def num_frames(self) -> int:
        """Frames of the finished video."""
        ends = sum(len(end[1]) for end in self.ends() if end is not None)
        return self.what.chain.num_frames(self.timing.num_frames) + ends

    def text(self) -> str:
        """What every run prints: which frames are given, and how long the video becomes."""
        lines = [mapping(self.placements, self.timing)] if self.placements else []
        lines += [f"{m.file}: {m.note}." for m in self.media.values() if m.note]
        before, behind = self.ends()
        if before is not None:
            lines.append(f"{before[0].file}: its {len(before[1])} frames before these come first.")
        if behind is not None:
            lines.append(f"{behind[0].file}: its other {len(behind[1])} frames follow.")
        total, fps = self.num_frames(), self.timing.fps
        more = total - self.timing.num_frames
        lines.append(
            f"{total} frames, {total / fps:.4g} s at {fps:g} per second, "
            f"{self.what.width}x{self.what.height}"
            + (f" ({self.timing.num_frames} of them in one generation)" if more else "")
        )
        return "\n".join(lines)


def plan(model: Model, what: Description) -> Plan:
    """Look everything up. ValueError, with the remedy, for whatever cannot be made."""
    shape = model.latent_shape(what.num_frames, what.height, what.width)
    timing = Timing(model.spec, what.num_frames, what.fps)
    what = replace(what, chain=what.chain.for_spec(model.spec))
    rows = (*what.task.with_media(what.media), *map(parse_given, what.at))
    files = dict.fromkeys((*(row.file for row in rows), *what.media))
    media = {file: open_medium(file, what.fps, what.pace) for file in files}
    lengths = {file: medium.num_frames for file, medium in media.items()}
    placements = [
        replace(placement, note="") if _is_joined(what.task, placement.given) else placement
        for placement in place(rows, timing, lengths, what.encode_as)
    ]
    made = Plan(what, timing, shape, rows, media, tuple(placements))
    made.ends()
    if what.task.join is not None and len(multipliers_of(placements)) == timing.num_latents:
        raise ValueError(
            f"task {what.task.name!r}: all {what.num_frames} frames are given by what is joined, "
            "which leaves nothing new; raise --num-frames or lower --overlap."
        )
    _check_chain(what, timing)
    return made


def _is_joined(task: Task, row: Given) -> bool:
    """Whether what a row leaves out of its medium follows it in the finished video."""
    return task.join is not None and row.medium == task.join.after


def _check_chain(what: Description, timing: Timing) -> None:
    chain = what.chain
    if not chain.segments:
        if len(what.prompt) > 1:
            raise ValueError("several prompts are for a video that goes on; add --chain N.")
        return
    if what.task.join is not None and what.task.join.after is not None:
        raise ValueError(
            f"task {what.task.name!r} ends in a clip, so nothing can go on from its end; leave out "
            "--chain, or raise --num-frames."
        )
    latents = timing.spec.num_latent_frames(chain.overlap)
    if latents >= timing.num_latents:
        raise ValueError(
            f"an overlap of {chain.overlap} leaves nothing new of {timing.num_frames} frames; "
            f"use {timing.spec.num_pixel_frames(timing.num_latents // 2)} (--overlap)."
        )
    if len(chain.multipliers) > latents:
        raise ValueError(
            f"chain.multipliers has {len(chain.multipliers)} values, an overlap of {chain.overlap} "
            f"frames is {latents} latent frames."
        )


def produce(
    model: Model,
    sampler: Sampler,
    what: Description,
    recipe: Mapping,
    expected: Mapping[str, str] | None = None,
    progress: Bar = iter,
    memory: Memory = Memory(),  # noqa: B008 - frozen
    studio: Studio | None = None,
) -> Path:
    """Write the video and `<output>.json`; returns the video's path.

    All input is checked before any weight of the model is read. recipe: the configuration to keep
    in the sidecar. expected: digests of a sidecar's inputs; ValueError if a file has changed since.
    studio: with the model and its LoRAs, if there is one already.
    """
    planned = plan(model, what)
    if studio is None:
        studio = Studio(model, place_loras(what.lora, model.experts(), what.strength), memory)
    output = _writable(what.output)
    model.ensure_files()
    digests = _input_digests(planned, studio)
    _compare(digests, expected or digests)
    sidecar = output.with_suffix(".json")
    _refuse_to_lose([output, *saved_files(what)], sidecar, digests)
    log.info("%s", planned.text())
    if planned.placements and not studio.loras:
        log.info(
            "no LoRA: a base that was not trained for it follows given frames poorly (--lora)."
        )
    tokens, calls = planned.num_tokens(), _calls(planned, sampler)
    chosen = choose_path(what.lora_path, studio.loras, tokens, calls, studio.weights_wait)
    studio.merge_loras(chosen == "merged")
    latents: list[Tensor] = []
    frames, pictures = _frames(planned, sampler, studio, latents, progress), []
    frames = _then_gone(frames, sidecar)
    if "grid" in what.save:
        frames = _watched(frames, planned.num_frames(), pictures)
    video.write_video(output, frames, what.fps, what.crf)
    if pictures:
        video.write_image(output.with_suffix(".png"), torch.cat(pictures, dim=-1))
    if "latents" in what.save:
        named = {f"latents.{i}": value[0].contiguous() for i, value in enumerate(latents)}
        with replacing(output.with_suffix(".safetensors")) as partial:
            partial.write_bytes(save(named))
    given = [line.rstrip() for line in planned.text().splitlines()]
    write_sidecar(output, recipe, digests, given, planned.num_frames(), chosen)
    return output


def _calls(planned: Plan, sampler: Sampler) -> int:
    """How often networks are called for the whole video, at the most."""
    passes = (2 if sampler.guidance_scale != 1 else 1) * (2 if sampler.method == "heun" else 1)
    return sampler.num_steps * passes * (planned.what.chain.segments + 1)


def saved_files(what: Description) -> list[Path]:
    """What `save` asks for, beside the video."""
    return [Path(what.output).with_suffix(SAVED[name]) for name in what.save]


def _refuse_to_lose(written: Sequence[Path], sidecar: Path, read: Iterable[str]) -> None:
    """ValueError if a user's file would be written over: one that the video is made from, or a
    .json that is no sidecar."""
    for path in written:
        if path.exists() and any(path.samefile(file) for file in read):
            raise ValueError(f"{path}: the video is made from this file; choose another --output.")
    if sidecar.exists() and not is_sidecar(sidecar):
        raise ValueError(
            f"{sidecar}: the video's sidecar would be written over this file; choose another "
            "--output."
        )


def _then_gone(frames: Iterator[Tensor], sidecar: Path) -> Iterator[Tensor]:
    """The frames, and no sidecar once all are there: it is never beside another video, nor lost
    with one that could not be made."""
    yield from frames
    sidecar.unlink(missing_ok=True)


def _frames(
    planned: Plan, sampler: Sampler, studio: Studio, kept: list[Tensor], progress: Bar
) -> Iterator[Tensor]:
    """The video's frames (t, 3, H, W) uint8; latents of each generation are put into `kept`."""
    what = planned.what
    size = what.height, what.width, what.fit
    prompts = [what.prompt_of(i) for i in range(what.chain.segments + 1)]
    negative = studio.model.negative_prompt if sampler.guidance_scale != 1 else None
    studio.texts(prompts if negative is None else [*prompts, negative])  # all at one loading

    def generation(number: int, old: Tensor) -> Iterator[Tensor]:
        text = studio.texts([what.prompt_of(number)])[0]
        given = _first(planned) if number == 0 else _following(planned, old)
        purpose = "generate" if number == 0 else f"generate/{number}"
        requests = [Request(text, given, what.seed, purpose)]
        conditioning = studio.condition(requests, planned.shape)
        latents = studio.sample(sampler, conditioning, requests, progress)
        if "latents" in what.save:
            kept.append(latents)
        for piece in studio.frames(latents):
            yield piece[0]

    before, behind = planned.ends()
    none = torch.empty(0)
    earlier = (iter(()), none)
    if before is not None:
        medium, rest, shared = before
        earlier = medium.pieces(rest, *size), medium.read(shared, *size)
    later = (none, iter(()))
    if behind is not None:
        medium, rest, shared = behind
        later = medium.read(shared, *size), medium.pieces(rest, *size)
    seam = what.task.join.seam if what.task.join is not None else "cut"
    return assemble(generation, what.chain, earlier, later, seam)


def _first(planned: Plan) -> tuple[Shown, ...]:
    what = planned.what
    return read_given(
        planned.placements, planned.media, planned.timing, what.height, what.width, what.fit
    )


def _following(planned: Plan, old: Tensor) -> tuple[Shown, ...]:
    """The last frames of what is there begin the next generation."""
    chain = planned.what.chain
    row = Given("0", "what is there", multipliers=chain.multipliers)
    placements = place([row], planned.timing, {row.file: len(old)})
    return shown(placements, {placements[0]: old}, {}, planned.timing)


def _watched(frames: Iterator[Tensor], total: int, pictures: list[Tensor]) -> Iterator[Tensor]:
    """The same frames; some of them, evenly spread, are put into `pictures` on the way."""
    count = min(GRID_COLUMNS, total)
    wanted = {round(i * (total - 1) / max(1, count - 1)) for i in range(count)}
    start = 0
    for piece in frames:
        pictures += [f for i, f in enumerate(piece, start) if i in wanted]
        start += len(piece)
        yield piece


def _writable(output: str) -> Path:
    path = Path(output)
    if path.suffix != ".mp4":
        raise ValueError(f"{output}: the output must end in .mp4.")
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.parent / f".{path.stem}.probe"
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)
    return path


def _input_digests(planned: Plan, studio: Studio) -> dict[str, str]:
    """Content hashes of the files that the video depends on, by path."""
    return {name: digest(name) for name in sorted(planned.media)} | studio.weights_digests()


def _compare(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{name} is not the file that the sidecar was made from (its hash differs)."
            )
