"""Finished benchmarks: what their folders say of a system, and two systems held against each other
wherever they were evaluated. Generates and measures nothing."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pusa.evaluation.conclusion import columns_of
from pusa.evaluation.lanes import MANIFEST, VIDEOS
from pusa.evaluation.manifest import Manifest, compare_manifests, read_manifest
from pusa.evaluation.metrics.ledger import Measured
from pusa.evaluation.naming import Basis, common, file_stem, title
from pusa.evaluation.official import OfficialResults
from pusa.evaluation.provenance import NO_NETWORK, official
from pusa.evaluation.results import Column, Comparison, Result, Role, System
from pusa.evaluation.score import fingerprint, read_rows
from pusa.evaluation.scoring import SCALES, VideoScore
from pusa.evaluation.stats import Interval
from pusa.evaluation.summary import cells_of, compare_systems
from pusa.evaluation.vbench_suite import Prompt, SuiteVideo, few, is_public, videos_of

_VIDEO = re.compile(r"(.+)-(\d+)\.mp4")
VBENCH = "VBench"


@dataclass(frozen=True)
class Finished:
    """A system of a finished benchmark. text: as it was named; folder: the benchmark's; names: of
    its videos."""

    text: str
    folder: Path
    system: str
    manifest: Manifest
    names: tuple[str, ...]

    def videos(self) -> list[tuple[SuiteVideo, Path]]:
        """Where they are, unless they are the finished videos of others, which are elsewhere."""
        found = []
        for name in self.names:
            stem, sample = _named(name)
            one = SuiteVideo(0, Prompt(stem, stem, "", "", ()), sample)
            found.append((one, self.folder / "videos" / self.system / name))
        return found

    def scores(self) -> list[VideoScore]:
        """Those of the videos and networks that its manifest is of.

        ValueError where a video has none, has changed since, or scores cannot be told apart.
        """
        marks = {path.name: fingerprint(path) for _, path in self.videos() if path.is_file()}
        found: dict[tuple[str, str], Measured] = {}
        for row in self._rows():
            if marks.get(row.video, row.fingerprint.split("+")[0]) != row.fingerprint.split("+")[0]:
                continue
            known = found.setdefault((row.dimension, row.video), row)
            if known.key != row.key:
                raise ValueError(
                    f"{self.text}: {row.video!r} is scored twice in {row.dimension}, from other "
                    "files; evaluate into a new folder."
                )
        unscored = sorted({*self.names} - {video for _, video in found})
        if unscored:
            raise ValueError(
                f"{self.text}: no scores of {few(unscored, 'videos')}; run evaluate.py again."
            )
        return [
            VideoScore(row.dimension, *_named(row.video), row.score, row.num_frames)
            for row in found.values()
        ]

    def _rows(self) -> list[Measured]:
        own = re.compile(rf"{re.escape(self.system)}(\.\d+-of-\d+)?\.jsonl")  # of parts, too
        files = [f for f in sorted(self.folder.glob("scores/*")) if own.fullmatch(f.name)]
        names = set(self.names)
        used = {
            name: ("" if record.id == NO_NETWORK else record.id, record.sha256)
            for name, record in self.manifest.backbones.items()
        }
        return [
            row
            for file in files
            for row in read_rows(file, Measured)
            if row.video in names
            and used.get(row.dimension) == (row.backbone, row.sha256)
            and row.resize == self.manifest.resize
        ]


def find_finished(text: str) -> Finished:
    """FOLDER, for its evaluation's contender, or FOLDER:SYSTEM. ValueError if there is no such."""
    folder, _, system = (text, "", "") if Path(text).is_dir() else text.rpartition(":")
    if not folder or not Path(folder).is_dir():
        raise ValueError(f"{folder or text}: no such folder of an evaluation.")
    system = system or _contender(Path(folder))
    record = Path(folder, "videos", system, MANIFEST)
    if not record.is_file():
        made = sorted(path.parent.name for path in record.parent.parent.glob(f"*/{MANIFEST}"))
        raise ValueError(
            f"{text}: {system!r} has no {record}, which evaluate.py writes when all its videos are "
            f"scored; there are: {', '.join(made) or 'none'}."
        )
    listed = record.parent / VIDEOS
    if not listed.is_file():
        raise ValueError(
            f"{text}: {listed} is missing; the same evaluate.py command writes it again."
        )
    names = json.loads(listed.read_text("utf-8"))
    return Finished(text, Path(folder), system, read_manifest(record), tuple(names))


def compare_finished(ours: Finished, theirs: Finished, allow: Collection[str]) -> Result:
    """ValueError if their manifests are unlike, but for the fields of `allow`, or if they share no
    prompt."""
    if ours.text == theirs.text:
        raise ValueError(f"{ours.text} is held against itself; name two systems.")
    changes = compare_manifests(ours.manifest, theirs.manifest, allow)
    scores = {one.text: one.scores() for one in (ours, theirs)}
    columns = columns_of(ours.manifest.backbones, scores[ours.text])
    cells = cells_of(scores, columns)
    comparisons = compare_systems(scores, columns, [(ours.text, theirs.text)], cells)
    if not comparisons:
        raise ValueError(
            f"{ours.text} and {theirs.text} share no prompt in any dimension; score both on one "
            "suite."
        )
    basis = common([one.manifest.basis() for one in (ours, theirs)])
    facts = {"suite": ours.manifest.suite}
    facts |= {f"{c.field} differs": str(c).removeprefix(f"{c.field}: ") for c in changes}
    roles: tuple[Role, Role] = ("contender", "baseline")
    systems = tuple(
        System(one.text, role, "", one.manifest, None)
        for one, role in zip((ours, theirs), roles, strict=True)
    )
    return _result(basis, facts, columns, systems, cells, tuple(comparisons))


def official_result(found: OfficialResults, prompts: tuple[Prompt, ...]) -> Result:
    """VBench's own results as a table. Called VBench-I2V if they are of all its videos."""
    wanted = {(v.prompt.stem, v.sample, d) for v in videos_of(prompts) for d in v.prompt.dimensions}
    there = {(s.prompt, s.sample, s.dimension) for s in found.videos}
    complete = all(key in there for key in wanted if key[2] in SCALES)
    basis = Basis(official(SCALES), is_public(prompts), complete)
    scores = {VBENCH: found.videos}
    columns = columns_of(basis.backbones, found.videos)
    facts = {"results": found.source, "videos": str(len({key[:2] for key in there}))}
    systems = (System(VBENCH, "contender", "measured by VBench itself", None, None),)
    return _result(basis, facts, columns, systems, cells_of(scores, columns), ())


def _result(
    basis: Basis, facts: Mapping[str, str], columns: tuple[Column, ...],
    systems: tuple[System, ...], cells: Mapping[tuple[str, str], Interval],
    comparisons: tuple[Comparison, ...],
) -> Result:  # fmt: skip
    return Result(
        title=title(basis), stem=file_stem(basis), facts=facts, columns=columns, systems=systems,
        items=(), shots=(), cells=cells, comparisons=comparisons, missing={}, retention=(),
        published=(), warnings=(),
    )  # fmt: skip


def _named(name: str) -> tuple[str, int]:
    """Stem and sample of a suite's video."""
    match = _VIDEO.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no video of a suite: PROMPT-SAMPLE.mp4.")
    return match[1], int(match[2])


def _contender(folder: Path) -> str:
    """What the evaluation in a folder is about."""
    names = set()
    for file in folder.glob("*.json"):
        told = json.loads(file.read_text("utf-8"))
        systems = told.get("systems", []) if isinstance(told, dict) else []
        names |= {s["name"] for s in systems if s["role"] == "contender"}
    if len(names) != 1:
        found = f"several ({', '.join(sorted(names))})" if names else "none"
        raise ValueError(
            f"{folder}: what is its evaluation about? There is {found}; name one, {folder}:SYSTEM, "
            "or finish it with evaluate.py."
        )
    return names.pop()
