"""A user's own clips as a suite with a truth, though without knowledge of what they show."""

from pathlib import Path

from pusa.data import video
from pusa.data.clips import Clip
from pusa.data.hashing import fingerprint
from pusa.evaluation.compare import CRF
from pusa.evaluation.makers import Bars
from pusa.evaluation.suite import ClipItem
from pusa.pipelines.build import Model
from pusa.pipelines.prepare import Source
from pusa.pipelines.sidecar import read_made, write_sidecar


def clip_items(
    source: Source, model: Model, folder: Path, num_clips: int | None, progress: Bars
) -> list[ClipItem]:
    """The beginnings of the first usable clips, as long, large and fast as the model's videos are,
    written to `folder` as mp4 once; num_clips: None for all.

    ValueError for fewer than two; VideoError for a clip that is damaged or too short.
    """
    clips = source.clips()[:num_clips]
    if len(clips) < 2:
        raise ValueError(f"{source.manifest}: holds {len(clips)} clips; a transition needs two.")
    items = []
    for index, clip in enumerate(progress("clips")(clips)):
        path = folder / f"{index:04d}.mp4"
        _write(clip, model, path)
        items.append(ClipItem(index, clip.caption, path, model.num_frames))
    return items


def _write(clip: Clip, model: Model, path: Path) -> None:
    """A clip's beginning, unless it is there."""
    found = video.probe(clip.media)
    chosen = video.choose_frames(
        found.timestamps, model.num_frames, model.fps, name=clip.media
    ).indices
    size = model.height, model.width
    recipe = {"frames": list(chosen), "size": list(size), "fps": model.fps, "crf": CRF}
    inputs = {str(clip.media): fingerprint(clip.path)}
    made = read_made(path)
    if made is not None and made.whole and (made.recipe, made.inputs) == (recipe, inputs):
        return
    frames = video.read_fitted(clip.media, chosen, *size, probe=found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    video.write_video(path, frames, model.fps, CRF)
    write_sidecar(path, recipe, inputs, (), len(frames))
