"""Text encoders: Wan's and transformers' files, batches, cleaning, empty captions, the table."""

import json
import math
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from pusa.models.text import T5TextEncoder, UMT5TextEncoder, clean_caption, load_text_encoder
from pusa.pipelines.tiny_parts import OFFICIAL_TEXT_ENCODER, write_tiny_text_encoder
from pusa.weights.lazy import WeightsError
from pusa.weights.text_keys import to_diffusers
from tests.conftest import REPLICA

CAPTIONS = ["a red three moves left over coffee , camera pan-up", "a red one", "", "a"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(kind, layout) -> where a tiny text encoder of that kind lies."""
    root, paths = tmp_path_factory.mktemp("text"), {}

    def path(kind: str, layout: str = "transformers"):
        if (kind, layout) not in paths:
            folder = root / kind / layout
            paths[kind, layout] = write_tiny_text_encoder(folder, kind, layout)
        return paths[kind, layout]

    return path


@pytest.fixture
def official(made, tmp_path):
    """A copy of Wan's folder, in float32 so that comparisons are sharp: (file, its tensors)."""
    folder = shutil.copytree(made("umt5", "official").parent, tmp_path / "wan")
    state = torch.load(folder / OFFICIAL_TEXT_ENCODER, weights_only=True)
    state = {key: value.float() for key, value in state.items()}
    torch.save(state, folder / OFFICIAL_TEXT_ENCODER)
    return folder / OFFICIAL_TEXT_ENCODER, state


# The spec's formulas, slowly: official names, one caption, no mask.


def bucket(offset: int) -> int:
    """Of 32: 16 for keys after the query, in each half 8 exact, then logarithmic up to 128."""
    distance = abs(offset)
    if distance >= 8:
        distance = min(15, 8 + math.floor(math.log(distance / 8) / math.log(128 / 8) * 8))
    return distance + 16 * (offset > 0)


def slow_umt5(state: dict, ids: list[int], num_layers: int = 2) -> torch.Tensor:
    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight

    def block(i, x):
        own = {k.removeprefix(f"blocks.{i}."): v.double() for k, v in state.items()}
        table = own["pos_embedding.embedding.weight"]
        heads, count = table.shape[1], len(ids)
        y = norm(x, own["norm1.weight"])
        q, k, v = (
            (y @ own[f"attn.{name}.weight"].T).view(count, heads, -1).transpose(0, 1)
            for name in "qkv"
        )
        buckets = torch.tensor([[bucket(j - i) for j in range(count)] for i in range(count)])
        weights = (q @ k.transpose(1, 2) + table[buckets].permute(2, 0, 1)).softmax(-1)
        x = x + (weights @ v).transpose(0, 1).flatten(1) @ own["attn.o.weight"].T
        y = norm(x, own["norm2.weight"])
        gate = torch.nn.functional.gelu(y @ own["ffn.gate.0.weight"].T, approximate="tanh")
        return x + (y @ own["ffn.fc1.weight"].T * gate) @ own["ffn.fc2.weight"].T

    x = state["token_embedding.weight"].double()[ids]
    for i in range(num_layers):
        x = block(i, x)
    return norm(x, state["norm.weight"].double())


def test_wans_file_follows_its_formulas(official):
    """Long enough for logarithmic buckets; float64 by hand against the loaded model."""
    file, state = official
    ids = torch.randint(3, 50, (1, 40), generator=torch.Generator().manual_seed(0))
    text = load_text_encoder(file).encode(ids)
    expected = slow_umt5(state, ids[0].tolist())
    torch.testing.assert_close(text.embedding[0].double(), expected, atol=2e-5, rtol=1e-5)


def test_wans_file_is_transformers_with_the_same_weights(official):
    file, state = official
    encoder = load_text_encoder(file)
    assert isinstance(encoder, UMT5TextEncoder)
    reference = UMT5EncoderModel(encoder.encoder.config).eval()
    renamed = {key: state[piece.sources[0]] for key, piece in to_diffusers(state).items()}
    missing, unknown = reference.load_state_dict(renamed, strict=False)
    assert (missing, unknown) == (["encoder.embed_tokens.weight"], [])
    reference.set_input_embeddings(reference.shared)
    caption = "a red three moves left over coffee"
    tokens = encoder.tokenizer([caption], padding="max_length", max_length=512, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**tokens).last_hidden_state
    text = encoder.encode([caption])
    assert text.embedding.shape == (1, 8, 64)
    torch.testing.assert_close(text.embedding, expected[:, :8], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "layout"), [("umt5", "official"), ("umt5", "transformers"), ("t5", "transformers")]
)
def test_a_row_of_a_batch_is_the_caption_alone(made, kind, layout):
    encoder = load_text_encoder(made(kind, layout))
    text = encoder.encode(CAPTIONS)
    assert text.embedding.dtype == torch.float32
    assert text.mask.sum(1).tolist() == [11, 4, 1 if kind == "umt5" else 0, 2]
    assert not text.embedding[~text.mask].any()
    exact = {"atol": 1e-5, "rtol": 1e-5} if layout != "official" else {"atol": 0.05, "rtol": 0.05}
    for row, mask, caption in zip(text.embedding, text.mask, CAPTIONS, strict=True):
        alone = encoder.encode([caption])
        torch.testing.assert_close(row[mask], alone.embedding[0][alone.mask[0]], **exact)


def test_the_shipped_replica_encodes_as_transformers_does():
    encoder = load_text_encoder(REPLICA / "text_encoder", text_len=24)
    reference = UMT5EncoderModel.from_pretrained(REPLICA / "text_encoder").eval()
    tokens = encoder.tokenizer(CAPTIONS, padding="longest", return_tensors="pt")
    with torch.no_grad():
        expected = reference(**tokens).last_hidden_state * tokens.attention_mask[..., None]
    text = encoder.encode(CAPTIONS)
    assert torch.equal(text.embedding, expected)
    assert encoder.text_len == 24


def test_token_ids_are_encoded_as_their_strings(made):
    encoder = load_text_encoder(made("umt5"))
    text = encoder.encode(CAPTIONS)
    ids, mask = encoder.tokenize(CAPTIONS)
    rows = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    for given in ((ids, mask), (ids,), (rows,)):
        encoded = encoder.encode(*given)
        assert torch.equal(encoded.embedding, text.embedding)
        assert torch.equal(encoded.mask, text.mask)
    assert encoder.encode([[], []]).embedding.shape == (2, 1, 64)
    assert not encoder.encode([[], []]).embedding.any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a red one",), r"captions is one string; use a list"),
        (([],), "captions is empty"),
        ((torch.tensor([[3, 53]]),), "3 to 53 do not fit a vocabulary of 53"),
        ((torch.tensor([3, 4]),), r"expected integers \(B, L\)"),
        ((torch.tensor([[3.0]]),), r"expected integers \(B, L\)"),
        ((torch.tensor([[3, 4]]), torch.ones(1, 3)), "a mask of the same shape"),
        (([[3] * 9],), "9 token ids, at most 8 are encoded"),
        ((["a"], torch.ones(1, 1)), "leave it out for lists"),
    ],
)
def test_ids_that_cannot_be_encoded_are_named(made, given, message):
    encoder = load_text_encoder(made("umt5"), text_len=8)
    with pytest.raises(ValueError, match=message):
        encoder.encode(*given)


def test_wan_cleans_captions_and_mochi_does_not(made):
    messy = "  a &amp;lt;red&amp;gt;\n\tone â€“ "
    assert clean_caption(messy) == "a <red> one –"
    spaced, plain = ["a   red &amp;amp; one"], ["a red & one"]
    umt5, t5 = load_text_encoder(made("umt5")), load_text_encoder(made("t5"))
    assert torch.equal(umt5.tokenize(spaced)[0], umt5.tokenize(plain)[0])
    seen = []
    tokenizer = t5.tokenizer
    t5.tokenizer = lambda captions, **options: (
        seen.extend(captions) or tokenizer(captions, **options)
    )
    t5.tokenizer.unk_token_id = tokenizer.unk_token_id
    t5.encode(spaced)
    assert seen == spaced


def test_mochis_empty_caption_has_no_tokens(made):
    encoder = load_text_encoder(made("t5"))
    assert type(encoder) is T5TextEncoder
    assert encoder.text_len == 256
    ids, mask = encoder.tokenize(["a red one", ""])
    assert not ids[1].any()
    assert mask.sum(1).tolist() == [4, 0]
    assert not encoder.encode(["a red one", ""]).embedding[1].any()
    assert not encoder.encode([""]).mask.any()


def test_captions_are_cut_at_text_len(made):
    encoder = load_text_encoder(made("umt5"), text_len=5)
    text = encoder.encode(["a red three moves left over coffee"])
    assert text.embedding.shape == (1, 5, 64)
    assert (
        encoder.tokenize(["a red three moves left over coffee"])[0][0, -1] == 1
    )  # the final token
    assert load_text_encoder(made("umt5")).text_len == 512
    with pytest.raises(ValueError, match="text_len=0"):
        load_text_encoder(made("umt5"), text_len=0)


def test_wans_file_keeps_bfloat16_and_gives_float32(made):
    encoder = load_text_encoder(made("umt5", "official"))
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    assert encoder.encode(["a red one"]).embedding.dtype == torch.float32
    assert not any(p.requires_grad for p in encoder.parameters())


# Where files lie.


def test_encoders_and_tokenizers_are_found_where_they_lie(made, official, tmp_path):
    file, _ = official
    expected = load_text_encoder(file).encode(CAPTIONS).embedding
    (file.parent / "config.json").write_text('{"_class_name": "WanModel"}')
    assert torch.equal(load_text_encoder(file.parent).encode(CAPTIONS).embedding, expected)
    elsewhere = shutil.move(file.parent / "google" / "umt5-xxl", tmp_path / "words")
    again = load_text_encoder(file, tokenizer=elsewhere).encode(CAPTIONS).embedding
    assert torch.equal(again, expected)
    with pytest.raises(ValueError, match=r"no tokenizer in .*google/umt5-xxl.* give its folder"):
        load_text_encoder(file)
    with pytest.raises(ValueError, match=r"no tokenizer in .*nowhere"):
        load_text_encoder(file, tokenizer=tmp_path / "nowhere")

    pipeline = tmp_path / "pipeline"
    shutil.copytree(made("t5"), pipeline / "text_encoder")
    (pipeline / "tokenizer").mkdir()
    for words in (pipeline / "text_encoder").glob("tokenizer*"):
        shutil.move(words, pipeline / "tokenizer")
    expected = load_text_encoder(made("t5")).encode(CAPTIONS).embedding
    for path in (pipeline, pipeline / "text_encoder"):
        assert torch.equal(load_text_encoder(path).encode(CAPTIONS).embedding, expected)
    (pipeline / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer that transformers reads"):
        load_text_encoder(pipeline)


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in it, no text_encoder/"):
        load_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type 'bert' is not known"):
        load_text_encoder(tmp_path)
    for name in ("models_t5_a.pth", "models_t5_b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds models_t5_a\.pth, models_t5_b\.pth; name the one"):
        load_text_encoder(tmp_path)
    with pytest.raises(ValueError, match="layout='official' is unknown for this kind"):
        write_tiny_text_encoder(tmp_path, "t5", "official")


# Files that are damaged, and a library that loads them wrongly.


def test_wans_files_that_do_not_fit_are_refused_by_the_names_in_them(official):
    file, state = official
    key = "blocks.1.ffn.fc1.weight"
    torch.save({k: v for k, v in state.items() if k != key}, file)
    with pytest.raises(WeightsError, match=r"misses blocks\.1\.ffn\.fc1\.weight \(1 in all\)"):
        load_text_encoder(file)
    torch.save(state | {"blocks.0.ffn.gate.1.weight": state[key]}, file)
    with pytest.raises(WeightsError, match=r"has no place for blocks\.0\.ffn\.gate\.1"):
        load_text_encoder(file)
    torch.save(state | {key: state[key][:3]}, file)
    with pytest.raises(WeightsError, match=r"another shape .* blocks\.1\.ffn\.fc1"):
        load_text_encoder(file)
    torch.save({k: v for k, v in state.items() if k != "token_embedding.weight"}, file)
    with pytest.raises(WeightsError, match=r"shared\.weight is missing"):
        load_text_encoder(file)


@pytest.mark.parametrize("kind", ["umt5", "t5"])
def test_folders_that_are_not_whole_are_refused(made, tmp_path, kind):
    """transformers itself only logs a missing tensor, and fills it at random."""
    folder = shutil.copytree(made(kind), tmp_path / "text")
    file = folder / "model.safetensors"
    state = load_file(file)
    key = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({k: v for k, v in state.items() if k != key}, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"misses encoder\.block\.1\.layer\.0\.SelfAttention\.q"):
        load_text_encoder(folder)
    extra = {"decoder.block.0.x.weight": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    save_file(state | extra, file, {"format": "pt"})  # a whole T5: only its encoder is wanted
    assert load_text_encoder(folder).encode(["a red one"]).embedding.any()
    file.unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        load_text_encoder(folder)


def test_a_zero_table_is_refused(made, official, tmp_path):
    file, state = official
    key = "token_embedding.weight"
    torch.save(state | {key: torch.zeros_like(state[key])}, file)
    with pytest.raises(WeightsError, match=r"shared\.weight of the file is zero \(transformers"):
        load_text_encoder(file)
    folder = shutil.copytree(made("umt5"), tmp_path / "text")
    tensors = load_file(folder / "model.safetensors")
    tensors["shared.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"shared\.weight of the file is zero"):
        load_text_encoder(folder)


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        ("zero", "embedding table is not shared.weight of the file"),
        ("other rows", "embedding table is not shared.weight of the file"),
        ("untied", "embed_tokens.weight and shared.weight are not tied"),
    ],
)
@pytest.mark.parametrize("kind", ["UMT5EncoderModel", "T5EncoderModel"])
def test_a_library_that_loses_the_table_is_found_out(made, monkeypatch, kind, breakage, message):
    """As transformers 5.0 did with Wan's UMT5: huggingface/transformers#43880."""
    build = getattr(transformers, kind)
    load = build.from_pretrained

    def broken(*args, **options):
        encoder = load(*args, **options)
        table = encoder.shared.weight.detach()
        wrong = {"zero": torch.zeros_like(table), "other rows": table.roll(1, 0),
                 "untied": table.clone()}  # fmt: skip
        encoder.encoder.embed_tokens = torch.nn.Embedding.from_pretrained(wrong[breakage])
        return encoder

    monkeypatch.setattr(build, "from_pretrained", broken)
    path = made("umt5" if kind.startswith("UMT5") else "t5")
    with pytest.raises(WeightsError, match=message.replace(".", r"\.")) as caught:
        load_text_encoder(path)
    assert transformers.__version__ in str(caught.value)
