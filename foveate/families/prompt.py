"""Conversations to tokens: the chat template rendered, tokenized, and a place for every visual token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from foveate.errors import BundleError, PromptError
from foveate.families.base import Message, Prompt
from foveate.families.chat import ChatTemplate
from foveate.families.control import ControlTokens
from foveate.families.messages import CARRIED, Conversation
from foveate.families.rendering import render

_NOUNS = {"image": "picture", "video": "video"}
_SPECIAL_VARIABLES = ("bos", "eos", "pad", "unk")


@dataclass(frozen=True, slots=True)
class Placed:
    """A conversation's tokens, each placeholder as often as its picture or video has visual tokens.

    Attributes:
        token_ids: int64 [T].
        visual_index: int64 [N_v], where the visual tokens stand, in the order of pictures and videos.
        instruction_index: int64 [N_u], where the user's instruction stands.
        lengths: int64 [S], how many of the tokens each one that was written stands for.
        slots: int64 [pictures and videos], which of those S each one's placeholder is.
    """

    token_ids: NDArray[np.int64]
    visual_index: NDArray[np.int64]
    instruction_index: NDArray[np.int64]
    lengths: NDArray[np.int64]
    slots: NDArray[np.int64]

    def counted(self) -> Prompt:
        """The prompt of a language model whose positions are the tokens' numbers, on one axis."""
        length = len(self.token_ids)
        return Prompt(
            token_ids=self.token_ids,
            visual_index=self.visual_index,
            instruction_index=self.instruction_index,
            position_ids=np.arange(length, dtype=np.int64)[None],
            next_position=length,
        )


class PromptLayout:
    """One bundle's chat template, tokenizer and control tokens.

    Attributes:
        tokens: Ids of control tokens by role.
    """

    __slots__ = ("_control", "_template", "_variables", "tokens")

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str,
        tokens: Mapping[str, int],
        needed: Sequence[str],
        never_asked: Sequence[str] = (),
    ) -> None:
        """Put them together; switches the tokenizer's truncation and padding off.

        Args:
            tokenizer: The checkpoint's.
            chat_template: The checkpoint's, Jinja text.
            tokens: Ids of control tokens by role. "image" and "video" are the placeholders; "bos", "eos",
                "pad" and "unk", where given, reach the chat template as bos_token and so on. The text of
                every id given is refused in prompts.
            needed: The roles that must be there.
            never_asked: Texts of more control tokens, where the tokenizer has them.

        Raises:
            BundleError: A token that is missing or that the tokenizer lacks.
            PromptError: A chat template that cannot be compiled.
        """
        for role in needed:
            if role not in tokens:
                raise BundleError(f"The bundle names no {role!r} token; export it again.")
        texts = {role: tokenizer.id_to_token(index) for role, index in tokens.items()}
        for role, text in texts.items():
            if text is None:
                raise BundleError(
                    f"The bundle's {role!r} token is {tokens[role]}, which its tokenizer lacks; "
                    "export it again."
                )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokens = dict(tokens)
        self._template = ChatTemplate(chat_template)
        self._variables = {
            f"{role}_token": str(texts[role]) for role in _SPECIAL_VARIABLES if role in texts
        }
        others = map(tokenizer.token_to_id, never_asked)
        control = [*tokens.values(), *(index for index in others if index is not None)]
        self._control = ControlTokens(tokenizer, self._template, self._variables, control)

    def place(
        self, messages: Sequence[Message], kinds: Sequence[str], counts: Sequence[int]
    ) -> Placed:
        """Render a conversation, tokenize it and place every token; see `Family.layout`.

        A template may write the pictures of a turn before its videos: each kind is placed in its own order.

        Args:
            messages: The conversation.
            kinds: Of each picture or video in the order of the messages, "image" or "video".
            counts: How many visual tokens each of them has.

        Raises:
            PromptError: As `Family.layout`.
        """
        conversation = Conversation.of(messages)
        if conversation.kinds != list(kinds):
            raise PromptError(
                f"The messages have places for {_counted(conversation.kinds)}, and {_counted(kinds)} "
                "were given, in this order; add or leave out parts of type image and video."
            )
        wanted = [self._placeholder(kind) for kind in kinds]
        rendered = render(self._template, conversation, self._variables)
        encoding = self._control.checked(rendered)
        ids = np.asarray(encoding.ids, dtype=np.int64)
        known = [self.tokens[kind] for kind in CARRIED if kind in self.tokens]
        places = np.flatnonzero(np.isin(ids, known))
        if sorted(ids[places].tolist()) != sorted(wanted):
            raise PromptError(
                f"The chat template made {len(places)} places for {_counted(kinds)}; check the "
                "bundle's chat template."
            )
        slots = np.zeros(len(wanted), np.int64)
        for token in known:
            slots[np.equal(wanted, token)] = places[ids[places] == token]
        lengths = np.ones_like(ids)
        lengths[slots] = counts
        starts = np.cumsum(lengths) - lengths
        spans = [np.arange(starts[slot], starts[slot] + lengths[slot]) for slot in slots]
        return Placed(
            token_ids=np.repeat(ids, lengths),
            visual_index=np.concatenate([np.empty(0, np.int64), *spans]),
            instruction_index=starts[_within(encoding, rendered.instruction)],
            lengths=lengths,
            slots=slots,
        )

    def _placeholder(self, kind: str) -> int:
        """The token that stands for a picture or a video before it is laid out."""
        if kind not in self.tokens:
            raise PromptError(
                f"The bundle names no {kind!r} token, so it takes no {_NOUNS[kind]}s; export it again."
            )
        return self.tokens[kind]


def _counted(kinds: Sequence[str]) -> str:
    """How many pictures and videos there are, in words."""
    counts = [
        f"{kinds.count(kind)} {noun if kinds.count(kind) == 1 else noun + 's'}"
        for kind, noun in _NOUNS.items()
        if kind in kinds
    ]
    return " and ".join(counts) or "no picture"


def _within(encoding: Encoding, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Which tokens have a character in one of the spans."""
    lefts, rights = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    # A tokenizer that leaves spaces out of its offsets gives a token of spaces an empty one behind them.
    lefts = np.minimum(lefts, rights - 1)
    begins, ends = np.array(sorted(spans), dtype=np.int64).T
    # The last span that begins before a token ends; no other can have a character of it that this has not.
    last = np.searchsorted(begins, rights) - 1
    return np.flatnonzero((last >= 0) & (lefts < ends[last])).astype(np.int64)
