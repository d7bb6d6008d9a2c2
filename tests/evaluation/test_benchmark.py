"""A benchmark the whole way: what it makes, keeps, refuses and calls itself."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pusa.data import video
from pusa.entry import root_cause
from pusa.evaluation import makers
from pusa.evaluation.benchmark import Benchmark
from pusa.evaluation.lanes import Networks
from pusa.evaluation.metrics import ledger
from pusa.evaluation.prompts import Photos
from pusa.weights.lora import write_lora
from tests.conftest import run_pusa
from tests.evaluation.benchmarks_for_tests import ALONE, CHEAP
from tests.weights.conftest import make_adapter, make_twin

ENDINGS = (".txt", ".md", ".json", ".csv", ".tex", ".html", "_videos.csv")
DATA = ("standin.json", "standin.csv", "standin_videos.csv")
SMALL = (CHEAP, "suite.seeds=[0]")


@pytest.fixture
def counted(monkeypatch) -> dict[str, int]:
    """How many videos are made and measured."""
    counts = {"made": 0, "measured": 0}

    def counting(key: str, original):
        def call(*arguments, **named):
            counts[key] += 1
            return original(*arguments, **named)

        return call

    monkeypatch.setattr(makers, "produce", counting("made", makers.produce))
    monkeypatch.setattr(makers.ControlMaker, "make", counting("made", makers.ControlMaker.make))
    monkeypatch.setattr(ledger, "_measure_video", counting("measured", ledger._measure_video))
    return counts


def refused(run, *overrides: str) -> str:
    """Why an evaluation is."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - hydra wraps what constructors raise
        run(*overrides)
    cause = root_cause(caught.value)
    assert isinstance(cause, ValueError), repr(cause)
    return str(cause)


def means(folder: Path, stem: str = "standin") -> dict[tuple[str, str], float]:
    told = json.loads((folder / f"{stem}.json").read_text())
    return {(row["system"], row["metric"]): row["mean"] for row in told["means"]}


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*.mp4")}


def test_a_stand_in_writes_every_file_and_is_called_nowhere_by_the_benchmarks_name(done):
    files = {path.name for path in done.folder.iterdir() if path.is_file()}
    assert files == {f"standin{ending}" for ending in ENDINGS}
    told = json.loads((done.folder / "standin.json").read_text())
    assert told["title"].startswith("stand-in, not VBench")
    for file in files:
        assert "VBench-I2V" not in (done.folder / file).read_text()
    assert [s["name"] for s in told["systems"]] == [
        "base", "VTA", "static copy", "frame shuffle", "slow zoom"
    ]  # fmt: skip
    assert any("not the benchmark's" in warning for warning in told["warnings"])
    assert not list(done.folder.rglob("*.partial*"))


def test_controls_frame_the_table(done):
    found = means(done.folder)
    assert found["static copy", "dynamic_degree"] == 0
    assert found["static copy", "temporal_flickering"] > found["VTA", "temporal_flickering"]
    assert found["frame shuffle", "motion_smoothness"] < found["VTA", "motion_smoothness"]


def test_a_second_run_makes_and_measures_nothing_and_says_the_same(done, counted):
    before = {name: (done.folder / name).read_bytes() for name in DATA}
    done.again()
    assert counted == {"made": 0, "measured": 0}
    assert {name: (done.folder / name).read_bytes() for name in DATA} == before


def test_parts_in_a_fresh_folder_are_put_together_to_the_bytes_of_the_whole(done, counted):
    output = done.root / "parts"
    for part in ("1/2", "0/2"):  # whichever comes first finds nothing of the other
        done.again(f"suite.output={output}", f"part={part}")
        assert not (output / "standin.json").exists()
        assert not list(output.glob("videos/*/manifest.json"))
    made = dict(counted)
    assert made == {"made": 6 + 6 + 3 * 3, "measured": 6 + 6 + 3 * 3}
    done.again(f"suite.output={output}")
    assert counted == made
    for name in DATA:
        assert (output / name).read_bytes() == (done.folder / name).read_bytes()


def test_every_video_of_a_model_is_made_again_from_its_sidecar(done, tmp_path):
    for name in ("base", "VTA"):
        first = sorted((done.folder / "videos" / name).glob("*.mp4"))[1]
        sidecar = first.with_suffix(".json")
        assert run_pusa("generate", "--from", sidecar, "-o", tmp_path / f"{name}.mp4") == 0
        assert (tmp_path / f"{name}.mp4").read_bytes() == first.read_bytes()


def test_other_settings_are_refused_until_told_and_then_only_their_videos_are_made(bench, counted):
    folder = bench(*SMALL)
    before, videos = stamps(folder), folder / "videos"
    why = refused(bench, *SMALL, "suite.strength=0.5")
    assert "made with other settings (strength), as were 3 videos of 'VTA' in all" in why
    assert "overwrite=true" in why
    assert stamps(folder) == before
    assert "settings (sampler)" in refused(bench, *SMALL, "sampler.num_steps=3")
    assert (videos / "VTA" / "manifest.json").is_file()
    counted["made"] = 0
    bench(*SMALL, "suite.strength=0.5", "overwrite=true")
    changed = {name.split("/")[1] for name, at in stamps(folder).items() if at != before[name]}
    assert changed == {"VTA", "frame shuffle"}
    assert counted["made"] == 6
    told = json.loads((videos / "VTA" / "manifest.json").read_text())
    assert told["loras"][0]["strength"] == 0.5


def test_what_is_outdated_in_the_last_row_is_refused_before_the_first_is_made(bench, counted):
    folder = bench(*SMALL)
    shutil.rmtree(folder / "videos" / "base")
    counted["made"] = 0
    refused(bench, *SMALL, "suite.strength=0.5")
    assert counted["made"] == 0


def test_a_run_that_stopped_half_way_goes_on_and_has_no_manifest_until_then(
    bench, root, counted, monkeypatch
):
    original = makers.produce

    def failing(*arguments, **named):
        if counted["made"] == 4:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(makers, "produce", failing)
    with pytest.raises(KeyboardInterrupt):
        bench(*SMALL)
    assert not list(root.rglob("videos/VTA/manifest.json"))
    monkeypatch.setattr(makers, "produce", original)
    folder = bench(*SMALL)
    assert counted["made"] == 3 + 3 + 3 * 3
    assert (folder / "videos" / "VTA" / "manifest.json").is_file()


def test_an_image_that_changed_makes_its_videos_outdated(bench, tmp_path):
    own = tmp_path / "own images"
    picture = video.read_frames(next(Path(bench(*SMALL)).rglob("images/*/*.png")))[0][0]
    for name, image in (("Bär & 熊 é", picture), ("b.c", 255 - picture)):
        video.write_image(own / f"{name}.png", image)
        (own / f"{name}.txt").write_text(f"{name} läuft über die Brücke, 熊")
    words = ("suite=folder", f"suite.prompts.folder='{own}'", *SMALL, "suite.baseline=null",
             "suite.entries.base=null")  # fmt: skip
    folder = bench(*words)
    assert (folder / "videos" / "VTA" / "Bär & 熊 é-0.mp4").is_file()
    assert "Bär & 熊 é" in (folder / "standin_videos.csv").read_text("utf-8")
    video.write_image(own / "b.c.png", picture)
    why = refused(bench, *words)
    assert "b.c-0.mp4: was made from other files (" in why
    assert "as were 1 videos of 'VTA'" in why
    bench(*words, "overwrite=true")


def test_rows_of_equal_settings_and_awkward_names_are_rows(bench):
    row = '{lora: ["${suite.lora}"]}'
    folder = bench(
        *SMALL, "suite.entries.base=null", "suite.controls=[frame shuffle]",
        "suite.entries.VTA=null", f"+suite.entries={{v1.5 four steps: {row}, VTA: {row}}}",
        "suite.contender='v1.5 four steps'", "suite.baseline=VTA",
    )  # fmt: skip
    told = json.loads((folder / "standin.json").read_text())
    (comparison,) = [c for c in told["comparisons"] if c["second"] == "VTA"]
    assert comparison["first"] == "v1.5 four steps"
    assert (comparison["difference_value"]["mean"], comparison["p"]) == (0, 1)


def test_samples_are_counted_and_seeds_are_the_users(bench):
    folder = bench(CHEAP, "suite.seeds=[7,3]", "suite.controls=[]", "suite.baseline=null",
                   "suite.entries.base=null", "suite.prompts.num_prompts=1")  # fmt: skip
    videos = folder / "videos" / "VTA"
    seeds = {
        p.stem[-2:]: json.loads(p.read_text())["recipe"]["seed"] for p in videos.glob("*-?.json")
    }
    assert seeds.keys() == {"-0", "-1"}
    again = bench(CHEAP, "suite.seeds=[3]", "suite.controls=[]", "suite.baseline=null",
                  "suite.entries.base=null", "suite.prompts.num_prompts=1",
                  f"suite.output={folder}/other")  # fmt: skip
    (own,) = (again / "videos" / "VTA").glob("*-0.json")
    assert json.loads(own.read_text())["recipe"]["seed"] == seeds["-1"] != seeds["-0"]
    told = json.loads((folder / "standin.json").read_text())
    assert told["comparisons"] == []
    assert told["means"][0]["low"] is None  # one prompt says nothing of others


def test_text_to_video_is_given_no_image_and_a_task_of_two_is_refused(bench):
    words = (*SMALL, *ALONE[:1], "suite.baseline=null", "suite.controls=[static copy]")
    folder = bench(*words, "task=t2v")
    sidecar = json.loads(next((folder / "videos" / "VTA").glob("*-0.json")).read_text())
    assert sidecar["recipe"]["media"] == []
    assert not [file for file in sidecar["inputs"] if file.endswith(".png")]
    why = refused(bench, *words, "task=start_end", f"suite.output={folder}/two")
    assert "takes more than one image" in why


def test_two_experts_have_a_strength_each(bench, root):
    adapter = make_adapter(make_twin("wan22_t2v_a14b_tiny"), 2, 2.0, every=10)
    for expert in ("high", "low"):
        write_lora(replace(adapter, expert=expert), root / "run" / expert / "lora.safetensors")
    folder = bench(
        *SMALL, "model=wan22_tiny", "model.height=32", "model.width=32", "model.num_frames=5",
        f"suite.lora={root}/run", "suite.strength={high: 1.5, low: 0.5}",
        "suite.controls=[]", "suite.prompts.num_prompts=2",
    )  # fmt: skip
    told = json.loads((folder / "videos" / "VTA" / "manifest.json").read_text())
    assert [(x["expert"], x["strength"]) for x in told["loras"]] == [("high", 1.5), ("low", 0.5)]
    first = next((folder / "videos" / "VTA").glob("*.mp4"))
    again = root / "again.mp4"
    assert run_pusa("generate", "--from", first.with_suffix(".json"), "-o", again) == 0
    assert again.read_bytes() == first.read_bytes()


def test_what_cannot_be_is_told_at_once_before_any_video(bench, root, counted):
    own = "suite.networks.source=benchmark", f"suite.networks.folder={root}/nowhere"
    why = refused(bench, *own)
    for name in ("i2v_subject", "camera_motion", "dynamic_degree", "imaging_quality"):
        assert f"\n  {name}: " in why
    assert "temporal_flickering: " not in why
    assert "suite.dimensions=[...], or take suite.networks.source=standin" in why
    assert "nowhere.safetensors: not there" in refused(
        bench, f"suite.lora={root}/nowhere.safetensors"
    )
    assert "aesthetic_quality has no standin backbone" in refused(
        bench, "suite.dimensions=[aesthetic_quality]"
    )
    why = refused(bench, "suite.dimensions=[i2v_subject]", "suite.prompts.num_prompts=1",
                  "suite.seeds=[0]", "+suite.entries.VTA.lora_strength=1")  # fmt: skip
    assert "suite.entries.VTA: lora_strength: unknown" in why
    foreign = root / "foreign.safetensors"
    write_lora(make_adapter(make_twin("wan22_t2v_a14b_tiny"), 2, 2.0, every=10), foreign)
    why = refused(bench, f"suite.lora={foreign}")
    assert "foreign.safetensors: does not fit this model" in why
    assert counted == {"made": 0, "measured": 0}


ROWS = {"base": {}, "VTA": {"lora": ["x.safetensors"]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": ["i2v_subjekt"]}, "i2v_subjekt: unknown; .* suite.dimensions of i2v_sub"),
        ({"controls": ["still"]}, "still: unknown; suite.controls are of static copy"),
        ({"contender": "Vta"}, "suite.contender='Vta' is none of base, VTA"),
        ({"baseline": "bass"}, "suite.baseline='bass' is none of base, VTA"),
        ({"baseline": "VTA"}, "suite.contender and suite.baseline are both 'VTA'"),
        ({"seeds": []}, "name whole numbers, each once, one at least"),
        ({"seeds": [1, 1]}, "name whole numbers, each once, one at least"),
        ({"seeds": ["a"]}, "name whole numbers, each once, one at least"),
        ({"seeds": 5}, r"suite.seeds=5 is no list; write suite.seeds=\[5\]"),
        ({"dimensions": "i2v_subject"}, r"write suite.dimensions=\[i2v_subject\]"),
        ({"table": "9"}, "suite.table='9' is none of 1, "),
        ({"entries": ROWS | {"a/b": {}}}, "'a/b' cannot name a row"),
        ({"entries": ROWS | {"": {}}}, "'' cannot name a row"),
        ({"entries": ROWS | {"x*": {}}}, r"'x\*' cannot name a row"),
        ({"entries": ROWS | {"slow zoom": {}}}, "'slow zoom' cannot name a row"),
        (
            {"entries": ROWS | {"x": {"steps": 4}}},
            "entries.x: steps: unknown; a row has lora",
        ),
        ({"entries": ROWS | {"VTA": {"without": "no files"}}}, "'VTA' cannot be made: no files"),
    ],
)
def test_a_config_that_means_nothing_is_refused_by_the_name_of_its_fault(changes, message):
    given: dict[str, Any] = {
        "prompts": Photos(), "seeds": [0], "entries": ROWS, "contender": "VTA", "baseline": "base",
        "networks": Networks(), "output": "out",
    }  # fmt: skip
    assert Benchmark(**given).entries["base"].lora == ()
    numbered: dict[str, Any] = given | {"table": 1}  # as YAML has it
    assert Benchmark(**numbered).table == "1"
    with pytest.raises(ValueError, match=message):
        Benchmark(**given | changes)


def test_networks_are_of_a_known_source():
    with pytest.raises(ValueError, match=r"suite\.networks\.source='mine' is none of benchmark"):
        Networks(source="mine")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"pins: a\.pth: no file of a network; they are .*dino"):
        Networks(pins={"a.pth": "0" * 64})


def test_a_baseline_that_cannot_be_made_leaves_the_others_and_a_note(bench):
    folder = bench(*SMALL, "suite.controls=[]", "+suite.entries.base.without='its files are lost'")
    told = json.loads((folder / "standin.json").read_text())
    assert [s["name"] for s in told["systems"]] == ["VTA"]
    assert told["comparisons"] == []
    assert "base is not here: its files are lost" in told["warnings"]
