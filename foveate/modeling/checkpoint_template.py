"""A checkpoint's chat template, from any of the places where transformers keeps it."""

from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError, PromptError
from foveate.families.chat import ChatTemplate
from foveate.families.settings_file import read_json, read_text

FIELD, DEFAULT = "chat_template", "default"
FILE = "chat_template.jinja"
SOURCES = ("processor_config.json", "chat_template.json", FILE, "tokenizer_config.json")
"""Where it may be, in the order in which transformers looks."""


def read_template(root: Path) -> str | None:
    """The Jinja chat template of a folder; of several by name the one named "default".

    Returns:
        Its text; None where the folder has none.

    Raises:
        CheckpointError: It is no text in UTF-8, or no valid template.
    """
    for file in (root / name for name in SOURCES):
        if not file.is_file():
            continue
        if file.name == FILE:
            template = read_text(file)
        else:
            found = choose_named(read_json(file).get(FIELD), file)
            if found is None:
                continue
            template = found
        try:
            ChatTemplate(template)
        except PromptError as error:
            raise CheckpointError(
                f"{file}: not a valid chat template ({error.__cause__}); correct it, or take the "
                "original model's"
            ) from error
        return template
    return None


def choose_named(held: Any, file: Path) -> str | None:
    """The template of a field: a text, or the default of several by name.

    Raises:
        CheckpointError: Something else, or several without a default.
    """
    if held is None or isinstance(held, str):
        return held
    try:
        named = held if isinstance(held, dict) else {one["name"]: one["template"] for one in held}
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{file}: {FIELD} is neither a text nor a list of named templates; save one as {FILE}"
        ) from error
    template = named.get(DEFAULT)
    if not isinstance(template, str):
        raise CheckpointError(
            f"{file}: {FIELD} names {', '.join(map(str, named)) or 'nothing'} and no {DEFAULT!r}; save "
            f"the one to use as {FILE}"
        )
    return template
