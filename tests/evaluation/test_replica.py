"""The whole way on a few clips: train, evaluate, read the page; stale videos are not kept."""

import json
from pathlib import Path

import pytest

import evaluate
import train
from pusa.entry import build
from pusa.evaluation import compare, replica
from tests.conftest import compose_config


@pytest.fixture
def trained(small_run, shared_data):
    """Overrides under which a four-step LoRA is trained and its small suite is evaluated."""
    cfg = small_run("tiny_vta", "lora.rank=4", "callbacks.grid=null")
    train.train(cfg)

    def config(*overrides: str):
        return compose_config(
            "evaluate", "experiment=tiny_vta", "name=tiny_vta", "suite.source.toy.num_clips=3",
            "suite.seeds=[0,1]", "sampler.num_steps=2", f"paths.toy={shared_data}/data/toy",
            *overrides,
        )  # fmt: skip

    return config


def stamps(folder: Path, system: str) -> list[int]:
    return [p.stat().st_mtime_ns for p in sorted((folder / "videos" / system).rglob("*.mp4"))]


def test_evaluation_writes_table_page_and_videos(trained):
    cfg = trained()
    evaluate.evaluate(cfg)
    folder = Path(cfg.suite.output)
    table = json.loads((folder / "toy_suite.json").read_text())
    systems = {row["system"] for row in table["means"]}
    assert systems == {
        "base", "VTA", "static copy", "slow zoom", "frame shuffle", "codec", "ground truth"
    }  # fmt: skip
    means = {(row["system"], row["metric"]): row["mean"] for row in table["means"]}
    assert means["ground truth", "direction_accuracy"] == 1.0
    assert means["static copy", "dynamic_degree"] == 0.0
    assert means["ground truth", "psnr_continuation"] > means["codec", "psnr_continuation"]
    titles = {row["metric"] for row in table["retention"]}
    assert {"loss, shared sigma", "direction_accuracy"} <= titles
    for ending in (".txt", ".md", ".json", ".csv", ".tex", ".html", "_videos.csv"):
        assert (folder / f"toy_suite{ending}").is_file()
    assert "toy suite (stand-in), not VBench" in (folder / "toy_suite.html").read_text()
    assert (folder / "frames.png").is_file()
    assert not list(folder.rglob("*.partial*"))


def test_a_second_evaluation_keeps_videos_and_another_strength_remakes_only_vta(trained):
    cfg = trained()
    evaluate.evaluate(cfg)
    folder = Path(cfg.suite.output)
    before = {system: stamps(folder, system) for system in ("base", "VTA")}
    evaluate.evaluate(trained())
    assert {system: stamps(folder, system) for system in before} == before
    evaluate.evaluate(trained("suite.strength=0.5"))
    assert stamps(folder, "base") == before["base"]
    assert set(stamps(folder, "VTA")).isdisjoint(before["VTA"])


def test_parts_put_together_give_the_table_of_the_whole(trained, monkeypatch):
    monkeypatch.setattr(compare, "BATCH_SIZE", 2)
    cfg = trained()
    evaluate.evaluate(cfg)
    whole = Path(cfg.suite.output).rename(Path(cfg.suite.output).with_name("whole"))
    for part in ("1/2", "0/2"):
        evaluate.evaluate(trained(f"part={part}"))
        assert not (Path(cfg.suite.output) / "toy_suite.json").exists()
    folder = Path(cfg.suite.output)
    made = {system: stamps(folder, system) for system in ("base", "VTA", "codec")}
    assert [len(found) for found in made.values()] == [6, 6, 3]
    evaluate.evaluate(trained())
    assert {system: stamps(folder, system) for system in made} == made
    assert not (folder / "scores.jsonl").exists()  # nothing was left to be scored
    for name in ("toy_suite.json", "toy_suite.csv", "toy_suite_videos.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_strength_for_each_expert_is_told(root):
    cfg = compose_config(
        "evaluate", "experiment=tiny_vta", "name=x", "suite.strength={high: 1.5, low: 1.4}"
    )
    model, task, sampler, suite = map(build, (cfg.model, cfg.task, cfg.sampler, cfg.suite))
    facts = replica._facts(model, task, sampler, suite, [])
    assert facts["VTA"].endswith("strength high 1.5, low 1.4")


def test_evaluation_without_a_lora_says_how_to_make_one(root):
    cfg = compose_config("evaluate", "experiment=tiny_vta", "name=absent")
    with pytest.raises(
        ValueError, match=r"train it first, with train\.py and the same name=absent"
    ):
        evaluate.evaluate(cfg)
