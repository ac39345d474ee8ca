"""What a bundle's texts become: its tokenizer, and its family set up with its preprocessing."""

from tokenizers import Tokenizer

from foveate import families
from foveate.bundle.manifest import AGAIN, MANIFEST, short
from foveate.bundle.reader import Bundle
from foveate.bundle.reading import reading
from foveate.errors import BundleError, PromptError
from foveate.families.base import Family


def read_tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's tokenizer.

    Raises:
        BundleError: Its file is no tokenizer.
    """
    path = bundle.file("tokenizer")
    with reading(path, "a tokenizer"):
        return Tokenizer.from_file(str(path))


def read_family(bundle: Bundle, tokenizer: Tokenizer, levels: bool | None = None) -> Family:
    """The bundle's model family, set up with its preprocessing, chat template and tokens.

    Args:
        bundle: The bundle.
        tokenizer: Its tokenizer.
        levels: Whether pictures become 8-bit levels; None is what the bundle's vision graph takes.

    Raises:
        BundleError: Parts that are wrong or do not fit together.
        UnsupportedFamilyError: A family that this Foveate does not know.
    """
    manifest, path = bundle.manifest, bundle.file("chat_template")
    source = bundle.root / MANIFEST
    with reading(path, "a chat template"):
        template = path.read_text(encoding="utf-8")
    for name, token in manifest.tokens.items():
        if tokenizer.id_to_token(token) is None:
            raise BundleError(
                f"{source}: the token {short(name)!r} is {token}, which "
                f"{bundle.file('tokenizer')} does not have. {AGAIN}"
            )
    # Prompts may hold no special token that ends an answer, whether it has another role or not.
    added = tokenizer.get_added_tokens_decoder()
    stops = {f"stop {token}": token for token in manifest.generation.eos if token in added}
    try:
        return families.create(
            manifest.family,
            preprocessing=manifest.preprocessing,
            tokenizer=tokenizer,
            chat_template=template,
            tokens={**stops, **manifest.tokens},
            levels=manifest.operators == "contrib" if levels is None else levels,
        )
    except (BundleError, PromptError) as error:
        file = path if isinstance(error, PromptError) else source
        raise BundleError(f"{file}: {error}") from error
