"""`pusa compare` and `pusa vbench`: finished evaluations side by side, and VBench's own files."""

import argparse
import logging

from pusa.atomic import write_json

log = logging.getLogger(__name__)
_SYSTEM = "the output folder of evaluate.py, as outputs/NAME/photos; default system: its contender"


def add_commands(commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="hold two evaluated systems against each other, wherever they were evaluated",
        description="What differs in how they were made, then per dimension and total: means, "
        "paired difference, permutation test, what could have been found, verdict. Evaluations "
        "that were not made alike are refused.",
    )
    compare.add_argument("ours", metavar="FOLDER[:SYSTEM]", help=_SYSTEM)
    compare.add_argument("theirs", metavar="FOLDER[:SYSTEM]")
    compare.add_argument(
        "--allow", nargs="+", default=[], metavar="FIELD", help="of the manifests that may differ"
    )
    compare.add_argument("--json", metavar="FILE", help="write all figures, too")
    compare.set_defaults(run=_compare)
    vbench = commands.add_parser("vbench", help="videos for VBench's own program, and its results")
    actions = vbench.add_subparsers(required=True, metavar="action")
    export = actions.add_parser("export", help="put videos where VBench looks for them")
    export.add_argument("system", metavar="FOLDER[:SYSTEM]", help=_SYSTEM)
    export.add_argument("target", help="a folder of nothing else; hard links where that can be")
    export.set_defaults(run=_export)
    score = actions.add_parser(
        "score", help="dimensions and totals, with intervals, of its results"
    )
    score.add_argument("results", help="a *_eval_results.json, or a folder of them")
    score.add_argument(
        "--info", required=True, metavar="LIST", help="VBench's vbench2_i2v_full_info.json"
    )
    score.add_argument("--json", metavar="FILE", help="write all figures, too")
    score.set_defaults(run=_score)


def _compare(options: argparse.Namespace) -> None:
    from pusa.evaluation.finished import compare_finished, find_finished
    from pusa.evaluation.numbers import numbers
    from pusa.evaluation.tables import aligned, comparison_cells, comparison_titles

    ours, theirs = map(find_finished, (options.ours, options.theirs))
    result = compare_finished(ours, theirs, options.allow)
    lines = [result.title, "", *(f"{name}: {value}" for name, value in result.facts.items()), ""]
    lines += aligned([comparison_titles(), *comparison_cells(result)])
    log.info("%s", "\n".join(lines))
    if options.json is not None:
        write_json(options.json, numbers(result))


def _export(options: argparse.Namespace) -> None:
    from pusa.evaluation.finished import find_finished
    from pusa.evaluation.official import export_videos

    videos = find_finished(options.system).videos()
    if not any(path.is_file() for _, path in videos):
        raise ValueError(
            f"{options.system}: its videos were made by others and are where they were; export is "
            "for those that evaluate.py made."
        )
    count = export_videos(videos, options.target)
    log.info("%d videos are in %s, %d of them new.", len(videos), options.target, count)


def _score(options: argparse.Namespace) -> None:
    from pusa.evaluation.finished import official_result
    from pusa.evaluation.numbers import numbers
    from pusa.evaluation.official import read_results
    from pusa.evaluation.tables import console
    from pusa.evaluation.vbench_suite import read_info

    prompts = read_info(options.info)
    result = official_result(read_results(options.results, prompts), prompts)
    log.info("%s", console(result))
    if options.json is not None:
        write_json(options.json, numbers(result))
