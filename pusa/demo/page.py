"""The page: its fields, and what happens when they change. What it says is made in workshop.py."""

import html
import json
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from pusa.data.geometry import FITS
from pusa.demo.conditions import COLUMNS, as_table, fill, moved, read_table, uploaded
from pusa.demo.files import read_text
from pusa.demo.form import Form, Order
from pusa.demo.gallery import Made, videos_in
from pusa.demo.workshop import Look, Stopped, Workshop
from pusa.pipelines.media import PACES
from pusa.pipelines.positions import Timing

log = logging.getLogger(__name__)
PROGRESS = gr.Progress()  # as a default value it asks Gradio for the request's own
TABLE_HELP = (
    "Drag a block, or move it with the arrow keys; Delete removes it. All of the table can be "
    "edited: a position is a frame (`8`, `-1`, `last`), seconds (`0.5s`), `latent:2` or a range "
    "(`0..12`); multipliers are 0 (kept exactly) to 1 (ignored), one for each latent frame."
)


@dataclass(frozen=True)
class Offer:
    """What can be chosen. order: what the configs say without a wish; loras: files, all chosen at
    first; sampler, memory: those that are."""

    order: Order
    samplers: tuple[str, ...]
    memories: tuple[str, ...]
    loras: tuple[str, ...]
    sampler: str
    memory: str

    @property
    def strengths(self) -> tuple[str, ...]:
        """Of which networks there is a strength to set."""
        experts = self.order.model.experts()
        if len(experts) == 1:
            return ("LoRA strength",)
        return tuple(f"LoRA strength, {expert}-noise expert" for expert in experts)


class Page:
    """Fields and handlers. Handlers take the fields' values by field."""

    def __init__(self, workshop: Workshop, offer: Offer):
        self.workshop, self.offer = workshop, offer
        self.blocks = gr.Blocks(title="pusa", analytics_enabled=False, delete_cache=(3600, 86400))
        with self.blocks:
            self.names = gr.State([])
            self._head()
            with gr.Row():
                with gr.Column(scale=6, min_width=420):
                    self._wishes()
                    self._settings()
                with gr.Column(scale=5, min_width=360):
                    self._results()
            gr.Markdown("Made so far", elem_classes="heading")
            self.gallery = gr.Gallery(
                show_label=False, columns=6, fit_columns=False, height=260, object_fit="contain",
                allow_preview=False, buttons=[], elem_id="gallery",
            )  # fmt: skip
            self._listen()

    def _head(self) -> None:
        model = self.offer.order.model
        gr.HTML(
            "<h1>pusa</h1><p>Every frame has its own noise level, so that any can be given. "
            f"Model: <b>{html.escape(model.name)}</b>, {model.num_frames} frames of "
            f"{model.width}x{model.height}.</p>",
            elem_id="head",
        )

    def _wishes(self) -> None:
        names = list(self.workshop.presets)
        self.prompt = gr.Textbox(
            label="Prompt", lines=2, elem_id="prompt",
            placeholder="a red three moves left over coffee",
            info="Of a chain: a line for each generation, the last one for all that follow.",
        )  # fmt: skip
        self.task = gr.Radio(names, value=names[0], label="Task", elem_id="task")
        self.about = gr.Markdown(self.workshop.presets[names[0]].about, elem_id="about")
        self.files = gr.File(
            label="Images and clips, in the task's order", file_count="multiple", height=150,
            file_types=["image", "video"], elem_id="files",
        )  # fmt: skip
        self.timeline = gr.HTML(
            value=None, html_template="<div class='timeline'></div>", elem_id="timeline",
            css_template=read_text("timeline.css"), js_on_load=read_text("timeline.js"),
            min_height=150,
        )  # fmt: skip
        self.table = gr.Dataframe(
            headers=list(COLUMNS), column_count=len(COLUMNS), type="array", datatype="str",
            interactive=True, label="Conditions", elem_id="table", row_count=1, buttons=[],
            column_widths=["20%", "30%", "16%", "18%", "16%"],
        )  # fmt: skip
        with gr.Row():
            gr.Markdown(TABLE_HELP, elem_id="help")
            self.again = gr.Button("As the task has it", size="sm", scale=0, min_width=150)

    def _settings(self) -> None:
        order, stride = self.offer.order, self.offer.order.model.spec.temporal_stride
        what = order.what
        with gr.Row():
            self.steps = gr.Slider(1, 60, order.sampler.num_steps, step=1, label="Steps")
            self.guidance = gr.Slider(
                1, 12, order.sampler.guidance_scale, step=0.1, label="Guidance"
            )
            self.seed = gr.Number(what.seed, precision=0, minimum=0, label="Seed", min_width=90)
            self.dice = gr.Button("Another seed", size="sm", scale=0, min_width=110)
        self.loras = gr.CheckboxGroup(
            list(self.offer.loras), value=list(self.offer.loras), label="LoRAs",
            visible=bool(self.offer.loras),
        )  # fmt: skip
        with gr.Row():
            self.strengths = [
                gr.Slider(0, 2, 1, step=0.05, label=label, visible=bool(self.offer.loras))
                for label in self.offer.strengths
            ]
        with gr.Accordion("Size, sampler, memory, chaining", open=False):
            with gr.Row():
                self.num_frames = gr.Slider(
                    1,
                    max(161, what.num_frames),
                    what.num_frames,
                    step=stride,
                    label="Frames",
                    min_width=200,
                )
                self.width = gr.Number(what.width, precision=0, label="Width", min_width=80)
                self.height = gr.Number(what.height, precision=0, label="Height", min_width=80)
                self.fps = gr.Number(what.fps, label="fps", min_width=80)
            with gr.Row():
                self.sampler = gr.Dropdown(
                    list(self.offer.samplers), value=self.offer.sampler, label="Sampler"
                )
                self.memory = gr.Dropdown(
                    list(self.offer.memories), value=self.offer.memory, label="Memory"
                )
            with gr.Row():
                self.fit = gr.Dropdown(list(FITS), value=what.fit, label="Images are fitted by")
                self.pace = gr.Dropdown(list(PACES), value=what.pace, label="Clips of another rate")
                self.chain = gr.Slider(0, 8, 0, step=1, label="Chain: generations more")
            self.negative = gr.Textbox(
                label="Negative prompt", placeholder="the model's own", lines=1
            )

    def _results(self) -> None:
        with gr.Row():
            self.go = gr.Button("Generate", variant="primary", elem_id="go")
            self.stop = gr.Button("Stop", scale=0, min_width=90, elem_id="stop")
        self.message = gr.HTML(_note(""), elem_id="message")
        self.video = gr.Video(
            label="Video", autoplay=True, loop=True, height=330, interactive=False, buttons=[],
            elem_id="video",
        )  # fmt: skip
        lines: dict[str, Any] = {
            "lines": 2,
            "max_lines": 14,
            "interactive": False,
            "buttons": ["copy"],
        }
        self.plan = gr.Textbox(label="What is given", elem_classes="lines", elem_id="plan", **lines)
        gr.Markdown("Noise level of each latent frame, step by step", elem_classes="heading")
        self.picture = gr.Image(
            show_label=False, format="png", interactive=False, buttons=[], elem_id="picture"
        )
        self.command = gr.Textbox(
            label="The same as a command", elem_classes="lines", elem_id="command", **lines
        )
        with gr.Accordion("Sidecar of the video shown", open=False):
            self.sidecar = gr.JSON(show_label=False, elem_id="sidecar", max_height=420)

    def _fields(self) -> list[Any]:
        return [
            self.prompt, self.task, self.table, self.names, self.num_frames, self.height,
            self.width, self.fps, self.seed, self.sampler, self.steps, self.guidance, self.memory,
            self.chain, self.negative, self.fit, self.pace, self.loras, *self.strengths,
        ]  # fmt: skip

    def _form(self, values: Mapping[Any, Any]) -> Form:
        """ValueError for a number field that is empty."""
        numbers = {"seed": self.seed, "width": self.width, "height": self.height, "fps": self.fps}
        if missing := [name for name, field in numbers.items() if values[field] is None]:
            raise ValueError(f"{missing[0]} is empty; give a number.")
        return Form(
            values[self.prompt] or "", values[self.task], read_table(values[self.table]),
            int(values[self.num_frames]), int(values[self.height]), int(values[self.width]),
            float(values[self.fps]), int(values[self.seed]), values[self.sampler],
            int(values[self.steps]), float(values[self.guidance]), values[self.memory],
            int(values[self.chain]), values[self.negative] or "", values[self.fit],
            values[self.pace],
            tuple(values[self.loras] or ()), tuple(float(values[s]) for s in self.strengths),
        )  # fmt: skip

    def _listen(self) -> None:
        """Whatever changes the conditions ends in a new look; making a video locks nothing else."""
        fields, seen = set(self._fields()), [self.timeline, self.picture, self.plan, self.command,
                                             self.message]  # fmt: skip
        listen: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        look: dict[str, Any] = {
            "fn": self.look, "inputs": fields, "outputs": seen, "concurrency_limit": 4,
            "trigger_mode": "always_last", **listen,
        }  # fmt: skip
        changing = [field for field in self._fields() if field not in (self.table, self.names,
                    self.task, self.prompt, self.negative)]  # fmt: skip
        gr.on([*(field.change for field in changing), self.table.input, self.prompt.blur,
               self.negative.blur], **look)  # fmt: skip
        table: dict[str, Any] = {"outputs": self.table, **listen}
        events = [
            self.task.change(self.fill, fields, [self.table, self.about], **listen),
            self.again.click(self.fill, fields, [self.table, self.about], **listen),
            self.files.change(self.upload, {*fields, self.files}, [self.names, self.table],
                              **listen),
            self.timeline.move(self.move, fields, **table),
            self.timeline.remove(self.remove, fields, **table),
        ]  # fmt: skip
        for event in events:
            event.then(**look)
        self.sampler.change(self.sampling, self.sampler, [self.steps, self.guidance], **listen)
        self.dice.click(lambda: random.randrange(2**31), None, self.seed, **listen)
        shown = [self.video, self.sidecar, self.gallery, self.message]
        making = self.go.click(
            self.make, fields, shown, concurrency_limit=1, show_progress_on=self.video,
            api_visibility="private",
        )  # fmt: skip
        # What waits in the queue is taken out by Gradio, what runs ends at its next step.
        self.stop.click(self.halt, None, None, queue=False, cancels=[making], **listen)
        self.gallery.select(self.show, None, [self.video, self.sidecar], **listen)
        load = self.blocks.load(self.listed, None, self.gallery, **listen)
        load.then(**look)

    def look(self, values: dict) -> tuple:
        try:
            found = self.workshop.look(self._form(values), values[self.names])
        except ValueError as error:
            found = Look({"num_frames": 0}, None, error=str(error))
        # Each value is another, so that a block that may not stay where it was put goes back.
        timeline = {**found.timeline, "stamp": time.monotonic_ns()}
        return timeline, found.picture, found.text, found.command, _note(found.error)

    def fill(self, values: dict) -> tuple:
        preset = self.workshop.presets[values[self.task]]
        rows = fill(preset.task, values[self.names], self._timing(values))
        return as_table(rows), preset.about

    def upload(self, values: dict) -> tuple:
        paths = values[self.files] or ()
        try:
            names = list(dict.fromkeys(self.workshop.keep(path) for path in paths))
        except OSError as error:
            raise gr.Error(str(error), print_exception=False) from error
        task = self.workshop.presets[values[self.task]].task
        rows, timing = read_table(values[self.table]), self._timing(values)
        return names, as_table(uploaded(rows, values[self.names], names, task, timing))

    def move(self, values: dict, event: gr.EventData) -> list[list[str]]:
        rows = list(read_table(values[self.table]))
        if event.row < len(rows):
            rows[event.row] = moved(rows[event.row], int(event.frame), self._timing(values))
        return as_table(rows)

    def remove(self, values: dict, event: gr.EventData) -> list[list[str]]:
        rows = read_table(values[self.table])
        return as_table([row for i, row in enumerate(rows) if i != event.row])

    def sampling(self, name: str) -> tuple[int, float]:
        sampler = self.workshop.read(["--prompt=", f"--sampler={name}"]).sampler
        return sampler.num_steps, sampler.guidance_scale

    def make(self, values: dict, request: gr.Request, progress: gr.Progress = PROGRESS) -> tuple:
        """Whatever goes wrong is told; video and gallery stay as they are."""
        user = request.session_hash or ""

        def tell(step: int, steps: int) -> None:
            what = "sampling" if step < steps else "decoding and writing"
            progress((step, steps), desc=what, unit="steps")

        progress(0, desc="loading")
        try:
            path = self.workshop.make(self._form(values), values[self.names], user, tell)
        except Stopped:
            return gr.skip(), gr.skip(), gr.skip(), _note("stopped.")
        except (ValueError, OSError) as error:
            return gr.skip(), gr.skip(), gr.skip(), _note(str(error))
        except Exception as error:
            log.exception("a video could not be made")
            return gr.skip(), gr.skip(), gr.skip(), _note(f"{error!r}; the server's log says more.")
        told = f"wrote {path} and its sidecar."
        return str(path), _sidecar(path), self.listed(), _note(told, good=True)

    def halt(self, request: gr.Request) -> None:
        self.workshop.stop(request.session_hash or "")

    def listed(self) -> list[tuple[str, str]]:
        return [(str(made.video), made.caption) for made in self._made()]

    def show(self, event: gr.SelectData) -> tuple:
        """The video that is clicked, found by its name: others may have come since."""
        name = Path(event.value["video"]["path"]).name
        path = self.workshop.folder / name
        return (str(path), _sidecar(path)) if path.is_file() else (gr.skip(), gr.skip())

    def _made(self) -> list[Made]:
        return videos_in(self.workshop.folder)

    def _timing(self, values: Mapping[Any, Any]) -> Timing:
        model = self.offer.order.model
        return Timing(
            model.spec, int(values[self.num_frames]), float(values[self.fps] or model.fps)
        )


def _sidecar(video: Path) -> Any:
    return json.loads(video.with_suffix(".json").read_text("utf-8"))


def _note(text: str, good: bool = False) -> str:
    """A message as a box; none is an empty one."""
    kind = "good" if good else "bad"
    return f"<div class='note {kind}'>{html.escape(text)}</div>" if text else ""
