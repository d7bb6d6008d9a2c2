"""What the page asks for, as the words of a `pusa generate` command: one way of making videos."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pusa.demo.conditions import Row, condition_words
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.positions import Timing
from pusa.pipelines.produce import Description
from pusa.pipelines.studio import Memory
from pusa.pipelines.tasks import Task

LINE = 72  # characters of a command's line


@dataclass(frozen=True)
class Form:
    """The values of the page's fields. task: the preset that filled the rows; prompt: a line for
    each generation where there are several (`chain`); strength: one number for each network."""

    prompt: str
    task: str
    rows: tuple[Row, ...]
    num_frames: int
    height: int
    width: int
    fps: float
    seed: int
    sampler: str
    steps: int
    guidance: float
    memory: str
    chain: int = 0
    negative_prompt: str = ""
    fit: str = "crop"
    pace: str = "time"
    loras: tuple[str, ...] = ()
    strength: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Order:
    """What a command comes to: everything that `produce` takes. recipe: for the sidecar."""

    model: Model
    sampler: Sampler
    memory: Memory
    what: Description
    recipe: Mapping[str, Any]


def words(form: Form, task: Task, files: Mapping[str, str], timing: Timing) -> list[str]:
    """Arguments of `pusa generate` but for the model and the output.

    files: name -> path of the uploads. ValueError for a condition that the language refuses.
    """
    lines = form.prompt.splitlines() if form.chain else [form.prompt]
    result = [f"--prompt={line.strip()}" for line in lines or [""]]
    result += condition_words(task, form.rows, files, timing)
    result += setting_words(form)
    if form.negative_prompt:
        result.append(f"--negative-prompt={form.negative_prompt}")
    if form.chain:
        result.append(f"--chain={form.chain}")
    for lora in form.loras:
        result.append(f"--lora={lora}")
    if form.loras:
        result.append(f"--strength={_strength(form.strength)}")
    return result


def setting_words(form: Form) -> list[str]:
    """Those that decide the schedule, and hold whatever is given."""
    return [
        f"--num-frames={form.num_frames}", f"--height={form.height}", f"--width={form.width}",
        f"--fps={form.fps:g}", f"--seed={form.seed}", f"--sampler={form.sampler}",
        f"--steps={form.steps}", f"--guidance={form.guidance:g}", f"--memory={form.memory}",
        f"--fit={form.fit}", f"--pace={form.pace}",
    ]  # fmt: skip


def command(arguments: Sequence[str]) -> str:
    """As it is typed in a shell, in lines that a page has room for."""
    lines = ["pusa generate"]
    for argument in map(shlex.quote, arguments):
        if len(lines[-1]) + len(argument) < LINE:
            lines[-1] += f" {argument}"
        else:
            lines.append(f"    {argument}")
    return " \\\n".join(lines)


def _strength(strengths: Sequence[float]) -> str:
    if len(strengths) == 1:
        return f"{strengths[0]:g}"
    return f"high={strengths[0]:g},low={strengths[1]:g}"
