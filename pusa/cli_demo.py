"""`pusa demo`: a page in the browser, on which videos are made as `pusa generate` makes them."""

import argparse
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pusa import cli_generate, entry

if TYPE_CHECKING:
    from pusa.demo.form import Order
    from pusa.demo.page import Page
    from pusa.demo.workshop import Preset

log = logging.getLogger(__name__)
REPLICA_LORA = "tiny_vta/lora.safetensors"  # what `make demo` trains
FIRST_TASKS = ("t2v", "i2v", "start_end", "keyframes", "completion", "extension", "transition")


def add_commands(commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="a page in the browser: upload, drag conditions on a timeline, generate",
        description="Serve a page on which videos are made as `pusa generate` makes them, with "
        "their sidecars. Nothing leaves this machine unless --share asks for it.",
    )
    demo.add_argument("--model", default="wan_tiny", help="a name in configs/model (%(default)s)")
    demo.add_argument(
        "--lora", action="append", metavar="[EXPERT=]FILE[:STRENGTH]",
        help="a LoRA to choose, as of `pusa generate`; may be repeated (default: that of tiny_vta, "
        "if it is trained and the model is wan_tiny)",
    )  # fmt: skip
    demo.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override any config key, as model.dtype=bfloat16; may be repeated",
    )  # fmt: skip
    demo.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    demo.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    demo.add_argument(
        "--share", action="store_true", help="also at a public address, by Gradio's servers"
    )
    demo.add_argument("--output", default="outputs/demo", help="folder of the videos (%(default)s)")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    page, address = open_page(options)
    log.info("The page is at %s; videos go to %s. Ctrl-C ends it.", address, options.output)
    page.blocks.block_thread()


def open_page(options: argparse.Namespace) -> "tuple[Page, str]":
    """Serve in a thread; returns the page and its address. ImportError, with the remedy, without
    Gradio; OSError if the port is taken."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    try:
        from pusa.demo.server import serve
    except ImportError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise ImportError(
            "`pusa demo` needs Gradio; install it: pip install 'pusa[demo]'."
        ) from error
    page = _page(options)
    return page, serve(page, options.host, options.port, options.share)


def _page(options: argparse.Namespace) -> "Page":
    from pusa.demo.page import Offer, Page
    from pusa.demo.workshop import Workshop

    chosen, overrides = {"sampler": "euler", "memory": "resident"}, []
    for text in options.overrides:  # groups that the page has a field for are its first choice
        group, _, name = text.partition("=")
        if group in chosen:
            chosen[group] = name
        else:
            overrides.append(text)
    # Beside the weights: strengths are changed from video to video, and the base stays as it is.
    fixed = [
        f"--model={options.model}",
        "--lora-path=low_rank",
        *(f"--set={text}" for text in overrides),
    ]
    read = reader(fixed)
    order = read(["--prompt=", *(f"--{group}={name}" for group, name in chosen.items())])
    loras = options.lora
    if loras is None:
        found = _outputs(options) / REPLICA_LORA
        loras = [str(found)] if options.model == "wan_tiny" and found.is_file() else []
    offer = Offer(order, _names("sampler"), _names("memory"), tuple(loras), **chosen)
    tasks = presets(options.model, overrides)
    return Page(Workshop(read, tasks, Path(options.output), fixed), offer)


def reader(fixed: Sequence[str]) -> "Callable[[Sequence[str]], Order]":
    """Arguments of `pusa generate` -> what they come to, with the fixed ones before them;
    ValueError for whatever is refused."""
    from omegaconf.errors import OmegaConfBaseException

    from pusa.demo.form import Order

    parser = argparse.ArgumentParser(prog="pusa")
    cli_generate.add_commands(parser.add_subparsers())
    composing = threading.Lock()  # hydra's state is the process's, requests come in threads

    def read(words: Sequence[str]) -> Order:
        output = [] if any(word.startswith("--output=") for word in words) else ["--output=x.mp4"]
        try:
            options = parser.parse_args(["generate", *fixed, *words, *output])
        except SystemExit:
            raise ValueError(f"no arguments of `pusa generate`: {' '.join(words)}") from None
        try:
            with composing:
                cfg = cli_generate.compose(options)
            cfg.output = options.output
            return Order(
                entry.build(cfg.model), entry.build(cfg.sampler), entry.build(cfg.memory),
                cli_generate.describe(cfg), cli_generate.recipe_of(cfg),
            )  # fmt: skip
        except (entry.InstantiationException, OmegaConfBaseException) as error:
            raise ValueError(entry.explain(entry.root_cause(error))) from error

    return read


def presets(model: str, overrides: Sequence[str]) -> "dict[str, Preset]":
    """The tasks of configs/task, the usual ones first, with what their files say of them."""
    from pusa.cli import compose_config
    from pusa.demo.workshop import Preset

    names = sorted(_names("task"), key=lambda name: (*FIRST_TASKS, name).index(name))
    result = {}
    for name in names:
        cfg = compose_config("generate", [f"model={model}", *overrides, f"task={name}"])
        lines = (entry.config_folder() / "task" / f"{name}.yaml").read_text("utf-8").splitlines()
        about = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
        result[name] = Preset(entry.build(cfg.task), " ".join(about))
    return result


def _outputs(options: argparse.Namespace) -> Path:
    from pusa.cli import compose_config

    return Path(compose_config("generate", [*options.overrides]).paths.outputs)


def _names(group: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (entry.config_folder() / group).glob("*.yaml")))
