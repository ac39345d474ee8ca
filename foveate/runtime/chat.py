"""A conversation that goes on: its turns, its pictures, and what of them need not be computed again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.errors import PromptError
from foveate.families.base import Message
from foveate.runtime.answer import Answer
from foveate.runtime.encoded import EncodedMedia
from foveate.runtime.generation import Stream
from foveate.runtime.language.prefix_cache import PrefixCache
from foveate.runtime.media.pictures import Picture
from foveate.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from foveate.runtime.request import Options


class Chat:
    """A conversation with a pipeline.

    Pictures are encoded when they are shown, all of them together, and their visual tokens are kept
    until others are shown. Each question ranks the visual tokens of all pictures anew. Of the KV cache a turn takes over what comes
    before the first token that it does not share with the turn before: all where nothing is dropped.

    Attributes:
        messages: The turns so far.
        left_out: Whether the last answer says what no prompt may, such as a control token, so that the
            conversation goes on as if nothing had been answered.
        reused: How many tokens of the last prompt the KV cache had already.
    """

    def __init__(
        self,
        pipe: Pipeline,
        *,
        system: str | None = None,
        keep_cache: bool = False,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
    ) -> None:
        """Begin without a turn.

        Args:
            pipe: What answers.
            system: A system prompt; None leaves it to the chat template.
            keep_cache: Keep the visual tokens that the first question after a picture chose, so that
                later ones take over the whole KV cache.
            max_pixels: See `Request`.
            min_pixels: See `Request`.
        """
        self._pipe, self._keep_cache = pipe, keep_cache
        self._limits: dict[str, Any] = {"max_pixels": max_pixels, "min_pixels": min_pixels}
        self._opening: list[Message] = []
        if system is not None:
            self._opening.append({"role": "system", "content": system})
        self._prefix = PrefixCache()
        self._turn: Turn | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all turns and pictures."""
        self._stop()
        self.messages: list[Message] = list(self._opening)
        self._pictures: list[Picture] = []
        self._encoded: EncodedMedia | None = None
        self._kept: Sequence[int] | None = None
        self._new = 0
        self.left_out = False
        self._prefix.clear()

    @property
    def reused(self) -> int:
        """How many tokens of the last prompt the KV cache had already."""
        return self._prefix.reused

    @property
    def keeps(self) -> bool:
        """Whether the next question keeps the visual tokens that an earlier one chose."""
        return self._kept is not None

    def show(self, *pictures: Picture) -> None:
        """Encode pictures, to be shown before the next question.

        Args:
            pictures: Paths, bytes, PIL images or uint8 arrays.

        Raises:
            ImageError: One cannot be read or taken; none is shown then.
            LimitError: More visual tokens than the bundle takes.
        """
        shown = [*self._pictures, *pictures]
        self._encoded = self._pipe.encode(images=shown, **self._limits)
        self._pictures, self._kept = shown, None
        self._new += len(pictures)

    def ask(self, text: str, **options: "Unpack[Options]") -> "Turn":
        """Ask the next question; it becomes part of the conversation with its answer.

        An answer that was not read to its end is stopped.

        Args:
            text: The question.
            options: Fields of `Request` beside prompt and pictures.

        Raises:
            FoveateError: What `Pipeline.stream` raises; the conversation is then as before.
        """
        self._stop()
        parts = [{"type": "image"}] * self._new
        question: Message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        asked = [*self.messages, question]
        ours: dict[str, Any] = {**options, "prefix": self._prefix}
        if self._encoded is not None:
            ours["encoded"] = self._encoded
        if self._kept is not None:
            ours |= {"kept": self._kept, "keep": None}
        self._turn = Turn(self, question, self._pipe.stream(asked, **ours))
        return self._turn

    def _stop(self) -> None:
        """Stop the answer that is under way."""
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    def take(self, question: Message, text: str, answer: Answer | None) -> None:
        """Make a turn part of the conversation; its answer may be cut short."""
        self.left_out = not self._may_be_said(text)
        self.messages += [question, {"role": "assistant", "content": "" if self.left_out else text}]
        self._new = 0
        if self._keep_cache and answer is not None and answer.visual.kept:
            self._kept = [int(one) for one in answer.visual.indices]

    def _may_be_said(self, text: str) -> bool:
        """Whether a prompt may hold an answer's text."""
        family = self._pipe._family
        asked: Message = {"role": "user", "content": "."}
        try:
            family.layout(
                [asked, {"role": "assistant", "content": text}, asked], family.prepare(())
            )
        except PromptError:
            return False
        return True


class Turn:
    """Iterates over the pieces of an answer's text; when it ends or is closed, the chat has it."""

    def __init__(self, chat: Chat, question: Message, stream: Stream) -> None:
        """Follow a stream."""
        self._chat, self._question, self._stream = chat, question, stream
        self._text = ""
        self._open = True

    def __iter__(self) -> "Turn":
        """A turn can be read once."""
        return self

    def __next__(self) -> str:
        """The next piece of text."""
        if not self._open:
            raise StopIteration
        try:
            piece = next(self._stream)
        except StopIteration:
            self._end(self._stream.answer)
            raise
        self._text += piece
        return piece

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            FoveateError: The turn was not read to its end.
        """
        return self._stream.answer

    def close(self) -> None:
        """Stop the answer; what there is of it stays in the conversation. Closing twice is fine."""
        self._stream.close()
        self._end(None)

    def _end(self, answer: Answer | None) -> None:
        """Give the chat what was said, once."""
        if self._open:
            self._open = False
            text = self._text if answer is None else answer.text
            self._chat.take(self._question, text, answer)
