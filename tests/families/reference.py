"""A small tokenizer like Qwen2-VL's, its chat template, and the reference processor around them."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts
from transformers import PreTrainedTokenizerFast, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from foveate.families.base import Medium, Prompt, user_turn
from foveate.families.qwen2_vl import Qwen2VL

CONTROL = {
    "pad": "<|endoftext|>",
    "start": "<|im_start|>",
    "eos": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}
TEMPLATE = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
<|im_start|>system
You look closely.<|im_end|>
{% endif %}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}
{{ message['content'] }}<|im_end|>
{% else %}
{% for part in message['content'] %}
{%- if part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{% endfor %}
<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
)


class ReferenceProcessor(Qwen2VLProcessor):
    """The reference without a video processor, which would need torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
        """Take any part as it is."""
        return type(argument)


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE, NFC, control tokens, and one added token that is an ordinary word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cuts.Sequence(
        [
            cuts.Split(_WORDS, behavior="isolated"),
            cuts.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    lines = ["What is in the red star?", "How many blue rings are there in these pictures?"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=cuts.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True) for text in CONTROL.values()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines * 4, trainer)
    tokenizer.add_tokens([AddedToken("glyphword", special=False)])
    return tokenizer


def control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the control tokens by role."""
    return {role: tokenizer.token_to_id(text) for role, text in CONTROL.items()}


def make_reference(tokenizer: Tokenizer, template: str = TEMPLATE, **special: str) -> Any:
    """The reference processor around the same tokenizer and template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **special},
    )
    return ReferenceProcessor(Qwen2VLImageProcessorPil(), fast, None, chat_template=template)


def make_family(tokenizer: Tokenizer, template: str = TEMPLATE, **tokens: int) -> Qwen2VL:
    """Our family around the same tokenizer and template, with default settings."""
    ids = {**control_ids(tokenizer), **tokens}
    return Qwen2VL({"images": {}}, tokenizer, template, ids)


def lay_out(family: Qwen2VL, prompt: Any, media: Sequence[Medium]) -> Prompt:
    """One user turn: the media, then the prompt."""
    return family.layout(user_turn(prompt, media), family.prepare(media))


def counted_positions(
    ids: Sequence[int], placeholders: Sequence[int], grids: Sequence[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """Positions as the model's paper numbers them (M-RoPE): each part from one past the last one's largest.

    transformers 4.57 does so; 5.23 goes on behind the rows or columns of a video alone, so that text after
    a video of more steps gets positions that its frames have.
    """
    positions: list[tuple[int, int, int]] = []
    left, following = list(grids), 0
    while len(positions) < len(ids):
        if ids[len(positions)] in placeholders:
            steps, rows, columns = left.pop(0)
            places = [(t, y, x) for t in range(steps) for y in range(rows) for x in range(columns)]
            positions += [(t + following, y + following, x + following) for t, y, x in places]
            following = max(max(place) for place in positions[-len(places) :]) + 1
        else:
            positions.append((following,) * 3)
            following += 1
    return positions
