"""`pusa data cache ...`: what a latent cache holds, whether it is sound, what it can do without."""

import argparse
import logging
import sys

from pusa import entry

log = logging.getLogger(__name__)


def add_cache(actions) -> None:
    cache = actions.add_parser("cache", help="look after the latent cache")
    commands = cache.add_subparsers(required=True, metavar="action")
    status = commands.add_parser("status", help="data sets, tensors and bytes")
    verify = commands.add_parser("verify", help="read all of it; exit code 1: something is damaged")
    verify.add_argument("--delete", action="store_true", help="remove what is damaged")
    gc = commands.add_parser("gc", help="list what no data set uses")
    gc.add_argument("--yes", action="store_true", help="delete it")
    gc.add_argument("--hours", type=float, default=24, metavar="N",
                    help="spare what is younger: a running job's (%(default)g)")  # fmt: skip
    gc.add_argument("--old-versions", action="store_true",
                    help="of data sets of one name keep the newest alone")  # fmt: skip
    pack = commands.add_parser("pack", help="put a data set's small files into files of 512 MB")
    pack.add_argument("name", help="of the data set in the cache")
    for parser, run in ((status, _status), (verify, _verify), (gc, _gc), (pack, _pack)):
        parser.add_argument("--cache", metavar="FOLDER", help="default: data/cache (paths.cache)")
        parser.set_defaults(run=run)


def _open(options: argparse.Namespace):
    from pathlib import Path

    from pusa.cli import compose_config
    from pusa.data.cache import LatentCache

    folder = Path(options.cache or compose_config("encode", []).cache)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such cache; encode first, or name it with --cache.")
    return LatentCache(folder)


def _status(options: argparse.Namespace) -> None:
    from pusa.data.care import unreferenced

    cache = _open(options)
    sizes = {f"{item.kind}/{item.key}": item for item in cache.items()}
    log.info("%s: %d tensors, %s", cache.folder, len(sizes), _bytes(sizes.values()))
    for file, entries in cache.indices().items():
        names = {f"{kind}/{getattr(e, kind)}" for e in entries for kind in ("latents", "text")}
        there = [sizes[name] for name in names if name in sizes]
        packed = sum(item.file.parent.name == "packs" for item in there)
        log.info(
            "  %s: %d samples, %d of %d tensors there (%d packed), %s",
            file.stem, len(entries), len(there), len(names), packed, _bytes(there),
        )  # fmt: skip
    unused = unreferenced(cache)
    log.info("  in no data set: %d tensors, %s", len(unused), _bytes(unused))


def _bytes(items) -> str:
    from pusa.atomic import size_text

    return size_text(sum(item.num_bytes for item in items))


def _verify(options: argparse.Namespace) -> None:
    from pusa.data.care import delete_damaged, verify

    cache = _open(options)
    health = verify(cache, entry.progress_bars("verify"))
    for (file, name), reason in health.damaged.items():
        log.info("%s: %s %s", file, name, reason)
    for fault in health.indices.values():
        log.info("%s", fault)
    log.info(
        "%d tensors read, %d damaged; %d data sets are not whole",
        health.num_items, len(health.damaged), len(health.indices),
    )  # fmt: skip
    if health.ok:
        return
    if not options.delete:
        sys.exit(1)
    delete_damaged(cache, health)
    log.info("removed; encode again to replace them")


def _gc(options: argparse.Namespace) -> None:
    from pusa.data.care import collect, leftovers, superseded, unreferenced

    cache = _open(options)
    if not cache.indices():
        raise ValueError(
            f"{cache.folder}: has no data set's index, so all of it would go; encode one first."
        )
    seconds = 3600 * options.hours
    versions = superseded(cache) if options.old_versions else []
    unused, old = unreferenced(cache, seconds, versions), leftovers(cache, seconds)
    what = (
        f"{len(unused)} tensors that no data set uses, {_bytes(unused)}, "
        f"{len(old)} unfinished files and {len(versions)} old versions of data sets"
    )
    if not options.yes:
        log.info("%s; --yes deletes them", what)
        return
    for file in versions:
        file.unlink()
    collect(cache, unused)
    for file in old:
        file.unlink(missing_ok=True)
    log.info("deleted %s", what)


def _pack(options: argparse.Namespace) -> None:
    from pusa.data.care import pack

    cache = _open(options)
    count = pack(cache, cache.read_index(options.name), entry.progress_bars("pack"))
    log.info("%s: packed %d tensors", options.name, count)
