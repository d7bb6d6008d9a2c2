"""`pusa data check`: every clip of a manifest decoded once, and those that cannot be used put in
quarantine. Resumable; how one file is examined is in examine.py."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pusa.atomic import write_text
from pusa.data import clips
from pusa.data.clips import Clip
from pusa.data.examine import DEAD_WORKER, NO_END, Facts, Fault, Outcome, examine_all
from pusa.data.media import Media
from pusa.data.verdicts import WORDS, CaptionLength, CheckReport, Verdict

_FORMAT = 1  # of a line of the report; lines of another one are not believed
ExamineAll = Callable[[Sequence[Media], int, float], Iterator[tuple[Media, Outcome]]]


@dataclass(frozen=True)
class CheckSettings:
    """workers: processes; timeout: seconds for one file; min_frames: fewer are too few."""

    workers: int
    timeout: float
    min_frames: int = 1

    def __post_init__(self):
        for name, least in (("workers", 1), ("min_frames", 1)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be at least {least}, got {getattr(self, name)}.")
        if not self.timeout > 0:
            raise ValueError(f"--timeout must be positive, got {self.timeout}.")


def check(
    manifest: str | Path,
    settings: CheckSettings,
    report: str | Path | None = None,
    captions: CaptionLength = WORDS,
    quarantine: bool = True,
    progress: Callable[[Iterable], Iterable] = iter,
    examine_all: ExamineAll = examine_all,
) -> CheckReport:
    """Examine the clips of a manifest and write one line of JSON on each to `report`.

    report: by default `<manifest>.check.jsonl` beside the manifest. Files with a line there, and of
    the same size and time, are not decoded again, unless they killed a worker or ended later than a
    shorter time-out; what a stopped run had done is kept in `<report>.partial`.
    quarantine: write the dropped clips to `<manifest>.quarantine.jsonl`, for clips.usable.
    ValueError for a faulty manifest (see clips.read_manifest; lines that give no clip are put down
    in the result) and for folders that cannot be written to, before any work.
    """
    report = clips.beside(manifest, "check.jsonl") if report is None else Path(report)
    files = [report, clips.quarantine_path(manifest)][: 1 + quarantine]
    for file in files:
        _require_writable(file.parent)
    faults: list[ValueError] = []
    listed = clips.read_manifest(manifest, on_fault=faults.append)
    partial = report.with_name(f"{report.name}.partial")
    known = _read_known(report, settings) | _read_known(partial, settings)
    states = {clip.name: _state(clip.media) for clip in listed}
    todo = {
        clip.name: clip.media
        for clip in listed
        if clip.name not in known or known[clip.name][0] != states[clip.name]
    }
    names = {media: name for name, media in todo.items()}
    with partial.open("a") as journal:
        done = examine_all(list(todo.values()), settings.workers, settings.timeout)
        for _, (media, outcome) in zip(progress(todo), done, strict=True):
            name = names[media]
            known[name] = states[name], outcome
            # The line break comes first: the last line of a killed run spoils none of ours.
            journal.write("\n" + json.dumps(_line(name, states[name], outcome, settings)))
            journal.flush()
    verdicts = [_judge(clip, *known[clip.name], settings, captions) for clip in listed]
    write_text(report, "".join(json.dumps(_full_line(v, settings)) + "\n" for v in verdicts))
    partial.unlink()
    dropped = {v.clip.name: _quarantined(v) for v in verdicts if v.reason}
    if quarantine:
        clips.write_quarantine(manifest, dropped.values())
    return CheckReport(
        Path(manifest), verdicts, [str(error) for error in faults], len(todo), captions,
        [file for file in files if file.is_file()],
    )  # fmt: skip


State = tuple[int, int]  # size in bytes, time of change in ns


def _state(media: Media) -> State:
    return media.num_bytes(), media.path.stat().st_mtime_ns


def _judge(
    clip: Clip, state: State, outcome: Outcome, settings: CheckSettings, captions: CaptionLength
) -> Verdict:
    reason = message = ""
    if isinstance(outcome, Fault):
        reason, message = outcome.reason, outcome.message
    elif outcome.num_frames < settings.min_frames:
        reason = "too few frames"
        message = f"{clip.media}: {outcome.num_frames}, {settings.min_frames} are needed."
    return Verdict(clip, *state, outcome, captions.count(clip.caption), reason, message)


def _quarantined(verdict: Verdict) -> clips.Quarantined:
    return clips.Quarantined(
        verdict.clip.name, verdict.size, verdict.mtime_ns, verdict.outcome.digest, verdict.reason
    )


def _line(name: str, state: State, outcome: Outcome, settings: CheckSettings) -> dict[str, Any]:
    kind = "facts" if isinstance(outcome, Facts) else "fault"
    return {
        "format": _FORMAT, "media": name, "size": state[0], "mtime_ns": state[1],
        "timeout": settings.timeout, kind: asdict(outcome),
    }  # fmt: skip


def _full_line(verdict: Verdict, settings: CheckSettings) -> dict[str, Any]:
    state = (verdict.size, verdict.mtime_ns)
    return {
        **_line(verdict.clip.name, state, verdict.outcome, settings),
        "where": verdict.clip.where,
        "caption_length": verdict.caption_length,
        "usable": not verdict.reason,
        "reason": verdict.reason,
    }


def _read_known(file: Path, settings: CheckSettings) -> dict[str, tuple[State, Outcome]]:
    """What the lines of a report say that need not be found out again."""
    known = {}
    for text in file.read_text("utf-8").split("\n") if file.is_file() else ():
        try:
            line = json.loads(text)
            if line["format"] == _FORMAT and not _try_again(line, settings):
                known[line["media"]] = (line["size"], line["mtime_ns"]), _outcome(line)
        except (ValueError, KeyError, TypeError):
            continue  # the end of a run that was killed
    return known


def _try_again(line: Mapping[str, Any], settings: CheckSettings) -> bool:
    """Whether the fault may have been the machine's: too little memory, too little time."""
    reason = line.get("fault", {}).get("reason")
    return reason == DEAD_WORKER or (reason == NO_END and line["timeout"] < settings.timeout)


def _outcome(line: Mapping[str, Any]) -> Outcome:
    if "fault" in line:
        return Fault(**line["fault"])
    lists = {"cuts": tuple(line["facts"]["cuts"]), "looks": tuple(line["facts"]["looks"])}
    return Facts(**(line["facts"] | lists))


def _require_writable(folder: Path) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot be written to ({error.strerror}); name a place for the report with "
            "--report FILE, and do without the quarantine with --no-quarantine."
        ) from error
