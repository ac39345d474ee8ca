"""The longest text that is tokenized at all, so that a long one costs neither time nor memory."""

from collections.abc import Iterable

from tokenizers import Tokenizer

from foveate.errors import LimitError

PIECE = 1 << 16
"""Characters that are tokenized at a time while a text's tokens are counted."""


class TextLimit:
    """Refuses texts that cannot fit in the model's context, before they are tokenized whole.

    Attributes:
        longest: The most characters of a token.
    """

    def __init__(self, tokenizer: Tokenizer, most_tokens: int) -> None:
        """Look up the longest token.

        Args:
            tokenizer: The bundle's.
            most_tokens: The most tokens of a prompt.
        """
        self._tokenizer, self._most_tokens = tokenizer, most_tokens
        self.longest = max(map(len, tokenizer.get_vocab()), default=1)

    def check(self, texts: Iterable[str]) -> None:
        """Check the texts of one conversation together.

        The first bound is by length alone: each token stands for so many characters at most. A text
        within it is counted piece by piece, and only until it is too long.

        Raises:
            LimitError: They make more tokens than the model takes.
        """
        texts = list(texts)
        length = sum(map(len, texts))
        most = self._most_tokens * self.longest
        if length > most:
            raise self._refusal(length)
        if length <= PIECE:
            return
        tokens = 0
        for text in texts:
            for start in range(0, len(text), PIECE):
                piece = text[start : start + PIECE].encode("utf-8", "replace").decode()
                found = len(self._tokenizer.encode(piece, add_special_tokens=False).ids)
                # A cut may split a token.
                tokens += max(0, found - self.longest)
                if tokens > self._most_tokens:
                    raise self._refusal(length)

    def _refusal(self, length: int) -> LimitError:
        return LimitError(
            f"the prompt has {length} characters, which make more than the {self._most_tokens} tokens "
            "that the model takes; shorten it"
        )
