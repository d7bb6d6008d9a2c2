"""The paper's tables as experiments: rows and settings as printed, a twin that goes all the way."""

import re
from dataclasses import replace
from functools import cache

import pytest

import evaluate
import train
from pusa.entry import build
from pusa.evaluation.entries import Entry, Training
from pusa.evaluation.published import find, published
from tests import processes
from tests.conftest import compose_config, run_pusa

TABLES = list(dict.fromkeys(row.table for row in published()))
TWIN = (
    "model=wan21_t2v_14b_tiny",
    "suite=photos",
    "suite.prompts.num_prompts=2",
    "suite.seeds=[0]",
)
# Strategy -> (p_async, first_frame_clean) of the levels in training.
LEVELS = {"random": (1.0, 0.0), "I2V": (0.0, 1.0), "PTSS.2": (0.2, 0.0), "PTSS.5": (0.5, 0.0),
          "PTSS.8": (0.8, 0.0)}  # fmt: skip


def composed(table: str, *overrides: str):
    return compose_config("evaluate", f"experiment=paper/table{table}", "name=x", *overrides)


def compose_training(run: Training):
    return compose_config("train", *run.overrides.split())


def said(table: str, row: str) -> dict:
    """What a printed row's name and its table's caption say of its settings."""
    of_captions = {
        "1": {"checkpoint": 900, "rank": 512},
        "3": {"checkpoint": 900, "rank": 512},
        "4a": {"checkpoint": 750},
        "4b": {"checkpoint": 900, "rank": 512, "strength": 1.4},
        "4c": {"rank": 512},
        "5a": {"height": 480},
    }
    facts: dict = {"num_steps": 10, "strategy": "random"} | of_captions.get(table, {"rank": 512})
    patterns = {
        "num_steps": r"^(\d+) steps", "rank": r"^r(\d+) ", "strategy": r"^(random|I2V|PTSS\.\d) ",
        "checkpoint": r"(?:^| )(\d{3,4})(?: |$)", "strength": r" (?:a|alpha )(\d\.\d)$",
    }  # fmt: skip
    for key, pattern in patterns.items():
        if match := re.search(pattern, row):
            kind = {"strength": float, "strategy": str}.get(key, int)
            facts[key] = kind(match[1])
    if match := re.search(r"high (\S+) low (\S+)$", row):
        facts["strength"] = {"high": float(match[1]), "low": float(match[2])}
    return facts


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_those_that_are_printed_and_made_as_their_names_say(table: str, root):
    cfg = composed(table)
    suite = build(cfg.suite)
    assert (suite.table, suite.published) == (table, False)
    assert list(suite.entries) == [row.row for row in published() if row.table == table]
    made = {name: entry for name, entry in suite.entries.items() if not entry.without}
    assert suite.contender in made
    compose = cache(compose_training)
    for name, entry in made.items():
        facts, run = said(table, name), compose(entry.trained_by)
        strategy = run.timesteps.p_async, run.timesteps.first_frame_clean
        assert strategy == LEVELS[facts.pop("strategy")]
        if "full" in name:
            assert run.lora is None
        else:
            assert run.lora.rank == run.lora.alpha == facts.pop("rank", 512)
            assert "strength" in facts or table == "1"
        assert run.model.height == cfg.model.height == facts.pop("height", 720)
        for key, value in facts.items():
            assert getattr(entry, key) == value, (name, key)


def test_the_names_are_read_as_they_are_meant():
    """So that the test above can fail."""
    assert said("4a", "r256 a1.7") == {"num_steps": 10, "strategy": "random", "checkpoint": 750,
                                       "rank": 256, "strength": 1.7}  # fmt: skip
    assert said("4b", "20 steps")["num_steps"] == 20
    assert said("5a", "Ours full fine-tune 150")["checkpoint"] == 150
    assert said("5b", "PTSS.5 450 a1.4") == {"num_steps": 10, "strategy": "PTSS.5", "rank": 512,
                                             "checkpoint": 450, "strength": 1.4}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_every_checkpoint_is_saved_kept_and_where_the_row_looks(table: str, root):
    compose = cache(compose_training)
    for entry in build(composed(table).suite).entries.values():
        if entry.trained_by is None:
            assert entry.without
            continue
        run = compose(entry.trained_by)
        saved = run.callbacks.checkpoints
        assert run.paths.run == entry.trained_by.folder
        assert entry.checkpoint % saved.every == 0
        assert entry.checkpoint <= run.trainer.max_steps
        assert saved.keep_last * saved.every >= run.trainer.max_steps
        assert (run.batch_size, run.module.optimizer.lr, run.module.schedule) == (8, 1e-5, None)
        assert entry.trained_by.experts == (("high", "low") if run.model.get("boundary") else ())


def test_sampling_is_what_the_paper_states_and_what_is_chosen(root):
    cfg = composed("4c")
    assert (cfg.sampler.num_steps, cfg.sampler.method) == (10, "euler")
    assert cfg.sampler.guidance_scale == 3.0
    assert build(cfg.task).given[0].multipliers == (0.0,)
    prompts = build(cfg.suite).prompts
    assert prompts.subject + prompts.background + prompts.camera == 150
    assert len(cfg.suite.seeds) == 5


def test_another_base_has_its_own_files(root):
    entry = build(composed("3").suite).entries["Wan2.2 high 1.5 low 1.4"]
    for path in (entry.model.weights, entry.model.vae, entry.model.text_encoder):
        assert "Wan2.2-T2V-A14B" in path
    assert entry.model.flow.shift == 12


def test_table_2_repeats_table_5b():
    for row in published():
        if row.table == "2":
            assert row.percent.items() <= find("5b", row.row).percent.items()


def test_what_is_missing_is_told_with_the_commands_that_make_it(root):
    with pytest.raises(ValueError, match="not there") as error:
        evaluate.evaluate(composed("4b", *TWIN))
    run = root / "outputs/paper/r512"
    assert f"{run}/exported/900/lora.safetensors" in str(error.value)
    assert str(error.value).count("python train.py experiment=paper/train/r512") == 1
    assert str(error.value).count(f"pusa export {run} {run}/exported/900 --checkpoint 900") == 1


def test_the_twin_goes_all_the_way_by_these_commands(root, caplog):
    """train.py, pusa export and evaluate.py; only shorter, with step 2 for iteration 900."""
    caplog.set_level("INFO")
    train.train(compose_config(
        "train", "experiment=paper/train/r512", TWIN[0], "trainer.max_steps=2", "batch_size=2",
        "data.num_clips=4", "data.heldout.toy.num_clips=2", "callbacks.grid=null",
        "logger.wandb=off", "data.batches.num_workers=0",
    ))  # fmt: skip
    run = root / "outputs/paper/r512"
    assert run_pusa("export", run, run / "exported/900", "--checkpoint", 2) == 0
    evaluate.evaluate(composed(
        "4b", *TWIN, "suite.published=true", "suite.controls=[]",
        "suite.dimensions=[temporal_flickering,dynamic_degree]",
    ))  # fmt: skip
    page = next((root / "outputs/x/photos").glob("*.html")).read_text()
    text = next((root / "outputs/x/photos").glob("*.txt")).read_text()
    for row in ("2 steps", "5 steps", "10 steps", "20 steps"):
        assert f"{find('4b', row).percent['Total']:.2f}" in text
        assert row in page
        assert len(list((root / "outputs/x/photos/videos" / row).glob("*.mp4"))) == 2


@pytest.mark.parametrize("words", [("--published", "experiment=paper/table4b"),
                                   ("experiment=paper/table4b", "--published")])  # fmt: skip
def test_the_flag_may_stand_before_and_after_the_overrides(words):
    done = processes.run("evaluate.py", *words, "--cfg", "job", "--package", "suite")
    assert done.returncode == 0, done.stderr
    assert "published: true" in done.stdout


def test_a_suite_without_rows_has_none_of_the_paper_beside_it(root):
    cfg = compose_config("evaluate", "experiment=tiny_vta", "name=x", "++suite.published=true")
    with pytest.raises(ValueError, match=r"--published: no table .* suite=photos"):
        evaluate.evaluate(cfg)


RUN = Training("experiment=one", "outputs/one", "rank 8")


def test_a_row_takes_the_weights_of_its_training():
    assert Entry(trained_by=RUN, checkpoint=3).lora == ("outputs/one/exported/3/lora.safetensors",)
    whole = Entry(trained_by=replace(RUN, whole=True), checkpoint=3)
    assert (whole.lora, whole.weights) == ((), "outputs/one/exported/3/model.safetensors")
    entry = Entry(trained_by=replace(RUN, experts=("high", "low")), checkpoint=3, num_steps=4)
    assert entry.lora == ("outputs/one/exported/3",)
    assert entry.missing() == [f"outputs/one/exported/3/{e}/lora.safetensors" for e in
                               ("high", "low")]  # fmt: skip
    assert entry.describe() == "rank 8, 3 iterations, strength 1, 4 steps"
    assert replace(entry, strength=2.0).trained_by == entry.trained_by
    commands = replace(RUN, experts=("high", "low")).commands(3)
    assert commands == [
        "python train.py experiment=one",
        "pusa export outputs/one/high outputs/one/exported/3/high --checkpoint 3",
        "pusa export outputs/one/low outputs/one/exported/3/low --checkpoint 3",
    ]
    with pytest.raises(ValueError, match="checkpoint=None"):
        Entry(trained_by=RUN)


def test_finished_videos_stand_in_the_place_of_a_rows_training_and_sampling():
    row = Entry(trained_by=RUN, checkpoint=3, strength=1.4, num_steps=10, videos="theirs")
    assert (row.trained_by, row.lora, row.num_steps) == (None, (), None)
    assert row.describe() == "theirs"
    with pytest.raises(ValueError, match="theirs: what is finished has no lora, strength"):
        Entry(videos="theirs", strength=1.4)


def test_what_is_handed_in_takes_the_place_of_what_would_be_made():
    own = Entry(trained_by=RUN, checkpoint=3, lora=("mine.safetensors",))
    assert (own.trained_by, own.lora) == (None, ("mine.safetensors",))
    assert Entry(without="closed").without == "closed"
    assert Entry(without="closed", videos="theirs").without == ""


def test_others_videos_take_the_place_of_a_reason(root):
    cfg = composed("1", "suite.entries.Magi-1.videos=magi", "suite.baseline=Magi-1",
                   "suite.entries={SVD-XT-1.1:{videos:svd}}")  # fmt: skip
    entries = build(cfg.suite).entries
    assert [name for name, e in entries.items() if not e.without] == [
        "Magi-1",
        "SVD-XT-1.1",
        "Pusa",
    ]
