"""Writes qwen2-vl-7b/tokenizer.json: bytes, common English words, and Qwen2-VL's control tokens at their own ids.

python models/shape_tokenizer.py models/qwen2-vl-7b/tokenizer.json
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
OPENING = "system user assistant You Answer Describe Explain How Is Name Read Tell What When Where Which Who Why"
WORDS = """
a about above all an and animal answer any are as at be been before behind below between big blue book box
building can car cat chart child color colour count describe did different do does dog door down during each
everything expression field find first five floor food for four from front given green ground hair hand happen
happens has have he head helpful her here his horse house how image in inside into is it its kind large last
left letter long look made main man many me mood more most much my near next no not number object objects of
old on one only or orange other out over people person phone photo picture piece place point question red
right road room same says scene second see seen sentence shape she short show shown side sign sit small some
square standing street table tall tell text than that the their them then there these they thing things this
three through time to top tree two type under up use used video visible wall was watch water wear wearing what
when where which while white who why window with woman word words write written year yellow yes you young your
assistant
"""


def shape_tokenizer() -> Tokenizer:
    """A token for each byte at the ids 0 to 255, then one for each word, and the control tokens' own ids."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*OPENING.split(), *(f"Ġ{word}" for word in WORDS.split())]
    vocabulary = {text: number for number, text in enumerate([*letters, *words])}
    # No word is merged of others: it is one token where it stands as it is, and bytes elsewhere.
    tokenizer = Tokenizer(
        models.BPE(vocab={**vocabulary, **CONTROL}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROL])
    return tokenizer


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(shape_tokenizer().to_str(pretty=True) + "\n", encoding="utf-8")
