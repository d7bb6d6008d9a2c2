"""What the page asks for is looked at, drawn and made here. Knows no widget."""

import base64
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pusa.data import video
from pusa.data.hashing import file_digest
from pusa.demo.conditions import Row, span_of, where
from pusa.demo.form import Form, Order, command, setting_words, words
from pusa.pipelines.loras import place_loras
from pusa.pipelines.media import open_medium
from pusa.pipelines.placements import Placement, multipliers_of
from pusa.pipelines.positions import Timing
from pusa.pipelines.produce import plan, produce
from pusa.pipelines.schedule import schedule_of
from pusa.pipelines.schedule_report import as_picture
from pusa.pipelines.studio import Studio
from pusa.pipelines.tasks import Task

log = logging.getLogger(__name__)
THUMBNAIL = 96  # pixels of its longer side


@dataclass(frozen=True)
class Preset:
    """A task of configs/task; about: what its file says of it."""

    task: Task
    about: str


@dataclass(frozen=True)
class Look:
    """What a form comes to before it is made. timeline: for timeline.js; picture: the sigma plan,
    None where there is none; text: what would be printed, "" if it cannot be made; command: the
    same in a shell; error: why it cannot be."""

    timeline: dict[str, Any]
    picture: Image.Image | None
    text: str = ""
    command: str = ""
    error: str = ""


class Stopped(Exception):
    """A user does not want the video any more."""


class Workshop:
    """One model, a folder of videos, uploads in its media/. Users of it are served in turn.

    read: arguments of `pusa generate` -> what they come to, ValueError for what is refused; it adds
    `fixed` ones, the same for all videos.
    """

    def __init__(
        self,
        read: Callable[[Sequence[str]], Order],
        presets: Mapping[str, Preset],
        folder: Path,
        fixed: Sequence[str] = (),
    ):
        self.read, self.presets, self.folder, self.fixed = read, presets, folder, tuple(fixed)
        self._studio: tuple[tuple, Studio] | None = None
        self._working, self._stopping = threading.Lock(), set[str]()

    def keep(self, path: str) -> str:
        """Copy an upload to where its videos' sidecars find it again; returns its name there.

        The same bytes are kept once. The name is made fit for the language of conditions.
        """
        source, media = Path(path), self.folder / "media"
        media.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w-]+", "_", source.stem).strip("_-") or "upload"
        for name in (stem, f"{stem}_{file_digest(path)[:8]}"):
            target = media / f"{name}{source.suffix.lower()}"
            if not target.exists():
                shutil.copyfile(source, target)
                break
            if file_digest(target) == file_digest(path):
                break
        return target.name

    def paths(self, names: Sequence[str]) -> dict[str, str]:
        return {name: str(self.folder / "media" / name) for name in names}

    def look(self, form: Form, names: Sequence[str]) -> Look:
        """Check and draw. Errors are told in the result; nothing is loaded.

        names: of this user's uploads, in order.
        """
        files, placements = self.paths(names), []
        timeline: dict[str, Any] = {"num_frames": 0, "groups": [], "blocks": []}
        picture = None
        try:
            order = self.read(["--prompt=", *setting_words(form)])
            shape = order.model.latent_shape(form.num_frames, form.height, form.width)
            timing = Timing(order.model.spec, form.num_frames, form.fps)
            timeline |= frames_of(timing, shape[1])
            timeline["blocks"] = blocks(form.rows, [], files, timing)
            lengths = {
                name: open_medium(path, form.fps, form.pace).num_frames
                for name, path in files.items()
            }
            placements = where(form.rows, lengths, timing)
            timeline["blocks"] = blocks(form.rows, placements, files, timing)
            given = multipliers_of(placements)
            picture = as_picture(schedule_of(order.model, order.sampler, given, form.num_frames))
            arguments = words(form, self.presets[form.task].task, files, timing)
            order = self.read(arguments)
            text = plan(order.model, order.what).text()
        except (ValueError, OSError) as error:
            return Look(timeline, picture, error=_explained(error))
        return Look(timeline, picture, text, command([*self.fixed, *arguments, "--output=out.mp4"]))

    def make(
        self, form: Form, names: Sequence[str], user: str, tell: Callable[[int, int], None]
    ) -> Path:
        """Make the video; returns its path, its sidecar is beside it. One at a time.

        tell: called with the step that is begun and their number. ValueError and OSError as of
        `produce`; `Stopped` once `stop` is called for this user.
        """
        timing = Timing(self.read(["--prompt="]).model.spec, form.num_frames, form.fps)
        arguments = words(form, self.presets[form.task].task, self.paths(names), timing)
        with self._working:
            self._stopping.discard(user)
            order = self.read([*arguments, f"--output={self._free_name()}"])
            return produce(
                order.model, order.sampler, order.what, order.recipe, None,
                lambda steps: self._watched(steps, user, tell), order.memory, self._ready(order),
            )  # fmt: skip

    def stop(self, user: str) -> None:
        self._stopping.add(user)

    def _ready(self, order: Order) -> Studio:
        """The studio there is, or a new one in its place where LoRAs or memory have changed."""
        what = order.what
        key = (what.lora, str(what.strength), order.memory)
        if self._studio is None or self._studio[0] != key:
            loras = place_loras(what.lora, order.model.experts(), what.strength)
            self._studio = None  # the old one's memory is free before the new one needs it
            self._studio = key, Studio(order.model, loras, order.memory)
        return self._studio[1]

    def _watched(
        self, steps: Iterable, user: str, tell: Callable[[int, int], None]
    ) -> Iterator[Any]:
        steps = list(steps)
        for i, step in enumerate(steps):
            if user in self._stopping:
                raise Stopped
            tell(i, len(steps))
            yield step
        tell(len(steps), len(steps))

    def _free_name(self) -> Path:
        """By the time, so that names are in order; no video is written over."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = name = time.strftime("%Y%m%d-%H%M%S")
        number = 1
        while (path := self.folder / f"{name}.mp4").exists():
            number += 1
            name = f"{stem}-{number}"
        return path


def frames_of(timing: Timing, num_latents: int) -> dict[str, Any]:
    """The timeline's ground: frames, their rate, and which of them go into one latent frame."""
    groups = [timing.spec.pixel_frames(k) for k in range(num_latents)]
    return {
        "num_frames": timing.num_frames, "fps": timing.fps,
        "groups": [[group[0], group[-1]] for group in groups],
    }  # fmt: skip


def blocks(
    rows: Sequence[Row], placements: Sequence[Placement], files: Mapping[str, str], timing: Timing
) -> list[dict[str, Any]]:
    """The timeline's blocks, one for each row that has a position: where its placement is or, while
    there is none, what the position names."""
    result = []
    for i, row in enumerate(rows):
        span = span_of(row, timing)
        if span is None:
            continue
        first, last = span.first, span.last
        if placements and not (span.point and placements[i].is_picture):
            covered = timing.frames_of(placements[i].latents)
            first, last = covered[0], covered[-1]
        result.append({
            "row": i, "first": first, "last": last, "file": row.file,
            "multipliers": row.multipliers,
            "picture": thumbnail(files[row.file]) if row.file in files else "",
        })  # fmt: skip
    return result


@lru_cache(maxsize=256)
def thumbnail(path: str) -> str:
    """The first frame of an image or clip, small, as a data: address; "" if there is none to see.

    Uploads are kept by content, so that a path always shows the same.
    """
    try:
        frame = video.read_frames(path, 1)[0][0]
    except (ValueError, OSError):
        return ""
    picture = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _explained(error: Exception) -> str:
    return str(error).strip() or repr(error)
