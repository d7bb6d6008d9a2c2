"""What a benchmark has to sample, row by row: counted without its list, images or weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pusa.evaluation.benchmark import Benchmark
from pusa.evaluation.entries import Entry
from pusa.evaluation.photos import photo_prompts
from pusa.evaluation.prompts import Folder, Photos, PromptSource, Public, Subset
from pusa.evaluation.vbench_suite import folder_suite
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Sampler
from pusa.pipelines.schedule import schedule_of

# Of VBench-I2V's list; tests/evaluation/test_vbench_suite.py counts the list itself where it is.
PUBLIC_COUNTS: Mapping[str, int] = MappingProxyType(
    {"subject": 246, "background": 109, "camera": 763}
)


@dataclass(frozen=True)
class Workload:
    """A row that is sampled here. passes: evaluations of a network for one video, those of guidance
    included."""

    name: str
    entry: Entry
    model: Model
    num_videos: int
    passes: int


def workloads(bench: Benchmark, model: Model, sampler: Sampler, num_frames: int) -> list[Workload]:
    """Of all rows that are sampled. ValueError for prompts that cannot be counted."""
    num_videos = num_prompts(bench.prompts) * len(bench.seeds)
    found = []
    for name, entry in bench.entries.items():
        if entry.is_sampled and not entry.without:
            own, steps = entry.model_of(model), entry.sampler_of(sampler)
            found.append(Workload(name, entry, own, num_videos, passes(own, steps, num_frames)))
    return found


def passes(model: Model, sampler: Sampler, num_frames: int) -> int:
    """Evaluations of a network for one video of so many frames: two a call under guidance."""
    calls = schedule_of(model, sampler, {}, num_frames).calls
    low, high = sampler.guidance_interval
    doubled = sampler.guidance_scale != 1
    return sum(2 if doubled and low <= call.step <= high else 1 for call in calls)


def num_prompts(source: PromptSource) -> int:
    """How many prompts a suite will have. ValueError for a source that is not known."""
    match source:
        case Public():
            return sum(PUBLIC_COUNTS.values())
        case Subset(of=Public()):
            asked = {"subject": source.subject, "background": source.background,
                     "camera": source.camera}  # fmt: skip
            return sum(PUBLIC_COUNTS[kind] if n is None else n for kind, n in asked.items())
        case Photos():
            return len(photo_prompts()[: source.num_prompts])
        case Folder():
            return len(folder_suite(source.folder, 1).prompts)
    raise ValueError(f"the prompts of {source} cannot be counted; use Public, Photos or Folder.")
