"""A checkpoint's tokenizer: tokenizer.json, and the tokens that other files name beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from foveate.errors import CheckpointError
from foveate.families.settings_file import read_json, reading
from foveate.modeling.fields import Natural, brief, read_as

FILE, CONFIG, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
SPECIAL = "special_tokens_map.json"
SAVE = "save the tokenizer again with transformers' save_pretrained, which puts all tokens there"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(root: Path) -> Tokenizer:
    """A checkpoint's tokenizer, as transformers makes it.

    Args:
        root: The checkpoint's folder.

    Raises:
        CheckpointError: No tokenizer.json, one that is damaged, or tokens beside it that it cannot have.
    """
    path = root / FILE
    with reading(path, "a tokenizer", "save the checkpoint with its tokenizer and processor"):
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    config = read_json(root / CONFIG) if (root / CONFIG).is_file() else {}
    for index, token, file in sorted(_beside(root, config), key=lambda one: one[0]):
        _add(tokenizer, index, token, file)
    for field, content, file in _special(root, config):
        if tokenizer.token_to_id(content) is None:
            raise CheckpointError(
                f"{file}: {field} is {content!r}, which is no token of {FILE}; {SAVE}"
            )
    return tokenizer


def named_tokens(root: Path) -> dict[str, str]:
    """The texts of special tokens by their fields' names, such as "bos_token".

    Raises:
        CheckpointError: A field that holds something else.
    """
    config = read_json(root / CONFIG) if (root / CONFIG).is_file() else {}
    return {field: content for field, content, _ in _special(root, config) if field in NAMED}


def tokenizer_bytes(root: Path, tokenizer: Tokenizer) -> bytes:
    """The tokenizer as a file: the checkpoint's own as it is, if no token was added to it."""
    own = (root / FILE).read_bytes()
    if Tokenizer.from_str(own.decode()).get_vocab_size() == tokenizer.get_vocab_size():
        return own
    return tokenizer.to_str(pretty=True).encode()


def check_rows(tokenizer: Tokenizer, rows: int, file: str) -> None:
    """Refuse a tokenizer with tokens that the embedding table has no row for.

    Raises:
        CheckpointError: It has one.
    """
    vocabulary = tokenizer.get_vocab()
    most = max(vocabulary.values(), default=-1) + 1
    if most > rows:
        last = max(vocabulary, key=lambda token: vocabulary[token])
        raise CheckpointError(
            f"{file}: {most} tokens up to {brief(last)}, and the model's embedding table has {rows} rows; "
            "resize the model's embeddings and save it again, or take the tokenizer that belongs to it"
        )


def _beside(root: Path, config: dict[str, Any]) -> Iterator[tuple[int, AddedToken, str]]:
    """Tokens that stand in other files, with their ids and where they stand."""
    place = f"{root / CONFIG}: added_tokens_decoder"
    decoder = read_as(dict[str, dict[str, Any]], config.get("added_tokens_decoder") or {}, place)
    for key, held in decoder.items():
        if not (key.isascii() and key.isdecimal()):
            raise CheckpointError(
                f"{place} has the key {brief(key)}, which is no token id; correct it"
            )
        content = read_as(str, held.get("content"), f"{place}.{key}.content")
        flags = {
            flag: read_as(bool, held[flag], f"{place}.{key}.{flag}")
            for flag in FLAGS
            if flag in held
        }
        yield int(key), AddedToken(content, **flags), place
    if (root / ADDED).is_file():
        named = read_as(dict[str, Natural], read_json(root / ADDED), str(root / ADDED))
        special = {content for _, content, _ in _special(root, config)}
        contents = {held["content"] for held in decoder.values()}
        for content, index in named.items():
            if content not in contents:
                marked = content in special
                token = AddedToken(content, normalized=not marked, special=marked)
                yield index, token, str(root / ADDED)


def _special(root: Path, config: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Special tokens by field: (field, text, file)."""
    sources = {root / CONFIG: config}
    if (root / SPECIAL).is_file():
        sources[root / SPECIAL] = read_json(root / SPECIAL)
    for file, held in sources.items():
        tokens = [(field, held[field]) for field in NAMED if held.get(field) is not None]
        for field in LISTED:
            listed = held.get(field) or []
            several = listed.values() if isinstance(listed, dict) else listed
            if not isinstance(listed, dict | list):
                raise CheckpointError(
                    f"{file}: {field} is {brief(listed)}, which is no list; correct it"
                )
            tokens += [(field, one) for one in several]
        for field, token in tokens:
            content = token.get("content") if isinstance(token, dict) else token
            yield field, read_as(str, content, f"{file}: {field}"), str(file)


def _add(tokenizer: Tokenizer, index: int, token: AddedToken, file: str) -> None:
    """Add a token where the tokenizer lacks it.

    Raises:
        CheckpointError: It has another id there, or would get one.
    """
    known = tokenizer.token_to_id(token.content)
    if known is None and tokenizer.id_to_token(index) is None:
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([token])
        known = tokenizer.token_to_id(token.content)
    if known != index:
        holder = tokenizer.id_to_token(index)
        raise CheckpointError(
            f"{file}: {token.content!r} is token {index}, and in {FILE} "
            + (
                f"it would be {known}"
                if holder is None or known is not None
                else f"that is {holder!r}"
            )
            + f"; {SAVE}"
        )
