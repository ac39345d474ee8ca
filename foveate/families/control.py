"""Control tokens: those that only the chat template may write, and that no text of a prompt may make."""

import contextlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping

from tokenizers import Encoding, Tokenizer

from foveate.errors import PromptError
from foveate.families.chat import ChatTemplate
from foveate.families.rendering import Rendered

_SHOWN = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "."}]
_SAMPLES = (("user",), ("system", "user", "assistant", "user"))
"""Roles of conversations that bring a template to write all that it writes."""


class ControlTokens:
    """The control tokens of one bundle, and how its conversations are tokenized.

    They are the tokens that have a role, and the added tokens that the chat template or the tokenizer
    itself writes. Other special tokens, such as the marks of objects and boxes, are part of how a
    model is asked and answers.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        variables: Mapping[str, str],
        roles: Collection[int],
    ) -> None:
        """Find them.

        Args:
            tokenizer: The checkpoint's.
            template: The checkpoint's.
            variables: More names for the template, such as bos_token.
            roles: Ids of tokens that have a role.
        """
        self._tokenizer, self._bos = tokenizer, variables.get("bos_token")
        written = set(tokenizer.encode("").ids)
        for sample in _SAMPLES:
            turns = [
                {"role": role, "content": _SHOWN if role == "user" else "."} for role in sample
            ]
            # A template may refuse the roles of a sample.
            with contextlib.suppress(PromptError):
                written.update(self.encode(template.render(turns, variables=variables)).ids)
        self.ids = frozenset(roles).union(
            index
            for index, token in tokenizer.get_added_tokens_decoder().items()
            if index in written or token.content in template.source
        )

    def encode(self, text: str) -> Encoding:
        """Tokenize a rendered conversation, as transformers' processors do."""
        opened = bool(self._bos) and text.startswith(str(self._bos))
        return self._tokenizer.encode(text, add_special_tokens=not opened)

    def checked(self, rendered: Rendered) -> Encoding:
        """Tokenize a rendered conversation whose texts neither make nor break a control token.

        Raises:
            PromptError: They do, by themselves, with each other or with what the template writes.
        """
        encoding = self.encode(rendered.text)
        found = self._placed(encoding, rendered.begins)
        own = self._placed(self.encode(rendered.skeleton), rendered.places)
        if found != own:
            made, broken = Counter(found) - Counter(own), Counter(own) - Counter(found)
            token, _ = next(iter(made or broken))
            verb = "holds the text of" if made else "takes apart"
            raise PromptError(
                f"The prompt {verb} the control token {self._tokenizer.id_to_token(token)!r}, which "
                "the model would obey, by itself or together with what stands beside it; remove it."
            )
        return encoding

    def _placed(self, encoding: Encoding, begins: list[int]) -> list[tuple[int, int]]:
        """The control tokens in order, and how many of the texts that begin at `begins` do so before."""
        return [
            (token, bisect_right(begins, left))
            for token, (left, _) in zip(encoding.ids, encoding.offsets, strict=True)
            if token in self.ids
        ]
