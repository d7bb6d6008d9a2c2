"""Text encoders behind one interface: captions -> Text. Wan's is UMT5, through transformers."""

import html
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pusa.types import Text

log = logging.getLogger(__name__)


def clean_caption(caption: str) -> str:
    """Wan's prompt cleaning: mend the encoding, unescape HTML twice, one space between words."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return re.sub(r"\s+", " ", text).strip()


class UMT5TextEncoder(nn.Module):
    """transformers' UMT5 encoder and its tokenizer; at most `text_len` tokens."""

    def __init__(self, encoder: nn.Module, tokenizer, text_len: int):
        super().__init__()
        self.encoder, self.tokenizer, self.text_len = encoder, tokenizer, text_len

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Text:
        cleaned = [clean_caption(caption) for caption in captions]
        tokens = self.tokenizer(
            cleaned, padding="longest", truncation=True, max_length=self.text_len,
            add_special_tokens=True, return_tensors="pt",
        )  # fmt: skip
        self._warn(cleaned, tokens.input_ids)
        device = next(self.encoder.parameters()).device
        mask = tokens.attention_mask.bool().to(device)
        hidden = self.encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
        return Text(hidden.float().masked_fill(~mask[..., None], 0.0), mask)

    def _warn(self, captions: Sequence[str], ids: torch.Tensor) -> None:
        unknown = self.tokenizer.unk_token_id
        for caption, row in zip(captions, ids, strict=True):
            if unknown is not None and (row == unknown).any():
                log.warning("caption %r has words that the tokenizer does not know.", caption)


def load_text_encoder(path: str | Path, text_len: int = 512) -> UMT5TextEncoder:
    """A frozen UMT5 encoder from a transformers folder that also holds its tokenizer.

    ValueError if the folder is missing.
    """
    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"{path}: no config.json in it; expected a transformers folder (model.text_encoder)."
        )
    from transformers import AutoTokenizer, UMT5EncoderModel

    encoder = UMT5EncoderModel.from_pretrained(str(path), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    return UMT5TextEncoder(encoder.eval().requires_grad_(False), tokenizer, text_len)
