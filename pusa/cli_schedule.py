"""`pusa schedule`: what a sampler will do, drawn before it does."""

import argparse
import logging
import os
import re
import shutil
import sys

from omegaconf import DictConfig, OmegaConf

from pusa import entry

log = logging.getLogger(__name__)
_POSITION = re.compile(r"(?P<position>(?:(?:latent|frame):)?[^:=]+)(?P<multipliers>:[0-9.,]+)?")


def add_commands(commands) -> None:
    schedule = commands.add_parser(
        "schedule",
        help="draw the noise level of every frame at every step; nothing is loaded",
        description="The sampler's plan as a table: a row for each call of the network, the "
        "model's timestep of every latent frame, the pixel frames these stand for, the expert at "
        "work. No file of the model is needed.",
    )
    schedule.add_argument(
        "--model", default="wan_tiny", help="a name in configs/model (%(default)s)"
    )
    schedule.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override any config key, as sampler=unipc; may be repeated",
    )  # fmt: skip
    schedule.add_argument(
        "--at", action="append", default=[], metavar="POSITION[:MULTIPLIER,...]",
        help="a condition as of `pusa generate`, with or without its file; may be repeated",
    )  # fmt: skip
    schedule.add_argument("--task", metavar="NAME", help="a task of configs/task")
    schedule.add_argument(
        "--multipliers", metavar="M,M,...", type=numbers, help="noise multipliers of the --task"
    )
    schedule.add_argument(
        "--overlap", type=int, metavar="FRAMES", help="frames (4k+1) that a --task goes on from"
    )
    schedule.add_argument("--sampler", metavar="NAME", help="one of configs/sampler")
    schedule.add_argument("--steps", type=int, help="sampling steps")
    schedule.add_argument("--num-frames", type=int, help="pixel frames; default: the model's")
    add_plan(schedule)
    schedule.add_argument("--output", "-o", metavar="FILE", help="draw it as a .png or .html, too")
    schedule.set_defaults(run=_schedule)


def numbers(text: str) -> list[float]:
    """`0.2,0.5`, as argparse reads it."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between") from None


def add_plan(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--plan", metavar="FILE",
        help="noise levels of all latent frames: a .csv or .json with a row for each step and one "
        "of zeros (docs/tasks.md)",
    )  # fmt: skip


def set_plan(cfg: DictConfig, path: str) -> None:
    """Make the matrix in a file the sampler's plan, with as many steps as it has."""
    from pusa.pipelines.schedule import read_matrix

    arguments = read_matrix(path)
    rule = {"_target_": "pusa.diffusion.plans.Matrix", **arguments}
    OmegaConf.update(cfg, "sampler.plan", rule, merge=False, force_add=True)
    OmegaConf.update(cfg, "sampler.num_steps", len(arguments["rows"]) - 1)


def _schedule(options: argparse.Namespace) -> None:
    from pusa.cli import compose_config
    from pusa.cli_generate import change_task
    from pusa.pipelines.placements import multipliers_of, place_unseen
    from pusa.pipelines.positions import Timing
    from pusa.pipelines.schedule import schedule_of
    from pusa.pipelines.schedule_report import as_text, write_report
    from pusa.pipelines.tasks import parse_given

    groups = {"task": options.task, "sampler": options.sampler}
    chosen = [f"{group}={name}" for group, name in groups.items() if name is not None]
    cfg = compose_config("generate", [f"model={options.model}", *chosen, *options.overrides])
    if options.plan is not None:
        set_plan(cfg, options.plan)
    change_task(cfg, options.overlap, options.multipliers, seam=None)
    if options.steps is not None:
        cfg.sampler.num_steps = options.steps
    model = entry.build(cfg.model)
    num_frames = model.num_frames if options.num_frames is None else options.num_frames
    rows = [parse_given(_with_file(at)) for at in options.at]
    timing = Timing(model.spec, num_frames, cfg.fps)
    given = multipliers_of(place_unseen(entry.build(cfg.task), timing, rows))
    schedule = schedule_of(model, entry.build(cfg.sampler), given, num_frames)
    if options.output is not None:
        write_report(schedule, options.output)
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    log.info("%s", as_text(schedule, shutil.get_terminal_size((120, 24)).columns, coloured))
    if options.output is not None:
        log.info("wrote %s", options.output)


def _with_file(at: str) -> str:
    """A condition without a file, as one of `pusa generate`: what is in the file is not needed."""
    match = _POSITION.fullmatch(at.strip())
    if match is None:
        return at
    return f"{match['position']}=FILE{match['multipliers'] or ''}"
