"""`pusa plan`, as it is typed, on a tiny twin; the vendors' VAEs and text encoder, by counts."""

import json

import pytest
import torch

from pusa import cli_plan
from pusa.training import gpus
from tests.conftest import run_pusa

TINY = ("experiment=wan21_vta", "model=wan21_t2v_14b_tiny", "lora.rank=8", "data=clips",
        "data.train.manifest=none", "batch_size=2")  # fmt: skip


def run(*arguments) -> int:
    return run_pusa("plan", *arguments)


@pytest.fixture
def small_gpu(monkeypatch) -> None:
    """A GPU that nothing but the CUDA context fits on."""
    table = {**gpus.GPUS, "tiny-1g": gpus.GPU("tiny-1g", 1.26, 1, 0.1, 1, 1)}
    monkeypatch.setattr(gpus, "GPUS", table)


def test_what_fits_ends_well_and_says_what_it_needs(caplog, tmp_path):
    caplog.set_level("INFO")
    out = tmp_path / "plan.json"
    assert run(*TINY, "--gpus", "2", "--no-search", "--json", str(out)) == 0
    for words in ("It fits", "strategy=zero2", "frozen base", "modulation", "disk", "steps an hour",
                  "Assumed"):  # fmt: skip
        assert words in caplog.text
    plan = json.loads(out.read_text())
    assert plan["fits"] is True
    assert plan["plan"]["gpus"] == 2
    assert set(plan["policies"]) == {
        "none",
        "every_2",
        "selective",
        "blocks",
        "blocks_half",
        "offload",
        "offload_half",
    }
    train = plan["plan"]["bytes"]["train"]
    assert train["total"] == sum(value for name, value in train.items() if name != "total")


def test_what_does_not_fit_ends_with_1(small_gpu, caplog):
    caplog.set_level("INFO")
    assert run(*TINY, "--gpus", "2", "--gpu", "tiny-1g") == 1
    assert "It does not fit" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpu", "abacus"), "h100-80g"),
        (("--strategy", "zero9"), "zero3_offload"),
        (("--gpus", "3"), "batch_size"),
        (("--mfu", "2"), "--mfu"),
        (("trainer.precision=64-true",), "bf16-mixed"),
        (("+no_such_key=1",), "no_such_key"),
    ],
)
def test_bad_input_is_named(flags, message: str, capsys):
    assert run(*TINY, *flags, "--no-search") == 1
    assert message in capsys.readouterr().err


COUNTS = [  # of the vendors' files
    (cli_plan.WAN21_VAE, 126_892_531),
    (cli_plan.WAN22_VAE, 704_688_668),
]


@pytest.mark.parametrize(("arguments", "count"), COUNTS)
def test_the_vaes_have_as_many_parameters_as_the_vendors(arguments, count: int):
    import diffusers

    with torch.device("meta"):
        vae = diffusers.AutoencoderKLWan(**arguments)
    assert sum(p.numel() for p in vae.parameters()) == count


@pytest.mark.parametrize(
    ("kind", "vocabulary", "count"), [("UMT5", 256384, 5_680_910_336), ("T5", 32128, 4_762_310_656)]
)
def test_the_text_encoders_have_as_many_as_the_vendors(kind: str, vocabulary: int, count: int):
    import transformers

    config = getattr(transformers, f"{kind}Config")(vocab_size=vocabulary, **cli_plan.XXL)
    with torch.device("meta"):
        encoder = getattr(transformers, f"{kind}EncoderModel")(config)
    assert sum(p.numel() for p in encoder.parameters()) == count
