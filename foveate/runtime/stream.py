"""An answer as it grows: text piece by piece, then the whole."""

import time

from foveate.errors import FoveateError
from foveate.runtime.answer import Answer
from foveate.runtime.language.base import Sequence
from foveate.runtime.reply import Reply


class Stream:
    """Iterates over the pieces of an answer's text; afterwards `answer` holds all of it.

    The pieces joined are `answer.text`. The first token is there before the first piece is asked for.
    """

    def __init__(self, sequence: Sequence, reply: Reply) -> None:
        """Go on from a prefilled sequence, and a reply that has chosen its first token."""
        self._sequence, self._reply = sequence, reply

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            FoveateError: The stream was not read to its end.
        """
        if self._reply.answer is None:
            raise FoveateError("the answer is not finished; read the stream to its end first")
        return self._reply.answer

    def __iter__(self) -> "Stream":
        """A stream can be read once."""
        return self

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        reply = self._reply
        while reply.answer is None:
            piece = reply.accept()
            if reply.answer is None:
                began = time.perf_counter()
                reply.choose(self._sequence.step(reply.token, reply.position))
                reply.timing.decode += time.perf_counter() - began
            if piece:
                return piece
        raise StopIteration
