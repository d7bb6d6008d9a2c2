"""VBench's own files: its results into our rows, our videos into its folder. Runs no VBench."""

import filecmp
import json
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.atomic import replacing
from pusa.data.hashing import file_digest
from pusa.evaluation.score import Row
from pusa.evaluation.scoring import KNOWN, SCALES, VideoScore, dimension_score
from pusa.evaluation.vbench_suite import Prompt, SuiteVideo, few

NUM_FRAMES = "num_frames"  # the metric of a row that says how long its video is
PERCENT = "imaging_quality"  # VBench keeps it 0 to 100 per video, 0 to 1 in its mean
ROUNDING = 1e-4  # of means: VBench adds float32 and numpy scalars in varying orders


@dataclass(frozen=True)
class OfficialResults:
    """What VBench measured. means: as its file has them, in fractions; camera: of each kind of
    movement that was asked for; videos: fractions; source: names the files, for rows."""

    means: Mapping[str, float]
    camera: Mapping[str, float]
    videos: tuple[VideoScore, ...]
    source: str


def read_results(
    path: str | Path, prompts: Sequence[Prompt], num_frames: Mapping[str, int] | None = None
) -> OfficialResults:
    """A *_eval_results.json of VBench-I2V, or a folder of them with some dimensions each.

    num_frames: by file name; needed where videos differ in length, because two means are over
    frames and VBench's file does not always say how many there were. ValueError for unknown
    dimensions or videos, one dimension in two files, a video twice, a score that is not finite, and
    a mean that its videos do not give.
    """
    path = Path(path)
    files = sorted(path.glob("*_eval_results.json")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(f"{path}: no *_eval_results.json, which VBench writes.")
    stems = {prompt.stem for prompt in prompts}
    means, camera, videos = {}, {}, []
    for file in files:
        for name, entry in _load(file).items():
            where = f"{file}, {name}"
            if name not in KNOWN:
                raise ValueError(f"{where}: no dimension of VBench-I2V ({', '.join(KNOWN)}).")
            if name in means:
                raise ValueError(f"{where}: is in another file of the folder, too; keep one.")
            mean, kinds, listed = _entry(where, name, entry)
            scores = [_video(where, name, item, stems, num_frames or {}) for item in listed]
            _check_videos(where, scores)
            means[name] = _check_mean(where, name, mean, scores)
            camera.update(kinds)
            videos += scores
    source = "VBench " + " ".join(file_digest(file)[:16] for file in files)
    return OfficialResults(means, camera, tuple(videos), source)


def to_rows(
    videos: Sequence[VideoScore], prompts: Sequence[Prompt], system: str, source: str
) -> list[Row]:
    """As scores.jsonl keeps them; the length of a video, where known, is a row of NUM_FRAMES.

    source: stands in the place of the videos' fingerprints.
    """
    index = {prompt.stem: i for i, prompt in enumerate(prompts)}
    lengths: dict[tuple[str, int], int] = {}
    rows = []
    for score in videos:
        rows.append(
            Row(system, score.sample, index[score.prompt], score.dimension, score.value, source)
        )
        if score.num_frames:
            lengths[score.prompt, score.sample] = score.num_frames
    return rows + [
        Row(system, sample, index[prompt], NUM_FRAMES, float(length), source)
        for (prompt, sample), length in lengths.items()
    ]


def from_rows(rows: Sequence[Row], prompts: Sequence[Prompt], system: str) -> list[VideoScore]:
    """The way back: the rows of one system in VBench-I2V's dimensions, others are passed over.

    ValueError for an index that the suite does not have, and a dimension without a value.
    """
    ours = [row for row in rows if row.system == system]
    lengths = {(r.index, r.seed): int(r.value or 0) for r in ours if r.metric == NUM_FRAMES}
    scores = []
    for row in ours:
        if row.metric not in KNOWN:
            continue
        if not 0 <= row.index < len(prompts):
            raise ValueError(
                f"{system}: a score of prompt {row.index}, but the suite has {len(prompts)}; these "
                "scores are of another suite."
            )
        if row.value is None:
            raise ValueError(
                f"{system}: {prompts[row.index].stem!r}, sample {row.seed}, has no {row.metric}; "
                "it applies to every video of the dimension, score it again."
            )
        length = lengths.get((row.index, row.seed), 0)
        stem = prompts[row.index].stem
        scores.append(VideoScore(row.metric, stem, row.seed, row.value, length))
    return scores


def export_videos(videos: Sequence[tuple[SuiteVideo, Path]], folder: str | Path) -> int:
    """Put videos where VBench looks: one folder, exact names. Returns how many are new.

    Hard links, or copies where the file system has none. What is there already and the same is
    kept. ValueError, before anything is written, for a video that is not there, one that is there
    and differs, and other files in the folder: VBench takes the ending of all from the first.
    """
    folder = Path(folder)
    wanted = {video.name: Path(source) for video, source in videos}
    missing = [str(source) for source in wanted.values() if not source.is_file()]
    if missing:
        raise ValueError(f"{few(missing, 'videos')} not there; generate them first.")
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(present - wanted.keys())
    if foreign:
        raise ValueError(f"{folder}: {few(foreign, 'files')} of no video; use another folder.")
    different = [
        name for name in sorted(present) if not filecmp.cmp(wanted[name], folder / name, False)
    ]
    if different:
        raise ValueError(
            f"{folder}: {few(different, 'videos')} there and different; use another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    fresh = [name for name in wanted if name not in present]
    for name in fresh:
        _place(wanted[name], folder / name)
    return len(fresh)


def _place(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise ValueError(f"{target}: another process exports here; wait for it.") from None
    except OSError:
        with replacing(target) as partial:
            shutil.copyfile(source, partial)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}).") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file}: expected an object of dimensions, as VBench writes it.")
    return content


def _entry(where: str, name: str, entry: Any) -> tuple[float, dict[str, float], list]:
    """Mean, means of camera movements, videos. NaN is VBench's mean of no videos: left out."""
    size = 3 if name == "camera_motion" else 2
    if not isinstance(entry, list) or len(entry) != size or not isinstance(entry[-1], list):
        raise ValueError(f"{where}: expected {size} items, a mean first and a list of videos last.")
    if not entry[-1]:
        raise ValueError(f"{where}: no videos; VBench found none of this dimension.")
    kinds = entry[1] if size == 3 else {}
    if not isinstance(kinds, dict) or not isinstance(entry[0], int | float):
        raise ValueError(f"{where}: expected a number and, for the camera, means by movement.")
    return entry[0], {k: v for k, v in kinds.items() if math.isfinite(v)}, entry[-1]


def _video(
    where: str, name: str, item: Any, stems: set[str], num_frames: Mapping[str, int]
) -> VideoScore:
    try:
        file, value = Path(item["video_path"]).name, float(item["video_results"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{where}: a video without video_path and video_results.") from error
    match = re.fullmatch(r"(.+)-(\d+)\.\w+", file)
    if match is None or match[1] not in stems:
        raise ValueError(f"{where}: {file!r} is no video of the suite; name the suite it is of.")
    if not math.isfinite(value):
        raise ValueError(f"{where}: {file!r} has {value}; score it again with VBench.")
    pairs = item.get("cnt_per_video")  # background_consistency says it, in newer versions
    length = num_frames.get(file, 0 if pairs is None else int(pairs) + 1)
    return VideoScore(
        name, match[1], int(match[2]), value / 100 if name == PERCENT else value, length
    )


def _check_videos(where: str, scores: Sequence[VideoScore]) -> None:
    counts: dict[tuple[str, int], int] = defaultdict(int)
    for score in scores:
        counts[score.prompt, score.sample] += 1
    twice = [f"{prompt}-{sample}" for (prompt, sample), count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{where}: {few(twice, 'videos')} listed twice; score the folder again.")


def _check_mean(where: str, name: str, mean: float, scores: Sequence[VideoScore]) -> float:
    """The mean as a fraction, if its videos give it.

    Either mean is VBench's for subject_consistency: over frames in one process, over videos in
    several. Old versions left imaging_quality's mean at 0 to 100.
    """
    if name == PERCENT and mean > 1:
        mean /= 100
    plain = math.fsum(score.value for score in scores) / len(scores)
    fitting = [dimension_score(scores), plain] if name == "subject_consistency" else []
    fitting = fitting or [dimension_score(scores)]
    if not any(math.isclose(mean, own, abs_tol=ROUNDING) for own in fitting):
        by_frames = name in SCALES and SCALES[name].by_frames
        remedy = (
            "it is over frames, so give num_frames of videos that differ in length"
            if by_frames
            else "the file was changed or cut, score again"
        )
        raise ValueError(
            f"{where}: its mean is {mean:.6f}, but its videos give {fitting[0]:.6f}; {remedy}."
        )
    return mean
