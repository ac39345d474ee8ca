"""What a bundle's texts become: its tokenizer, and its family set up with its preprocessing."""

from tokenizers import Tokenizer

from foveate import families
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError
from foveate.families.base import Family


def read_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer.

    Raises:
        BundleError: Its file is no tokenizer.
    """
    path = bundle.file("tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise BundleError(f"{path}: not a tokenizer ({error}); export the bundle again") from error


def read_family(bundle: Bundle, tokenizer: Tokenizer) -> Family:
    """The bundle's model family, set up with its preprocessing, chat template and tokens.

    Raises:
        BundleError: Parts that are wrong or do not fit together.
        UnsupportedFamilyError: A family that this Foveate does not know.
    """
    manifest = bundle.manifest
    # Prompts may hold no special token that ends an answer, whether it has another role or not.
    added = tokenizer.get_added_tokens_decoder()
    stops = {f"stop {token}": token for token in manifest.generation.eos if token in added}
    return families.create(
        manifest.family,
        preprocessing=manifest.preprocessing,
        tokenizer=tokenizer,
        chat_template=bundle.file("chat_template").read_text(encoding="utf-8"),
        tokens={**stops, **manifest.tokens},
        levels=manifest.operators == "contrib",
    )
