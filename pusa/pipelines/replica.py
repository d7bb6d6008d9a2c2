"""Makes the replica's untrained parts: its tokenizer and its small frozen text encoder."""

from pathlib import Path

import torch

from pusa.data import toy


def make_text_encoder(folder: str | Path, seed: int = 0, dim: int = 64) -> Path:
    """Write a random, frozen UMT5 encoder and a word tokenizer in transformers' own layout.

    Random features are enough to tell the toy captions' words apart; the DiT's text MLP learns the
    rest. Same files and classes as Wan's UMT5-XXL, 64 wide.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = Path(folder)
    words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(toy.vocabulary())]
    table = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", table["</s>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    config = UMT5Config(
        vocab_size=len(words), d_model=dim, d_kv=16, d_ff=2 * dim, num_layers=2, num_heads=4,
        dropout_rate=0.0, pad_token_id=table["<pad>"], eos_token_id=table["</s>"],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = UMT5EncoderModel(config)
    encoder.save_pretrained(folder, safe_serialization=True)
    return folder
