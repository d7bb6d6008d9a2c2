"""What `pusa data check` found of each clip, and what it says of them all: in words and as JSON."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from pusa.data.clips import Clip
from pusa.data.examine import Facts, Outcome

_NUM_EXAMPLES, _NUM_FORMATS = 3, 12
_NEAR_BITS = 12  # of the 192 of three difference hashes; other scenes differ in about half of them
_FLAT_BITS = 8  # a hash with fewer bits set, or unset, is of a flat picture and tells nothing


@dataclass(frozen=True)
class CaptionLength:
    """How captions are measured: count in `unit`; those over `limit` will be cut."""

    count: Callable[[str], int]
    unit: str
    limit: float


WORDS = CaptionLength(lambda caption: len(caption.split()), "words", inf)


@dataclass(frozen=True)
class Verdict:
    """One clip: the state of its file when it was decoded, what came of it, and why it is dropped.

    reason: "" of a usable clip, else a few words, the same for all such clips.
    """

    clip: Clip
    size: int
    mtime_ns: int
    outcome: Outcome
    caption_length: int
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class CheckReport:
    """All verdicts, in the manifest's order; faults: lines of the manifest that give no clip;
    num_decoded: files that were decoded now, not known from an earlier run; files: written."""

    manifest: Path
    verdicts: Sequence[Verdict]
    faults: Sequence[str]
    num_decoded: int
    captions: CaptionLength
    files: Sequence[Path]

    @property
    def ok(self) -> bool:
        """Whether every clip that the manifest lists is usable."""
        return not self.dropped()

    def kept(self) -> list[tuple[Verdict, Facts]]:
        return [
            (verdict, verdict.outcome)
            for verdict in self.verdicts
            if isinstance(verdict.outcome, Facts) and not verdict.reason
        ]

    def dropped(self) -> dict[str, list[str]]:
        """Messages by reason, the most frequent first."""
        found: dict[str, list[str]] = {}
        for verdict in self.verdicts:
            if verdict.reason:
                found.setdefault(verdict.reason, []).append(verdict.message)
        if self.faults:
            found["mend the manifest"] = list(self.faults)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def formats(self) -> dict[str, int]:
        """How many usable clips are of which codec, size and rate, the most frequent first."""
        return dict(Counter(_format(facts) for _, facts in self.kept()).most_common())

    def warnings(self) -> dict[str, list[str]]:
        """What is usable but may surprise, by kind: "name (detail)" each."""
        kept = self.kept()
        limit, unit = self.captions.limit, self.captions.unit
        found = {
            "variable frame rate": [
                f"{v.clip.name} ({f.fps:.5g} fps on average)" for v, f in kept if f.variable_rate
            ],
            "rotation flag": [f"{v.clip.name} ({f.rotation}°)" for v, f in kept if f.rotation],
            "cuts or flashes": [
                f"{v.clip.name} (at frame {', '.join(map(str, f.cuts))})" for v, f in kept if f.cuts
            ],
            "listed more than once": list(_listed_again(kept)),
            "same file under another name": list(_copies(kept)),
            "looks like another clip": list(_near_copies(kept)),
            f"caption over {limit} {unit}, will be cut": [
                f"{v.clip.name} ({v.caption_length})" for v, _ in kept if v.caption_length > limit
            ],
        }
        return {kind: names for kind, names in found.items() if names}

    def text(self) -> str:
        """The findings in words."""
        dropped, kept, warnings = self.dropped(), self.kept(), self.warnings()
        num_dropped = sum(map(len, dropped.values()))
        lines = [
            f"{self.manifest}: {len(self.verdicts) + len(self.faults)} clips, {len(kept)} usable, "
            f"{num_dropped} dropped; {self.num_decoded} files decoded now"
        ]
        for title, groups in (("dropped", dropped), ("warnings", warnings)):
            lines += [f"{title}:"] if groups else []
            for name, examples in groups.items():
                lines.append(f"{len(examples):8d}  {name}")
                lines += [f"{'':12}{example}" for example in examples[:_NUM_EXAMPLES]]
                if len(examples) > _NUM_EXAMPLES:
                    lines.append(f"{'':12}and {len(examples) - _NUM_EXAMPLES} more")
        if kept:
            formats = self.formats()
            lines += ["usable:"]
            lines += [f"{n:8d}  {name}" for name, n in list(formats.items())[:_NUM_FORMATS]]
            if len(formats) > _NUM_FORMATS:
                lines.append(f"{'':10}and {len(formats) - _NUM_FORMATS} more formats")
            lines.append(f"  frames    {_spread([f.num_frames for _, f in kept])}")
            lines.append(f"  seconds   {_spread([f.duration for _, f in kept])}")
            captions = _spread([v.caption_length for v, _ in kept])
            lines.append(f"  captions  {captions} {self.captions.unit}")
        return "\n".join([*lines, *(f"wrote {path}" for path in self.files)])

    def to_json(self) -> dict[str, Any]:
        lengths = [v.caption_length for v, _ in self.kept()]
        return {
            "manifest": str(self.manifest),
            "ok": self.ok,
            "clips": len(self.verdicts) + len(self.faults),
            "usable": len(self.kept()),
            "decoded": self.num_decoded,
            "dropped": self.dropped(),
            "warnings": self.warnings(),
            "formats": self.formats(),
            "caption_length": {
                "unit": self.captions.unit,
                "median": statistics.median(lengths) if lengths else 0,
                "longest": max(lengths, default=0),
            },
        }


def _format(facts: Facts) -> str:
    rate = f", {facts.fps:.5g} fps" if facts.fps else ""
    return f"{facts.codec} {facts.pixel_format}, {facts.width}x{facts.height}{rate}"


def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return (
        f"{low:.4g}"
        if low == high
        else f"{low:.4g} to {high:.4g}, median {statistics.median(values):.4g}"
    )


Kept = Sequence[tuple[Verdict, Facts]]


def _listed_again(kept: Kept) -> Iterator[str]:
    first: dict[str, str] = {}
    for verdict, _ in kept:
        clip = verdict.clip
        if clip.name in first:
            yield f"{clip.name} ({first[clip.name]} and {clip.where})"
        first.setdefault(clip.name, clip.where)


def _copies(kept: Kept) -> Iterator[str]:
    first: dict[str, str] = {}
    for verdict, facts in kept:
        original = first.setdefault(facts.digest, verdict.clip.name)
        if original != verdict.clip.name:
            yield f"{verdict.clip.name} (is {original})"


def _near_copies(kept: Kept) -> Iterator[str]:
    """Clips of which one of three hashes equals, and the others nearly equal, an earlier clip's.

    Looking up one hash keeps this linear in the number of clips; a copy that changed all three by
    a bit is not found.
    """
    first: dict[tuple[int, str], tuple[Verdict, Facts]] = {}
    for verdict, facts in kept:
        for place, look in enumerate(facts.looks):
            if not _FLAT_BITS <= int(look, 16).bit_count() <= 64 - _FLAT_BITS:
                continue
            other, its = first.setdefault((place, look), (verdict, facts))
            if its.digest != facts.digest and _distance(its, facts) <= _NEAR_BITS:
                yield f"{verdict.clip.name} (like {other.clip.name})"
                break


def _distance(a: Facts, b: Facts) -> int:
    """Bits in which the hashes of two clips differ."""
    return sum((int(x, 16) ^ int(y, 16)).bit_count() for x, y in zip(a.looks, b.looks, strict=True))
