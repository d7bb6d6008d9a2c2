"""Studies: what is measured of which run, kept, and measured again when the run changes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import evaluate
import train
from pusa import entry
from pusa.evaluation.study import Study, read_rows, write_rows
from pusa.evaluation.study_measure import Setting, Tools, result_of
from pusa.evaluation.suite import toy_suite
from pusa.pipelines.tasks import Task
from tests.conftest import REPOSITORY, compose_config

TASKS = {"i2v": Task("i2v", ({"at": 0},)), "t2v": Task("t2v")}
FEW = ["suite.source.toy.num_clips=2", "study.num_steps=1", "study.seeds=0",
       "study.controls=[base]"]  # fmt: skip


def study(**changes) -> Study:
    arguments = {
        "name": "s", "variants": "a,b", "seeds": "0,1", "settings": [{"strength": [1.0, 2.0]}],
        "tasks": TASKS, "folder": "runs", "tables": "tables", "page": "page.md",
    }  # fmt: skip
    return Study(**(arguments | changes))


def test_settings_are_the_product_of_their_lists():
    found = study(settings=[{"strength": [1.0, 2.0], "multiplier": [0, 0.2]}, {"task": ["t2v"]}])
    assert [(s.task, s.strength, s.multiplier) for s in found.all_settings()] == [
        ("i2v", 1.0, 0), ("i2v", 1.0, 0.2), ("i2v", 2.0, 0), ("i2v", 2.0, 0.2), ("t2v", 1.0, 0.0),
    ]  # fmt: skip
    assert found.units() == [("base", 0), ("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert study(seeds=3).units()[1:] == [("a", 3), ("b", 3)]


def test_what_does_not_matter_to_a_run_is_left_out():
    asked = Setting("i2v", 1.5, 0.2, 10, "repeated", 100)
    assert asked.of("a", True) == Setting("i2v", 1.5, 0.2, 10, None, 100)
    assert asked.of("a", False).strength is None
    assert asked.of("base", False) == Setting("i2v", None, 0.2, 10, None, None)
    assert asked.of("static copy", False) == Setting("i2v", None, None, None, None, None)
    later = Setting("keyframes", 1.0, 0.2, 10, "alone", None).of("a", True)
    assert (later.multiplier, later.encode) == (None, "alone")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"settings": []}, "settings is empty"),
        ({"settings": [{"strenght": [1.0]}]}, "'strenght' is unknown; use task, strength"),
        ({"settings": [{"task": ["i2i"]}]}, "no task 'i2i'"),
        ({"controls": ["truth"]}, "'truth' is unknown; use base, static copy, codec"),
    ],
)
def test_a_bad_study_is_told_the_remedy(changes, told):
    with pytest.raises(ValueError, match=told):
        study(**changes)


def test_tables_come_back_and_a_bad_line_is_named(tmp_path):
    path = tmp_path / "t.csv"
    head = {"variant": "a", "seed": 0, "task": "i2v", "strength": 1.5, "multiplier": None,
            "num_steps": 10, "encode": None, "at_step": None, "clip": 3, "mark": "x"}  # fmt: skip
    rows = [head | {"psnr": 1.25}, head | {"clip": 4, "psnr": None}]
    write_rows(path, rows)
    assert read_rows(path) == [head | {"psnr": 1.25}, head | {"clip": 4}]
    path.write_text(path.read_text().replace("1.25", "much"))
    with pytest.raises(ValueError, match=r"t\.csv:2: not a measurement .*much.* delete the line"):
        read_rows(path)


COMMITTED = sorted(p.stem for p in (REPOSITORY / "data" / "replica" / "studies").glob("*.csv"))


@pytest.mark.parametrize("name", [n for n in COMMITTED if n != "experts"])
def test_the_committed_tables_were_measured_under_todays_conditions(name, shared_data):
    """Else nobody could go on from them: every measurement would be made again. (The experts' base
    is not committed: what makes it is, replica/expert_base.)"""
    cfg = compose_config(
        "evaluate", f"experiment=replica/{name}", "name=x", f"paths.root={shared_data}",
        "study.variants=independent", "study.seeds=0",
    )  # fmt: skip
    model, sampler, suite, wanted = map(entry.build, (cfg.model, cfg.sampler, cfg.suite, cfg.study))
    suite.source.render(entry.progress_bars)
    items = toy_suite(suite.source.path.parent, suite.source.num_clips)
    tools = Tools(model, None, None, items, dict(wanted.tasks), sampler)  # pyright: ignore[reportArgumentType]
    marks = {row["mark"].split("-")[0] for row in read_rows(wanted.table)}
    assert marks == {tools.conditions}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shared_data):
    """A root with two seeds of one variant, trained for two steps."""
    root = shared_data
    for seed in (0, 1):
        train.train(compose_config(
            "train", "experiment=replica/strategies", "variant=independent", f"seed={seed}",
            f"name=replica/independent/seed{seed}", f"paths.root={root}", "data.num_clips=8",
            "data.heldout.toy.num_clips=2", "batch_size=2", "trainer.max_steps=2", "lora.rank=4",
            "callbacks.snapshots.steps=[1]", "study=null",
        ))  # fmt: skip
    return root


def evaluated(root: Path, *overrides: str) -> list[dict]:
    cfg = compose_config(
        "evaluate", "experiment=replica/strategies", "name=x", f"paths.root={root}",
        "study.variants=independent", *FEW, f"study.tables={root}/tables",
        f"study.page={root}/docs/replica.md", *overrides,
    )  # fmt: skip
    evaluate.evaluate(cfg)
    return read_rows(root / "tables" / "strategies.csv")


@pytest.mark.timeout(400)
def test_a_study_from_runs_to_the_page(trained, monkeypatch, caplog):
    from pusa.evaluation import study as module

    done = []
    real = module.measure
    monkeypatch.setattr(module, "measure", lambda *a: done.append(a[1:]) or real(*a))
    settings = "study.settings=[{strength:[1.0,2.0]},{task:[t2v],at_step:[1]}]"
    part = evaluated(trained, settings, "study.seeds=[0,1]", "part=1/2")
    assert part == []  # its share is measured, there is no table
    rows = evaluated(trained, settings, "study.seeds=[0,1]")
    assert len(done) == len({*done}) == 2 + 2 * 3  # nothing twice
    assert len(rows) == 2 * 8
    i2v = [r for r in rows if r["task"] == "i2v"]
    assert {r["variant"] for r in i2v} == {"base", "independent"}
    assert all(r["psnr_first_frame"] > 20 for r in i2v)  # given clean: the codec's own
    texts = [r for r in rows if r["task"] == "t2v"]
    assert all(0.3 < r["loss"] < 1.5 and "psnr_continuation" not in r for r in texts)
    page = (trained / "docs" / "replica.md").read_text()
    assert "## strategies" in page
    assert (trained / "docs" / "images" / "replica_strategies_1.png").is_file()

    # Weights that changed are measured again, alone.
    done.clear()
    file = result_of(trained / "outputs/replica/independent/seed1", None)
    tensors = load_file(file)
    save_file({k: v * 1.5 for k, v in tensors.items()}, file, metadata=metadata(file))
    again = evaluated(trained, settings, "study.seeds=[0,1]")
    assert [(variant, setting.strength) for variant, _, setting in done] == [
        ("independent", 1.0), ("independent", 2.0)
    ]  # fmt: skip
    assert [r for r in again if r["seed"] == 0] == [r for r in rows if r["seed"] == 0]

    # A run that is gone is taken from the table; one that was never there is asked for.
    (trained / "outputs/replica/independent/seed1").rename(trained / "gone")
    done.clear()
    with caplog.at_level("INFO"):
        assert evaluated(trained, settings, "study.seeds=[0,1]") == again
    assert not done
    assert "its rows in" in caplog.text
    with pytest.raises(ValueError, match=r"seed5: no such run; train it first: python train\.py"):
        evaluated(trained, settings, "study.seeds=[5]")


def metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.timeout(400)
def test_every_task_is_measured(trained):
    rows = evaluated(
        trained, "study.controls=[base,static copy,codec]", "study.variants=[]",
        "study.settings=[{task:[start_end,keyframes,completion,extension,transition,i2v]}]",
    )  # fmt: skip
    by = {(r["variant"], r["task"], r["clip"]): r for r in rows}
    clips = {clip for _, _, clip in by}
    for clip in clips:
        for task in ("start_end", "keyframes", "completion", "extension"):
            row = by["base", task, clip]
            assert row["psnr_given"] > row["psnr_free"] > 3  # one step makes a blur
        assert by["base", "transition", clip]["largest_edge"] > 0
        assert by["codec", "i2v", clip]["psnr_continuation"] > 20
        still = by["static copy", "i2v", clip]
        assert (still["psnr_first_frame"], still["dynamic_degree"]) == (60.0, 0.0)
    assert {variant for variant, task, _ in by if task != "i2v"} == {"base"}


def test_the_first_frame_is_given_clean_and_with_noise_it_is_not(trained):
    rows = evaluated(
        trained, "study.variants=[]", "study.settings=[{multiplier:[0.0,1.0]}]"
    )  # fmt: skip
    first = {(r["multiplier"], r["clip"]): r["psnr_first_frame"] for r in rows}
    clips = {clip for _, clip in first}
    assert all(first[0.0, clip] > first[1.0, clip] + 5 for clip in clips)


def test_the_measured_base_is_the_base(trained):
    """The text-to-video loss of the study is that of the toy suite's own function."""
    from pusa.entry import build
    from pusa.evaluation.suite import toy_suite
    from pusa.evaluation.systems import shared_timestep_losses

    rows = evaluated(trained, "study.variants=[]", "study.settings=[{task:[t2v]}]")
    cfg = compose_config("evaluate", "experiment=tiny_vta", "name=x", f"paths.root={trained}",
                         FEW[0])  # fmt: skip
    model, source = build(cfg.model), build(cfg.suite.source)
    items = toy_suite(source.path.parent, 2)
    losses = shared_timestep_losses(
        model.build_experts(), model, model.build_vae(), model.build_text_encoder(), items, 0
    )
    expected = losses.mean(1).tolist()
    torch.testing.assert_close([r["loss"] for r in rows], expected, atol=1e-4, rtol=1e-4)
