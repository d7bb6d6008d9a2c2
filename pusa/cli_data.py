"""`pusa data ...`: commands for clips and caches."""

import argparse
import logging
import os
from pathlib import Path

from pusa import cli_cache, entry

log = logging.getLogger(__name__)


def add_commands(commands) -> None:
    data = commands.add_parser("data", help="check clips, look after the latent cache")
    actions = data.add_subparsers(required=True, metavar="action")
    _add_check(actions)
    cli_cache.add_cache(actions)


def _add_check(actions) -> None:
    check = actions.add_parser(
        "check",
        help="decode every clip once; exit code 1: some cannot be used",
        description="Decode every clip of a manifest once, say which can be used and why others "
        "cannot, and list those in <manifest>.quarantine.jsonl, which later steps leave out. A run "
        "that was stopped goes on where it was. Exit code 0: all can be used, 1: some cannot.",
    )
    check.add_argument(
        "manifest", help="metadata.csv, .jsonl, folder of clips, `datasets` folder or .tar shards"
    )
    check.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)),
                       help="processes (default: the CPUs, %(default)s)")  # fmt: skip
    check.add_argument("--timeout", type=float, default=300, metavar="SECONDS",
                       help="for one file (%(default)g)")  # fmt: skip
    check.add_argument("--min-frames", type=int, default=1, metavar="N",
                       help="drop clips, and images, of fewer frames (%(default)s)")  # fmt: skip
    check.add_argument("--text-encoder", metavar="FOLDER",
                       help="count captions in tokens of this encoder, not in words")  # fmt: skip
    check.add_argument("--text-len", type=int, metavar="N",
                       help="tokens that are not cut (default: the encoder's)")  # fmt: skip
    check.add_argument("--report", metavar="FILE",
                       help="a line per clip (default: beside it, .check.jsonl)")  # fmt: skip
    check.add_argument("--json", metavar="FILE", help="write the summary; - prints it instead")
    check.add_argument("--no-quarantine", action="store_true", help="write no quarantine list")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> None:
    from pusa.data.check import CheckSettings, check
    from pusa.data.verdicts import WORDS

    settings = CheckSettings(options.workers, options.timeout, options.min_frames)
    captions = WORDS
    if options.text_encoder is not None:
        captions = _count_tokens(options.text_encoder, options.text_len)
    elif options.text_len is not None:
        raise ValueError("--text-len counts tokens; give --text-encoder as well.")
    found = check(
        options.manifest, settings, options.report, captions, not options.no_quarantine,
        entry.progress_bars("check"),
    )  # fmt: skip
    entry.show(found, options.json)


def _count_tokens(folder: str, text_len: int | None):
    """Captions measured as the encoder in a folder does, whose weights are not loaded."""
    from torch import nn

    from pusa.data.verdicts import CaptionLength
    from pusa.models import text

    found = text._find(Path(folder))
    is_umt5 = found.is_file() or text._model_type(found) == "umt5"
    wrapper = text.UMT5TextEncoder if is_umt5 else text.T5TextEncoder
    # Uncut, so that what would be cut is seen.
    counter = wrapper(nn.Identity(), text._load_tokenizer(found, None), text_len=2**30)
    limit = wrapper.default_len if text_len is None else text_len
    if limit < 1:
        raise ValueError(f"--text-len must be at least 1, got {limit}.")
    return CaptionLength(lambda c: int(counter.tokenize([c])[1].sum()), "tokens", limit)
