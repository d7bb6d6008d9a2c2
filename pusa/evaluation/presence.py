"""Which videos of a suite are there. VBench prints a warning for each that is not and averages over
the rest; here an incomplete folder is an error, or becomes part of the result's name."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pusa.evaluation.vbench_suite import SuiteVideo, few

VIDEO_SUFFIXES = {".mp4", ".gif", ".mov", ".mkv", ".webm", ".avi", ".m4v"}


@dataclass(frozen=True)
class Presence:
    """File names by what is wrong with them, sorted.

    missing: not there, or empty; unexpected: videos that nobody asked for; clashing: there or
    expected in spellings that differ by letter case or Unicode form alone.
    """

    folder: Path
    num_expected: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    clashing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Every expected video is there, and no other could be meant."""
        return not (self.missing or self.unexpected or self.clashing)

    def describe(self) -> str:
        """One line: what is wrong, with counts and the first few names."""
        faults = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "spelt in more than one way": self.clashing,
        }
        found = [f"{few(names, fault)}" for fault, names in faults.items() if names]
        return f"{self.folder}: of {self.num_expected} videos, " + (
            "; ".join(found) or "none is missing and there is no other"
        )


def presence(
    folder: str | Path, videos: Sequence[SuiteVideo], others: Sequence[SuiteVideo] = ()
) -> Presence:
    """Compare a folder with the videos that a suite, or some of its dimensions, need.

    others: what else may be there, as the rest of the suite. Files that are no videos (sidecars)
    are passed over. ValueError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of videos.")
    expected = {video.name for video in videos}
    files = [p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and p.name[0] != "."]
    there = {path.name for path in files}
    filled = {path.name for path in files if path.stat().st_size}
    spellings = defaultdict(set)
    there -= {video.name for video in others} - expected
    for name in expected | there:
        spellings[unicodedata.normalize("NFC", name).casefold()].add(name)
    clashing = {name for names in spellings.values() if len(names) > 1 for name in names}
    return Presence(
        folder,
        len(expected),
        tuple(sorted(expected - filled)),
        tuple(sorted(there - expected)),
        tuple(sorted(clashing)),
    )


def require_complete(
    folder: str | Path, videos: Sequence[SuiteVideo], allow_incomplete: bool = False,
    others: Sequence[SuiteVideo] = (),
) -> Presence:  # fmt: skip
    """`presence`, refused unless complete. ValueError, or, if allowed, a result to be marked so.

    Also allowed, a folder without any of the videos is refused.
    """
    found = presence(folder, videos, others)
    if len(found.missing) == found.num_expected:
        raise ValueError(f"{found.describe()}. There is nothing to score.")
    if not (found.complete or allow_incomplete):
        raise ValueError(
            f"{found.describe()}. Make what is missing and remove the rest, or allow an incomplete "
            "result, which is called so and compares with none."
        )
    return found
