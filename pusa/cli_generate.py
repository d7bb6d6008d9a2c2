"""`pusa generate`: one video, or a list of them, from prompts, images and clips."""

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pusa import cli_schedule, entry

log = logging.getLogger(__name__)
SIDECAR_TARGETS = (
    "pusa.pipelines.build.Model", "pusa.models.wan_dit.WanDiT", "pusa.models.mochi_dit.MochiDiT",
    "pusa.types.LatentSpec", "pusa.models.tiling.Tiling",
    "pusa.diffusion.flow.FlowMatching", "pusa.pipelines.generate.Sampler",
    "pusa.pipelines.tasks.Task", "pusa.pipelines.sequence.Chain", "pusa.pipelines.studio.Memory",
    "pusa.diffusion.plans.NoisyFirst", "pusa.diffusion.plans.Pyramid",
    "pusa.diffusion.plans.RollingWindow", "pusa.diffusion.plans.Matrix",
    "pusa.pipelines.step_cache.StepCache",
)  # fmt: skip
FIELDS = (
    "prompt", "task", "media", "at", "encode_as", "seed", "num_frames", "height", "width", "fps",
    "fit", "pace", "lora", "strength", "lora_path", "chain", "save", "crf", "output",
)  # fmt: skip
HARMLESS = ("output", "save", "name", "paths")  # no part of what a video is made from
MODEL = "wan_tiny"
_FROM_THE_END = re.compile(r"-\d")
_LORA_HELP = (
    "a LoRA of any format, or the folder of a training run; may be repeated. EXPERT: high, low or "
    "both, on a model of two experts; a file that says which one it is for needs none."
)
_AT_HELP = (
    "a condition, POSITION=FILE[@PART][:MULTIPLIER,...][:ENCODE_AS]; may be repeated. POSITION: a "
    "frame (0, -1, last), seconds (2.5s), latent:K, or a range for a clip (0..3s). PART: which "
    "frames of a clip (@-13..last). MULTIPLIER: 0 keeps a frame exactly, 1 ignores it (default "
    "0.2); one for each latent frame, the last one for all that follow. docs/tasks.md"
)


def bind_positions(words: Sequence[str]) -> list[str]:
    """Words of a command in which a position that begins with a minus is no flag: `--at -1=x.png`
    as `--at=-1=x.png`."""
    bound: list[str] = []
    for word in map(str, words):
        if bound and bound[-1] in ("--at", "--cond_position") and _FROM_THE_END.match(word):
            bound[-1] += f"={word}"
        else:
            bound.append(word)
    return bound


def add_commands(commands) -> None:
    generate = commands.add_parser(
        "generate",
        help="make a video from a prompt, images and clips",
        description="Make a video and a sidecar .json that makes it again bit for bit. Every run "
        "prints which frames of which file stand where.",
    )
    what = generate.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--prompt", action="append", help="repeated: of the generations that --chain adds, in turn"
    )
    what.add_argument("--from", dest="sidecar", metavar="JSON", help="make a sidecar's video again")
    what.add_argument(
        "--jobs", metavar="FILE", help="a .csv or .jsonl of videos to make (docs/tasks.md)"
    )
    _add_given(generate)
    _add_model(generate)
    _add_output(generate)
    _add_upstream(generate)
    generate.set_defaults(run=_generate)


def _add_given(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is given")
    tasks = sorted(path.stem for path in (entry.config_folder() / "task").glob("*.yaml"))
    group.add_argument(
        "--task", nargs="+", metavar=("NAME", "FILE"),
        help=f"a task of configs/task and its images or clips: {', '.join(tasks)}",
    )  # fmt: skip
    group.add_argument("--at", action="append", default=[], help=_AT_HELP)
    group.add_argument(
        "--multipliers",
        metavar="M,M,...",
        type=cli_schedule.numbers,
        help="noise multipliers of the --task",
    )  # fmt: skip
    group.add_argument(
        "--encode-as", choices=("auto", "alone", "repeated", "context"),
        help="how images past the first frame are encoded, where --at does not say so",
    )  # fmt: skip
    group.add_argument("--fit", choices=("crop", "stretch", "pad"), help="how media are fitted")
    group.add_argument(
        "--pace", choices=("time", "frames"),
        help="clips of another frame rate: as fast as in reality (time), or frame by frame",
    )  # fmt: skip
    group.add_argument(
        "--chain", type=int, metavar="N", help="go on from the end, N times more (long videos)"
    )
    group.add_argument(
        "--overlap", type=int, metavar="FRAMES",
        help="frames (4k+1) from which extension, transition and --chain go on (default 13)",
    )  # fmt: skip
    group.add_argument(
        "--seam", choices=("blend", "cut"), help="where pieces overlap: fade over, or cut"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and sampling")
    group.add_argument("--model", default=MODEL, help="a name in configs/model (%(default)s)")
    group.add_argument(
        "--lora", action="append", metavar="[EXPERT=]FILE[:STRENGTH]", help=_LORA_HELP
    )
    group.add_argument(
        "--strength", help="a factor for all LoRAs: 1.4, or high=1.5,low=1.4 (default 1)"
    )
    group.add_argument(
        "--lora-path", choices=("auto", "merged", "low_rank"),
        help="LoRAs merged into the weights as they are loaded, or beside them (low_rank); auto: "
        "what takes less arithmetic (default)",
    )  # fmt: skip
    group.add_argument("--sampler", help="a name in configs/sampler (default euler)")
    group.add_argument("--steps", type=int, help="sampling steps")
    group.add_argument("--guidance", type=float, help="guidance scale; 1 is none")
    group.add_argument("--negative-prompt", help="default: the model's")
    group.add_argument("--seed", type=int)
    cli_schedule.add_plan(group)
    group.add_argument(
        "--memory",
        help="a name in configs/memory: resident, offload, low or stream (default resident)",
    )
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override any config key, as model.dtype=bfloat16; may be repeated",
    )  # fmt: skip


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output", "-o", required=True, help="the .mp4 to write; of --jobs, the folder"
    )
    for name in ("num-frames", "height", "width"):
        group.add_argument(f"--{name}", type=int, help="default: the model's")
    group.add_argument("--fps", type=float, help="frames per second (default: the model's)")
    group.add_argument("--crf", type=int, help="x264 quality, 0 (lossless) to 51 (default 12)")
    group.add_argument(
        "--save", action="append", choices=("grid", "latents"),
        help="besides: a .png of some frames, the latents as .safetensors; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--part", metavar="I/N", help="of --jobs: one part of N; array: that of a SLURM array task"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="of --jobs: make what was made otherwise again"
    )


def _add_upstream(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the public Pusa code's flags, in latent frames")
    group.add_argument("--cond_position", metavar="K,K,...")
    group.add_argument("--noise_multipliers", metavar="M,M,...", type=cli_schedule.numbers)
    group.add_argument("--image_paths", nargs="+", metavar="FILE")
    group.add_argument("--video_path", metavar="FILE")


def _generate(options: argparse.Namespace) -> None:
    if options.sidecar is not None:
        _again(options)
        return
    if options.jobs is not None:
        from pusa.cli_jobs import run_jobs

        run_jobs(options)
        return
    if options.part is not None or options.overwrite:
        raise ValueError("--part and --overwrite are for --jobs.")
    cfg = compose(options)
    cfg.output = options.output
    path = make(cfg)
    log.info("wrote %s and %s", path, path.with_suffix(".json"))


def make(cfg: DictConfig, expected: dict[str, str] | None = None, studio: Any = None) -> Path:
    """Produce the video of a whole config; expected, studio: see `produce`."""
    from pusa.pipelines.produce import produce

    return produce(
        entry.build(cfg.model), entry.build(cfg.sampler), describe(cfg), recipe_of(cfg), expected,
        entry.progress_bars("sample"), entry.build(cfg.memory), studio,
    )  # fmt: skip


def describe(cfg: DictConfig) -> Any:
    """The `Description` of a config."""
    from pusa.pipelines.produce import Description

    plain = entry.plain_config(cfg)
    if OmegaConf.is_missing(cfg, "prompt"):
        raise ValueError("there is no prompt; an empty one is --prompt ''.")
    values = {key: plain[key] for key in FIELDS}
    return Description(**values | {"task": entry.build(cfg.task), "chain": entry.build(cfg.chain)})


def recipe_of(cfg: DictConfig) -> dict:
    """What decides how the video looks; it goes into the sidecar."""
    plain = entry.plain_config(cfg)
    return {key: value for key, value in plain.items() if key not in HARMLESS}


def compose(options: argparse.Namespace) -> DictConfig:
    """The config that the flags ask for."""
    from pusa.cli import compose_config
    from pusa.pipelines.loras import parse_strength

    groups = {"sampler": options.sampler, "memory": options.memory}
    if options.task is not None:
        groups["task"] = options.task[0]
    chosen = [f"{group}={name}" for group, name in groups.items() if name is not None]
    cfg = compose_config("generate", [f"model={options.model}", *chosen, *options.overrides])
    if options.plan is not None:
        cli_schedule.set_plan(cfg, options.plan)
    flags = {
        "prompt": options.prompt, "media": options.task and options.task[1:],
        "at": [*options.at, *_upstream_rows(options)] or None,
        "encode_as": options.encode_as, "fit": options.fit, "pace": options.pace,
        "chain.segments": options.chain, "chain.seam": options.seam,
        "lora": options.lora, "lora_path": options.lora_path,
        "strength": None if options.strength is None else parse_strength(options.strength),
        "seed": options.seed, "model.negative_prompt": options.negative_prompt,
        "num_frames": options.num_frames, "height": options.height, "width": options.width,
        "fps": options.fps, "crf": options.crf, "save": options.save,
        "sampler.num_steps": options.steps, "sampler.guidance_scale": options.guidance,
    }  # fmt: skip
    for key, value in flags.items():
        if value is not None:
            OmegaConf.update(cfg, key, value)
    change_task(cfg, options.overlap, options.multipliers, options.seam)
    return cfg


def change_task(
    cfg: DictConfig, overlap: int | None, multipliers: Sequence[float] | None, seam: str | None
) -> None:
    """Flags that change the rows of the task itself."""
    from pusa.pipelines.tasks import as_config

    task = entry.build(cfg.task)
    if overlap is not None:
        stride = cfg.model.spec.temporal_stride
        task = task.with_overlap(overlap, stride)
        cfg.chain.overlap = overlap
        cfg.chain.multipliers = list(cfg.chain.multipliers)[: (overlap - 1) // stride + 1]
    if multipliers is not None:
        task = task.with_multipliers(multipliers)
    if seam is not None and task.join is not None:
        task = task.with_seam(seam)
    cfg.task = {"_target_": "pusa.pipelines.tasks.Task", **as_config(task)}


def _upstream_rows(options: argparse.Namespace) -> list[str]:
    """--cond_position and --noise_multipliers as conditions; both count latent frames."""
    files = options.image_paths or ([options.video_path] if options.video_path else [])
    if not files and options.cond_position is None:
        if options.noise_multipliers is not None:
            raise ValueError("--noise_multipliers needs --cond_position and files.")
        return []
    places = (options.cond_position or "").split(",")
    multipliers = options.noise_multipliers or [0.2] * len(places)
    if options.image_paths and options.video_path:
        raise ValueError("give --image_paths or --video_path, not both.")
    if not files or options.cond_position is None:
        raise ValueError("--cond_position, and --image_paths or --video_path, belong together.")
    count = len(files) if options.image_paths else len(places)
    if not len(places) == len(multipliers) == count:
        raise ValueError(
            f"--cond_position has {len(places)} entries, --noise_multipliers {len(multipliers)}"
            + (f", --image_paths {count}" if options.image_paths else "")
            + "; one for each is needed."
        )
    rows = []
    for i, (place, m) in enumerate(zip(places, multipliers, strict=True)):
        position = f"latent:{place.strip()}"
        if options.image_paths:
            rows.append(f"{position}={files[i]}:{m:g}:alone")
        else:
            rows.append(f"{position}={files[0]}@{position}:{m:g}")
    return rows


def _again(options: argparse.Namespace) -> None:
    changing = ("at", "task", "lora", "strength", "lora_path", "overrides", "plan",
                "chain", "overlap", "seed",
                "multipliers", "sampler", "steps", "guidance", "num_frames", "height", "width",
                "fps", "crf", "fit", "pace", "seam", "encode_as", "memory", "negative_prompt",
                "part", "overwrite",
                "cond_position", "noise_multipliers", "image_paths", "video_path")  # fmt: skip
    values = {name: getattr(options, name) for name in changing}
    # By identity: a seed of 0 is a seed.
    given = [
        n for n, value in values.items() if not (value is None or value is False or value == [])
    ]
    given += ["model"] if options.model != MODEL else []
    if given:
        flags = ", ".join(
            "--set" if n == "overrides" else f"--{n.replace('_', '-')}" for n in given
        )
        raise ValueError(f"--from makes a video again as it was; leave out {flags}.")
    cfg, expected = from_sidecar(options.sidecar)
    cfg.output, cfg.save = options.output, options.save or []
    path = make(cfg, expected)
    log.info("wrote %s and %s", path, path.with_suffix(".json"))


def from_sidecar(path: str) -> tuple[DictConfig, dict[str, str]]:
    """A sidecar's config and the digests of its inputs. ValueError if it is none of ours."""
    from pusa.pipelines.sidecar import versions

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such sidecar.")
    try:
        sidecar = json.loads(Path(path).read_text())
        for name, here in versions().items():
            if sidecar["made_by"].get(name) != here:
                there = sidecar["made_by"].get(name)
                log.warning("made with %s %s, here %s: bytes may differ.", name, there, here)
        _refuse_foreign_targets(sidecar["recipe"], path)
        # What was chosen, not how; before there was a choice, there was the one path.
        told = sidecar["recipe"] | {"lora_path": sidecar.get("lora_path", "low_rank")}
        recipe = {key: told[key] for key in (*FIELDS, "model", "sampler", "memory")
                  if key not in HARMLESS}  # fmt: skip
        return OmegaConf.create({**recipe, "output": "???", "save": []}), sidecar["inputs"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a sidecar of `pusa generate` ({error}).") from error


def _refuse_foreign_targets(node, path: str) -> None:
    """A sidecar is somebody's file: it may name our classes, and nothing else to be called."""
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for value in values:
        _refuse_foreign_targets(value, path)
    target = node.get("_target_") if isinstance(node, dict) else None
    if target is not None and target not in SIDECAR_TARGETS:
        raise ValueError(f"{path}: names {target}, which no sidecar of ours does; it is refused.")
