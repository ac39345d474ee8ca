"""Writes qwen2-vl-7b/tokenizer.json: one token a byte, and Qwen2-VL's control tokens at their own ids.

python models/byte_tokenizer.py models/qwen2-vl-7b/tokenizer.json
"""

import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}


def byte_tokenizer() -> Tokenizer:
    """A token for each byte at the ids 0 to 255, none for other ids but the control tokens'."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, **CONTROL}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROL])
    return tokenizer


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(byte_tokenizer().to_str(pretty=True) + "\n", encoding="utf-8")
