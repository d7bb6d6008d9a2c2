"""Every config composes, builds and keeps its promises."""

import inspect

import pytest
import torch

from pusa.entry import build, plain_config
from pusa.models.variants import BACKBONES, VARIANTS
from pusa.pipelines.tasks import Task
from tests.conftest import REPOSITORY, compose_config

CONFIGS = REPOSITORY / "configs"


def names(group: str) -> list[str]:
    """Also those in folders, as "paper/table1"; not the parts that a _ begins."""
    files = (CONFIGS / group).rglob("*.yaml")
    found = (p.relative_to(CONFIGS / group).with_suffix("") for p in files)
    return sorted(p.as_posix() for p in found if not p.name.startswith("_"))


TABLES = [name for name in names("experiment") if name.startswith("paper/table")]
TRAININGS = sorted(set(names("experiment")) - set(TABLES))


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes_for_what_it_is_for(name, root):
    for entry in ("evaluate",) if name in TABLES else ("train", "evaluate"):
        cfg = compose_config(entry, f"experiment={name}", "name=x")
        assert cfg.paths.run.endswith("outputs/x")
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert len(lines) <= 40 or name in TABLES  # a line for each row of a table
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert "Hardware:" in header
    assert "Expected:" in header


@pytest.mark.parametrize("name", sorted(set(TRAININGS) - {"tiny_vae"}))
def test_a_twin_trains_without_clips_on_toy_ones_and_takes_ones_own(name, root):
    cfg = compose_config("train", f"experiment={name}", "name=x")
    if (twin := f"{cfg.model.name}_tiny") in names("model"):
        with pytest.raises(Exception, match=r"has no manifest; set data\.train\.manifest"):
            build(cfg.data.train)  # a real model is not trained on toys by mistake
        cfg = compose_config("train", f"experiment={name}", "name=x", f"model={twin}")
    train, heldout = (build(node) for node in (cfg.data.train, cfg.data.heldout))
    assert train.num_clips >= heldout.num_clips >= 8
    assert train.manifest != heldout.manifest
    assert (train.split, heldout.split) == ("all", "all")
    own = compose_config("train", f"experiment={name}", "name=x", f"model={cfg.model.name}",
                         "data=clips", "data.train.manifest=mine.csv")  # fmt: skip
    for node, split in ((own.data.train, "train"), (own.data.heldout, "heldout")):
        source = build(node)
        assert (source.manifest, source.split, source.toy) == ("mine.csv", split, None)


@pytest.mark.parametrize("name", names("model"))
def test_every_model_builds_on_meta(name, root):
    cfg = compose_config("train", f"model={name}", "name=x")
    model = build(cfg.model)
    with torch.device("meta"):
        backbone = model.backbone()
    assert all(p.is_meta for p in backbone.parameters())
    assert backbone.in_channels == model.spec.channels


SHORT = {"wan22_tiny": "wan22_t2v_a14b_tiny", "ti2v_tiny": "wan22_ti2v_5b_tiny",
         "mochi_tiny": "mochi_1_tiny"}  # fmt: skip


@pytest.mark.parametrize("short", SHORT)
def test_a_short_name_is_the_same_model(short, root):
    one, other = (plain_config(compose_config("train", f"model={n}", "name=x").model)
                  for n in (short, SHORT[short]))  # fmt: skip
    assert one == other


SIZES = {f"{name}_720p": name for name in ("wan21_t2v_14b", "wan22_t2v_a14b")}


@pytest.mark.parametrize("sized", SIZES)
def test_a_model_of_another_size_is_else_the_same(sized, root):
    one, other = (plain_config(compose_config("train", f"model={n}", "name=x").model)
                  for n in (sized, SIZES[sized]))  # fmt: skip
    assert (one["height"], one["width"]) == (720, 1280)
    policies = [model["backbone"].pop("checkpointing") for model in (one, other)]
    assert policies == ["offload", "blocks_half"]
    assert one | {"height": 480, "width": 832} == other


@pytest.mark.parametrize("name", sorted(set(names("model")) - SHORT.keys() - SIZES.keys()))
def test_every_model_is_the_variant_of_its_name(name, root):
    cfg = plain_config(compose_config("train", f"model={name}", "name=x").model)
    assert cfg["name"] == name
    built = {"attention": "auto", "checkpointing": "none"}
    signature = inspect.signature(BACKBONES[VARIANTS[name].family].__init__).parameters
    defaults = {key: p.default for key, p in signature.items() if p.default is not p.empty}
    expected = defaults | dict(VARIANTS[name].arguments)
    given = defaults | {k: v for k, v in cfg["backbone"].items() if not k.startswith("_")}
    assert given | built == expected | built


@pytest.mark.parametrize("name", [n for n in names("model") if f"{n}_tiny" in names("model")])
def test_a_twin_differs_from_its_model_in_size_and_recomputation_alone(name, root):
    big, tiny = (plain_config(compose_config("train", f"model={n}", "name=x").model)
                 for n in (name, f"{name}_tiny"))  # fmt: skip
    for key in ("flow", "spec", "fps", "guidance_scale", "negative_prompt", "expert"):
        assert big.get(key) == tiny.get(key)
    recomputed = [model["backbone"]["checkpointing"] for model in (big, tiny)]
    assert recomputed == ["blocks_half", "none"]


@pytest.mark.parametrize("name", names("timesteps"))
def test_every_timestep_rule_draws_levels(name, root):
    sigma = build(compose_config("train", f"timesteps={name}", "name=x").timesteps).sample(3, 5)
    assert sigma.shape == (3, 5)


@pytest.mark.parametrize("name", names("task"))
def test_every_task_is_a_task(name, root):
    task = build(compose_config("train", f"task={name}", "name=x").task)
    assert isinstance(task, Task)
    assert task.name == name


def test_a_value_appears_once(root):
    cfg = compose_config("train", "experiment=tiny_vta", "name=x", "model.flow.shift=7")
    assert cfg.timesteps.shift == 7
