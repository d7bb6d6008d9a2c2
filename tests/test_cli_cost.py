"""`pusa cost` and `pusa published`, as they are typed, on tiny twins."""

import json

import pytest

from tests.conftest import run_pusa

TWIN = ("model=wan21_t2v_14b_tiny",)


@pytest.fixture
def cost(tmp_path):
    """The figures of `pusa cost`, by its words."""

    def run(*words: str, code: int = 0) -> dict:
        out = tmp_path / "cost.json"
        assert run_pusa("cost", *words, "--json", out) == code
        return json.loads(out.read_text())

    return run


def test_a_training_costs_what_its_plan_says_and_each_is_there_once(cost, tmp_path):
    found = cost("experiment=paper/table5b", *TWIN, "--price", "2")
    assert [t["train"].rpartition("/")[2] for t in found["trainings"]] == [
        "r512", "i2v", "ptss_02", "ptss_05", "ptss_08"]  # fmt: skip
    assert {t["steps"] for t in found["trainings"]} == {900}
    out = tmp_path / "plan.json"
    words = ("experiment=paper/train/r512", *TWIN, "trainer.max_steps=900")
    assert run_pusa("plan", *words, "--gpus", 8, "--no-search", "--price", 2, "--json", out) == 0
    plan = json.loads(out.read_text())["plan"]
    for key in ("hours", "dollars"):
        assert found["trainings"][0][key] == pytest.approx(plan[key], rel=1e-9)
    assert len(found["videos"]) == 30
    parts = [*found["trainings"], *found["videos"]]
    assert found["dollars"] == pytest.approx(sum(part["dollars"] for part in parts))


def test_videos_cost_by_steps_videos_and_guidance(cost):
    rows = {row["row"]: row for row in cost("experiment=paper/table4b", *TWIN)["videos"]}
    assert {name: row["passes"] for name, row in rows.items()} == {
        "2 steps": 4, "5 steps": 10, "10 steps": 20, "20 steps": 40}  # fmt: skip
    assert {row["videos"] for row in rows.values()} == {750}
    assert rows["20 steps"]["hours"] == pytest.approx(10 * rows["2 steps"]["hours"])
    few = cost("experiment=paper/table4b", *TWIN, "suite.seeds=[0]", "sampler.guidance_scale=1")
    rows_of_few = {row["row"]: row for row in few["videos"]}
    assert rows_of_few["10 steps"]["videos"] == 150
    assert rows_of_few["10 steps"]["hours"] == pytest.approx(rows["10 steps"]["hours"] / 10)
    assert cost("experiment=paper/table1", *TWIN)["videos"][0]["videos"] == 5590


def test_both_experts_are_trained(cost):
    words = ("experiment=paper/table3", *TWIN, "model@wan22=wan22_t2v_a14b_tiny")
    found = cost(*words, "suite.entries={Wan2.1 alpha 1.4:null}", "suite.baseline=null")
    assert [(t["networks"], t["steps"]) for t in found["trainings"]] == [(2, 900)]


def test_an_experiment_of_ones_own_counts_its_own_training(cost):
    words = ("experiment=wan21_vta", *TWIN, "suite=photos", "trainer.max_steps=50")
    found = cost(*words, "--gpus", "2")
    assert [t["steps"] for t in found["trainings"]] == [50]
    assert {row["row"]: row["videos"] for row in found["videos"]} == {"base": 108, "VTA": 108}
    base, adapted = found["videos"]
    assert adapted["flops_per_pass"] > base["flops_per_pass"] > 0  # a LoRA is not merged
    again = cost(*words, "suite.lora=downloaded.safetensors", "--gpus", "2")
    assert again["trainings"] == []


def test_the_text_names_what_is_left_out(caplog):
    caplog.set_level("INFO")
    assert run_pusa("cost", "experiment=paper/table4b", *TWIN) == 0
    for words in ("an estimate", "experiment=paper/train/r512", "20 steps", "scoring", "In all"):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("experiment=tiny_vta",), "suite=photos"),
        (("experiment=paper/table4b", "--gpu", "abacus"), "h100-80g"),
        (("experiment=paper/table4b", "--gpus", "3"), "batch_size"),
        (("experiment=paper/table9",), "table9"),
    ],
)
def test_bad_input_is_named(words, message: str, capsys):
    assert run_pusa("cost", *TWIN, *words) == 1
    assert message in capsys.readouterr().err


def test_published_rows_are_printed_with_what_is_wrong_in_them(caplog, tmp_path):
    caplog.set_level("INFO")
    assert run_pusa("published", "4a") == 0
    assert "87.11" in caplog.text
    assert "* r512 a2.0: I2V is misprinted" in caplog.text
    assert "20 steps" not in caplog.text
    assert run_pusa("published", "--table", "1") == 0
    assert "columns shifted" in caplog.text
    assert "motion=10" in caplog.text
    out = tmp_path / "rows.json"
    assert run_pusa("published", "--json", out) == 0
    assert len(json.loads(out.read_text())["rows"]) == 96


@pytest.mark.parametrize("words", [("9",), ("1", "--table", "2")])
def test_a_table_that_there_is_none_of_is_named(words, capsys):
    assert run_pusa("published", *words) == 1
    assert "table" in capsys.readouterr().err
