"""`pusa`: the program, and its commands encode, toy and tiny-text-encoder; others are in cli_*."""

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from pusa import (
    cli_cost,
    cli_data,
    cli_demo,
    cli_evaluate,
    cli_generate,
    cli_plan,
    cli_published,
    cli_reproduce,
    cli_schedule,
    cli_track,
    cli_train,
    cli_weights,
    entry,
)

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, exit: 0 done, 1 bad input with one message, 2 bad usage."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(cli_generate.bind_positions(words))
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
    cli_generate.add_commands(commands)
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
    cli_track.add_commands(commands)
    cli_plan.add_commands(commands)
    cli_cost.add_commands(commands)
    cli_published.add_commands(commands)
    cli_reproduce.add_commands(commands)
    cli_schedule.add_commands(commands)
    cli_evaluate.add_commands(commands)
    cli_demo.add_commands(commands)
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


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    folder = str(entry.config_folder().resolve())
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            return compose(name, overrides=overrides)
    except HydraException as error:
        raise ValueError(str(error)) from error


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
