"""Text encoders behind one interface: captions or token ids -> Text. UMT5 (Wan) and T5 (Mochi),
through transformers, and where their weights and tokenizers come from."""

import html
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pusa.types import Text
from pusa.weights import text_keys
from pusa.weights.lazy import Piece, SafetensorsFiles, Tensors, View, WeightsError, open_tensors

log = logging.getLogger(__name__)

OFFICIAL_TOKENIZER = "google/umt5-xxl"  # Wan keeps it under this name beside its .pth
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
NUM_FINGERPRINT_ROWS = 16


def clean_caption(caption: str) -> str:
    """Wan's prompt cleaning: mend the encoding, unescape HTML twice, one space between words."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return re.sub(r"\s+", " ", text).strip()


class T5TextEncoder(nn.Module):
    """transformers' T5 encoder and its tokenizer as Mochi uses them; at most `text_len` tokens.

    Captions are taken as they are; an empty one has no tokens at all, not even the final one.
    """

    default_len = 256
    encoder: Any

    def __init__(self, encoder: nn.Module, tokenizer: Any, text_len: int | None = None):
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.text_len = self.default_len if text_len is None else text_len
        if self.text_len < 1:
            raise ValueError(f"text_len={self.text_len}; at least 1 token is needed.")

    @torch.no_grad()
    def encode(
        self,
        captions: Sequence[str] | Sequence[Sequence[int]] | Tensor,
        mask: Tensor | None = None,
    ) -> Text:
        """B captions -> Text of float32 embeddings (B, L, text_dim), zero where the mask is False.

        captions: strings, which are cut to text_len tokens; or token ids, final token included, as
        lists or as (B, L) with a mask (B, L), True at real tokens (without one, what is not
        padding is real). A row is the same alone and in a batch. ValueError for ids that are out
        of the vocabulary or more than text_len.
        """
        ids, mask = self._tokens(captions, mask)
        device = self.encoder.get_input_embeddings().weight.device
        ids, mask = ids.to(device), mask.to(device)
        hidden = self.encoder(ids, attention_mask=mask).last_hidden_state
        return Text(hidden.float().masked_fill(~mask[..., None], 0.0), mask)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids, mask), both (B, L), padded to the longest of the captions."""
        ids, mask = self._tokenize(captions)
        empty = torch.tensor([not caption for caption in captions])
        return ids.masked_fill(empty[:, None], 0), mask & ~empty[:, None]

    def _tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(
            list(captions), padding="longest", truncation=True, max_length=self.text_len,
            add_special_tokens=True, return_tensors="pt",
        )  # fmt: skip
        unknown = self.tokenizer.unk_token_id
        for caption, row in zip(captions, tokens.input_ids, strict=True):
            if unknown is not None and (row == unknown).any():
                short = caption if len(caption) <= 80 else f"{caption[:77]}..."
                log.warning("caption %r has words that the tokenizer does not know.", short)
        return tokens.input_ids, tokens.attention_mask.bool()

    def _tokens(self, captions, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(captions, str):
            raise ValueError(f"captions is one string; use a list, [{captions[:20]!r}].")
        if not len(captions):
            raise ValueError("captions is empty; give at least one, which may be ''.")
        if isinstance(captions, Tensor):
            real = captions != self.tokenizer.pad_token_id if mask is None else mask.bool()
            return self._checked(captions, real)
        if mask is not None:
            raise ValueError("a mask goes with token ids (B, L) only; leave it out for lists.")
        if all(isinstance(caption, str) for caption in captions):
            return self.tokenize(captions)
        return self._checked(*self._pad(captions))

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        length = max(1, *map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(length) < lengths[:, None]

    def _checked(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if ids.ndim != 2 or mask.shape != ids.shape or ids.is_floating_point():
            raise ValueError(
                f"token ids are {ids.dtype} {tuple(ids.shape)} with a mask {tuple(mask.shape)}; "
                "expected integers (B, L) and a mask of the same shape."
            )
        if ids.shape[1] > self.text_len:
            raise ValueError(
                f"{ids.shape[1]} token ids, at most {self.text_len} are encoded; cut them or raise "
                "model.text_len."
            )
        vocabulary = self.encoder.get_input_embeddings().num_embeddings
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"token ids from {int(ids.min())} to {int(ids.max())} do not fit a vocabulary of "
                f"{vocabulary}; use the encoder's own tokenizer."
            )
        return ids, mask


class UMT5TextEncoder(T5TextEncoder):
    """transformers' UMT5 encoder and its tokenizer as Wan uses them: captions are cleaned, an empty
    one is its final token."""

    default_len = 512

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self._tokenize([clean_caption(caption) for caption in captions])


def load_text_encoder(
    path: str | Path, tokenizer: str | Path | None = None, text_len: int | None = None
) -> T5TextEncoder:
    """A frozen text encoder in eval mode, in the dtype of its file.

    path: a transformers folder of a UMT5 or T5 encoder (by its config's model_type), a pipeline's
    folder that holds one as `text_encoder/`, Wan's models_t5_umt5-xxl-enc-bf16.pth, or a folder
    with one such file. tokenizer: its folder, by default the encoder's own, `tokenizer/` beside it
    or Wan's `google/umt5-xxl/` beside the .pth. text_len: at most so many tokens, by default 512
    (UMT5) or 256 (T5).
    ValueError if encoder or tokenizer is not found, naming the places looked at; WeightsError (a
    ValueError) naming the keys that are missing, unknown or of a wrong shape, or if the embedding
    table that the encoder uses is not the file's.
    """
    found = _find(Path(path))
    words = _load_tokenizer(found, None if tokenizer is None else Path(tokenizer))
    if found.is_file():
        kind, encoder = "umt5", _load_official(found)
    else:
        kind, encoder = _model_type(found), _load_folder(found)
    wrapper = UMT5TextEncoder if kind == "umt5" else T5TextEncoder
    return wrapper(encoder.eval().requires_grad_(False), words, text_len)


def _model_type(folder: Path) -> str | None:
    file = folder / "config.json"
    try:
        return json.loads(file.read_text()).get("model_type") if file.is_file() else None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again.") from error


def _find(path: Path) -> Path:
    """The transformers folder or Wan's file at `path`."""
    if path.is_file() or _model_type(path) in ("umt5", "t5"):
        return path
    if (path / "text_encoder" / "config.json").is_file():
        return _find(path / "text_encoder")
    files = sorted(path.glob("models_t5*.pth")) + sorted(path.glob("models_t5*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{path}: holds {names}; name the one that is meant (model.text_encoder).")
    if (path / "config.json").is_file():
        raise ValueError(
            f"{path / 'config.json'}: model_type {_model_type(path)!r} is not known; use a umt5 or "
            "t5 encoder (model.text_encoder)."
        )
    raise ValueError(
        f"{path}: no config.json in it, no text_encoder/ folder and no models_t5*.pth; expected a "
        "transformers folder or Wan's file (model.text_encoder)."
    )


def _load_tokenizer(found: Path, given: Path | None) -> Any:
    """The tokenizer of the encoder at `found`, a folder or a file, from local files."""
    folder = found.parent if found.is_file() else found
    beside = folder if found.is_file() else folder.parent
    places = [folder, beside / "tokenizer", beside / OFFICIAL_TOKENIZER]
    if given is not None:
        places = [given]
    for place in places:
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            break
    else:
        raise ValueError(
            f"{found}: no tokenizer in {', '.join(map(str, places))} (looked for "
            f"{', '.join(TOKENIZER_FILES)}); give its folder as tokenizer."
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(place), local_files_only=True)
    except Exception as error:  # whatever its many backends raise; the folder is what matters
        raise ValueError(
            f"{place}: not a tokenizer that transformers reads ({error}); download it again."
        ) from error


def _load_official(file: Path) -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    tensors = open_tensors(file)
    tensors = View(tensors, text_keys.to_diffusers(tensors))
    try:
        arguments = text_keys.constructor_arguments(tensors.specs())
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**arguments))
    _check_names(encoder, tensors)
    encoder.load_state_dict({key: tensors[key] for key in tensors}, strict=False, assign=True)
    encoder.set_input_embeddings(encoder.shared)  # ties the second name of the table
    _check_embedding(encoder, tensors)
    return encoder


def _load_folder(folder: Path) -> nn.Module:
    import transformers

    build = getattr(transformers, {"umt5": "UMT5EncoderModel", "t5": "T5EncoderModel"}[
        str(_model_type(folder))
    ])  # fmt: skip
    tensors = _open_folder(folder)
    config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    with torch.device("meta"):
        outline = build(config)
    _check_names(outline, View(tensors, {key: Piece((key,)) for key in tensors}))
    encoder = build.from_pretrained(str(folder), local_files_only=True)
    _check_embedding(encoder, tensors)
    return encoder


def _open_folder(folder: Path) -> Tensors:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text())["weight_map"].values()
        return SafetensorsFiles([folder / name for name in dict.fromkeys(names)], folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return open_tensors(folder / name)
    raise WeightsError(f"{folder}: no model.safetensors in it; download the folder again.")


def _check_names(encoder: nn.Module, tensors: View) -> None:
    """WeightsError naming the first keys that do not fit, as the file spells them. A T5 file may
    hold the decoder as well, and either or both names of the embedding table."""
    expected, found = encoder.state_dict(), tensors.specs()
    spelled = {key: piece.sources[0] for key, piece in tensors.pieces.items()}
    if any(key != name for key, name in spelled.items()):
        for name, piece in text_keys.to_official(expected).items():
            spelled.setdefault(piece.sources[0], name)
    names = {text_keys.EMBEDDING, text_keys.TIED}
    optional = names if names & set(found) else {text_keys.TIED}
    faults = {
        "misses": [key for key in expected if key not in found and key not in optional],
        "has no place for": [
            key for key in found
            if key not in expected and not key.startswith(("decoder.", "lm_head."))
        ],
        "has another shape than its config or the rest for": [
            key for key in expected if key in found and expected[key].shape != found[key].shape
        ],
    }  # fmt: skip
    for fault, keys in faults.items():
        if keys:
            raise WeightsError(
                f"{tensors.source}: {fault} {', '.join(spelled.get(key, key) for key in keys[:3])} "
                f"({len(keys)} in all); it is not a whole {type(encoder).__name__}, download it "
                "again."
            )


def _check_embedding(encoder: Any, tensors: Tensors) -> None:
    """The table that embeds tokens is the file's, is not zero, and is one tensor under two names.

    Versions of transformers between 5.0 and the mend of huggingface/transformers#43880 left Wan's
    second name untied and zero without a word.
    """
    import transformers

    name = text_keys.EMBEDDING if text_keys.EMBEDDING in tensors else text_keys.TIED
    table = tensors[name]
    used, shared = encoder.encoder.embed_tokens.weight, encoder.shared.weight
    rows = torch.linspace(0, len(table) - 1, NUM_FINGERPRINT_ROWS).long()
    expected, actual = table[rows].to(used.dtype), used[rows.to(used.device)].cpu()
    fault = None
    if not expected.any():
        fault = f"{name} of the file is zero"
    elif not torch.equal(expected, actual):
        fault = f"the encoder's embedding table is not {name} of the file"
    elif used.data_ptr() != shared.data_ptr():
        fault = f"{text_keys.TIED} and {text_keys.EMBEDDING} are not tied"
    if fault:
        raise WeightsError(
            f"{tensors.source}: {fault} (transformers {transformers.__version__}); its output "
            "would mean nothing. Download the file again, or choose the transformers version of "
            "constraints.txt."
        )
