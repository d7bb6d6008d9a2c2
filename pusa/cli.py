"""`pusa`: generate, encode, toy clips, making the replica's text encoder.

Commands for files of weights are in cli_weights.
"""

import argparse
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pusa import cli_data, cli_plan, cli_schedule, cli_train, cli_weights, entry

log = logging.getLogger(__name__)
SIDECAR_TARGETS = (
    "pusa.pipelines.build.Model", "pusa.models.wan_dit.WanDiT", "pusa.models.mochi_dit.MochiDiT",
    "pusa.types.LatentSpec",
    "pusa.diffusion.flow.FlowMatching", "pusa.pipelines.generate.Sampler",
    "pusa.diffusion.plans.NoisyFirst", "pusa.diffusion.plans.Pyramid",
    "pusa.diffusion.plans.RollingWindow", "pusa.diffusion.plans.Matrix",
)  # fmt: skip
_LORA_HELP = (
    "a LoRA of any format, or the folder of a training run; may be repeated. EXPERT: high, low or "
    "both, on a model of two experts; a file that says which one it is for needs none."
)
_AT_HELP = (
    "a condition, POSITION=FILE[:MULTIPLIER]; may be repeated. POSITION: a pixel frame (0, -1), "
    "last, or latent:K. MULTIPLIER: 0 keeps the image exactly, 1 ignores it (default 0.2)."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, exit: 0 done, 1 bad input with one message, 2 bad usage."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = _parser().parse_args(arguments)
    entry.quiet_libraries()
    with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
        signal.signal(signal.SIGTERM, _interrupt)  # unfinished files are removed on the way out
    entry.guarded(lambda: options.run(options))


def _interrupt(number: int, frame) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pusa", description="Video diffusion with a timestep per frame."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_generate(commands)
    _add_encode(commands)
    toy = commands.add_parser("toy", help="render captioned toy clips with known truth")
    toy.add_argument("folder")
    toy.add_argument("--split", choices=("train", "heldout"), default="train")
    toy.add_argument("--num-clips", type=int, default=64)
    toy.add_argument("--seed", type=int, default=0)
    toy.set_defaults(run=_toy)
    text = commands.add_parser("tiny-text-encoder", help="write the replica's text encoder")
    text.add_argument("folder")
    text.set_defaults(run=_text_encoder)
    cli_weights.add_commands(commands)
    cli_data.add_commands(commands)
    cli_train.add_commands(commands)
    cli_plan.add_commands(commands)
    cli_schedule.add_commands(commands)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="wan_tiny", help="a name in configs/model (%(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override any config key, as model.dtype=bfloat16; may be repeated",
    )  # fmt: skip


def _add_encode(commands) -> None:
    encode = commands.add_parser(
        "encode", help="encode clips into the latent cache; what is there is not done again"
    )
    encode.add_argument(
        "what", nargs="+",
        help="a manifest (with --name), or experiment=NAME and further overrides of train.py",
    )  # fmt: skip
    encode.add_argument("--name", help="name of the data set in the cache")
    encode.add_argument(
        "--part", metavar="I/N",
        help="do one part of N, 0/N to N-1/N, on machines that share the cache; "
        "array: that of this task of a SLURM array job",
    )  # fmt: skip
    _add_model(encode)
    encode.add_argument("--on-bad-clip", choices=("stop", "skip"), default="stop")
    encode.set_defaults(run=_encode)


def _add_generate(commands) -> None:
    generate = commands.add_parser("generate", help="make a video from a prompt and images")
    what = generate.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt")
    what.add_argument("--from", dest="sidecar", metavar="JSON", help="make a sidecar's video again")
    generate.add_argument("--at", action="append", default=[], help=_AT_HELP)
    generate.add_argument("--output", "-o", required=True, help="the .mp4 to write")
    generate.add_argument(
        "--lora", action="append", metavar="[EXPERT=]FILE[:STRENGTH]", help=_LORA_HELP
    )
    generate.add_argument(
        "--strength", help="a factor for all LoRAs: 1.4, or high=1.5,low=1.4 (default 1)"
    )
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--steps", type=int, help="sampling steps")
    generate.add_argument("--guidance", type=float, help="guidance scale; 1 is none")
    for name in ("num-frames", "height", "width"):
        generate.add_argument(f"--{name}", type=int, help="default: the model's")
    cli_schedule.add_plan(generate)
    _add_model(generate)
    generate.set_defaults(run=_generate)


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    folder = str(entry.config_folder().resolve())
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            return compose(name, overrides=overrides)
    except HydraException as error:
        raise ValueError(str(error)) from error


def _generate(options: argparse.Namespace) -> None:
    from pusa.pipelines.loras import parse_strength
    from pusa.pipelines.produce import Description, produce

    expected, strength = None, options.strength
    if options.sidecar is not None:
        if options.at or options.lora or strength or options.overrides or options.plan:
            raise ValueError(
                "--from makes a video again as it was; "
                "leave out --at, --lora, --strength, --plan, --set."
            )
        cfg, expected = _from_sidecar(options.sidecar)
    else:
        cfg = compose_config("generate", [f"model={options.model}", *options.overrides])
        if options.plan is not None:
            cli_schedule.set_plan(cfg, options.plan)
        flags = {
            "prompt": options.prompt, "at": options.at, "lora": options.lora,
            "strength": None if strength is None else parse_strength(strength),
            "seed": options.seed,
            "num_frames": options.num_frames, "height": options.height, "width": options.width,
            "sampler.num_steps": options.steps, "sampler.guidance_scale": options.guidance,
        }  # fmt: skip
        for key, value in flags.items():
            if value is not None:
                OmegaConf.update(cfg, key, value)
    cfg.output = options.output
    fields = ("prompt", "at", "seed", "num_frames", "height", "width", "fps", "fit", "lora",
              "strength", "output")  # fmt: skip
    plain = entry.plain_config(cfg)
    recipe = {key: value for key, value in plain.items() if key != "output"}
    what = Description(**{key: plain[key] for key in fields})
    path = produce(
        entry.build(cfg.model), entry.build(cfg.sampler), what, recipe, expected,
        entry.progress_bars("sample"),
    )  # fmt: skip
    log.info("wrote %s and %s", path, path.with_suffix(".json"))


def _from_sidecar(path: str) -> tuple[DictConfig, dict[str, str]]:
    from pusa.pipelines.produce import versions

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such sidecar.")
    try:
        sidecar = json.loads(Path(path).read_text())
        for name, here in versions().items():
            if sidecar["made_by"].get(name) != here:
                there = sidecar["made_by"].get(name)
                log.warning("made with %s %s, here %s: bytes may differ.", name, there, here)
        _refuse_foreign_targets(sidecar["recipe"], path)
        return OmegaConf.create({**sidecar["recipe"], "output": "???"}), sidecar["inputs"]
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


def _encode(options: argparse.Namespace) -> None:
    from pusa.pipelines.parts import read_part
    from pusa.pipelines.prepare import Source, prepare

    part = read_part(options.part)
    if all("=" in word for word in options.what):  # a training's own data
        cfg = compose_config("train", [*options.what, "name=encode", *options.overrides])
        sources = [entry.build(s) for s in (cfg.data.train, cfg.data.heldout) if s is not None]
        settings, cache = cfg.data.encode, cfg.paths.cache
        if settings is None:
            raise ValueError("this experiment trains on pixels; there is nothing to encode.")
    else:
        if len(options.what) != 1 or options.name is None:
            raise ValueError("give one manifest and --name NAME, or experiment=NAME.")
        cfg = compose_config("encode", [f"model={options.model}", *options.overrides])
        cfg.encode.on_bad_clip = options.on_bad_clip
        sources = [Source(options.name, options.what[0])]
        settings, cache = cfg.encode, cfg.cache
    indices = prepare(
        sources, cache, entry.build(cfg.model), entry.build(settings), entry.progress_bars, part
    )
    for source in sources:
        if source.name not in indices:
            log.info("%s: this part is done; the last part to end writes the index.", source.name)
        else:
            log.info("%s is in %s.", source.name, cache)
    if options.name is not None and len(indices) == len(sources):
        log.info("Train with data=clips data.train.manifest=%s; it finds what is cached.",
                 options.what[0])  # fmt: skip


def _toy(options: argparse.Namespace) -> None:
    from pusa.data import toy

    if options.num_clips < 1:
        raise ValueError(f"--num-clips must be at least 1, got {options.num_clips}.")
    scenes = [toy.make_scene(options.seed, options.split, i) for i in range(options.num_clips)]
    manifest = toy.write_dataset(options.folder, scenes, progress=entry.progress_bars("render"))
    log.info("wrote %s", manifest)


def _text_encoder(options: argparse.Namespace) -> None:
    from pusa.pipelines.replica import make_text_encoder

    log.info("wrote %s", make_text_encoder(options.folder))


if __name__ == "__main__":
    main()
