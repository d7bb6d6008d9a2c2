"""The `pusa` command in this process: encode, toy, the text encoder, and misuse."""

import json

import pytest
import torch

from pusa.cli import main
from pusa.data.cache import LatentCache
from pusa.models.text import load_text_encoder
from tests.conftest import REPLICA


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    assert error.value.code == 1
    return capsys.readouterr().err


def test_toy_clips_are_encoded_into_the_cache_and_found_again(root, caplog):
    main(["toy", str(root / "clips"), "--num-clips", "2"])
    caplog.set_level("INFO")
    arguments = ["encode", str(root / "clips" / "metadata.csv"), "--name", "mine"]
    main(arguments)
    entries = LatentCache(root / "data" / "cache").read_index("mine")
    assert [entry.caption.split()[0] for entry in entries] == ["a", "a"]
    assert "data=clips data.train.manifest=" in caplog.text
    caplog.clear()
    main(arguments)
    assert "encoding" not in caplog.text


def test_the_shipped_text_encoder_is_the_one_that_the_command_makes(tmp_path):
    main(["tiny-text-encoder", str(tmp_path / "made")])
    made, shipped = (
        load_text_encoder(p, text_len=24) for p in (tmp_path / "made", REPLICA / "text_encoder")
    )
    captions = ["a red three moves left over coffee , camera pan-up", ""]
    assert torch.equal(made.encode(captions).embedding, shipped.encode(captions).embedding)


def test_misuse_is_named(capsys, root):
    assert "--num-clips" in refused(capsys, "toy", str(root / "x"), "--num-clips", "0")
    output = ["--output", str(root / "a.mp4")]
    prompt = ["generate", "--prompt", "a"]
    assert "absent" in refused(capsys, *prompt, *output, "--model", "absent")
    assert "must end in .mp4" in refused(capsys, *prompt, "--output", str(root / "a.gif"))
    assert "no such sidecar" in refused(capsys, "generate", "--from", "absent.json", *output)
    assert "num_steps" in refused(capsys, *prompt, *output, "--steps", "0")
    with pytest.raises(SystemExit) as error:
        main(["generate", *output])
    assert error.value.code == 2


def test_a_file_that_is_no_sidecar_is_named(capsys, root):
    (root / "a.json").write_text("{}")
    said = refused(capsys, "generate", "--from", str(root / "a.json"), "-o", str(root / "b.mp4"))
    assert "not a sidecar" in said


def test_a_sidecar_cannot_name_foreign_code(capsys, root):
    recipe = {"model": {"_target_": "os.system", "command": "true"}}
    (root / "a.json").write_text(json.dumps({"recipe": recipe, "inputs": {}, "made_by": {}}))
    said = refused(capsys, "generate", "--from", str(root / "a.json"), "-o", str(root / "b.mp4"))
    assert "names os.system" in said
