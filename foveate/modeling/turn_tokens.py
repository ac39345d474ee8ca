"""Control tokens of conversations whose turns end with one token, and those that chat templates name."""

from tokenizers import Tokenizer

from foveate.errors import CheckpointError
from foveate.modeling.checkpoint import CONFIG_FILE, Checkpoint

IM_END = "<|im_end|>"


def check_token(checkpoint: Checkpoint, field: str, index: int, tokenizer: Tokenizer) -> None:
    """Refuse a token of config.json that the tokenizer lacks.

    Raises:
        CheckpointError: It does.
    """
    if tokenizer.id_to_token(index) is None:
        raise CheckpointError(
            f"{checkpoint.shown(CONFIG_FILE)}: {field} is {index}, which is no token of "
            "tokenizer.json; correct it, or take the tokenizer that belongs to the model"
        )


def turn_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer, end: str = IM_END) -> dict[str, int]:
    """Ids of the token that ends a turn, and of special tokens that the chat template writes by their names.

    Args:
        checkpoint: The checkpoint.
        tokenizer: Its tokenizer.
        end: The text of what ends a turn.

    Raises:
        CheckpointError: The tokenizer lacks that, or the template writes another eos_token.
    """
    eos = tokenizer.token_to_id(end)
    if eos is None:
        raise CheckpointError(f"{checkpoint.name}: the tokenizer has no {end}")
    template, texts = checkpoint.chat_template(), checkpoint.special_tokens()
    written = texts.get("eos_token", end)
    if "eos_token" in template and written != end:
        raise CheckpointError(
            f"{checkpoint.name}: the chat template writes eos_token, which is {written!r} in the "
            f"tokenizer's settings, where turns end with {end}; write {end} into the template"
        )
    found = {
        role: tokenizer.token_to_id(texts[f"{role}_token"])
        for role in ("bos", "pad", "unk")
        if f"{role}_token" in texts and f"{role}_token" in template
    }
    return {"eos": eos, **{role: index for role, index in found.items() if index is not None}}
