"""What a request gives back."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Visual:
    """Which visual tokens were kept, and why.

    Attributes:
        total: Visual tokens of the request's pictures.
        kept: How many of them the language model saw.
        indices: int64 [kept], ordinals of the kept tokens, ascending.
        relevance: float32 [total], a distribution over the tokens; None where nothing was dropped,
            since the compressor is skipped then, or where the answer ended before its first token.
        picture: int64 [total], the picture or video frame that each token shows.
        boxes: float32 [total, 4], the part of it: left, top, right, bottom from 0 to 1.
        always: How many are never dropped, such as newlines, and are not what a ratio or a count is of;
            they are among `kept` and `total`.
    """

    total: int
    kept: int
    indices: NDArray[np.int64]
    relevance: NDArray[np.float32] | None
    picture: NDArray[np.int64]
    boxes: NDArray[np.float32]
    always: int = 0

    @classmethod
    def nothing(
        cls,
        picture: NDArray[np.int64] | None = None,
        boxes: NDArray[np.float32] | None = None,
    ) -> "Visual":
        """No token kept, of those that `picture` and `boxes` describe, or of none."""
        if picture is None or boxes is None:
            picture, boxes = np.empty(0, np.int64), np.empty((0, 4), np.float32)
        return cls(len(picture), 0, np.empty(0, np.int64), None, picture, boxes)

    @property
    def pictures(self) -> int:
        """How many pictures or video frames its tokens show."""
        return len(np.unique(self.picture))


@dataclass(slots=True)
class Timing:
    """Seconds by stage.

    Attributes:
        preprocess: Decoding, resizing and tokenizing.
        vision: The vision graph.
        compress: Embedding rows, probe, ranking and gather.
        prefill: The language model over the kept prompt, and the first token's choice.
        decode: All later tokens.
        first_token: From the call to the first token.
        total: The whole request.
    """

    preprocess: float = 0.0
    vision: float = 0.0
    compress: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with all that can be asked about it.

    Attributes:
        text: The answer, without special tokens unless the request keeps them; where it goes on with a
            message of the assistant's, only what is new.
        token_ids: Generated tokens; the stop token is not among them.
        finish_reason: "stop" at a stop token or stop text, "length" at the limit; "deadline" and
            "cancelled" where it ended early: `text` and `token_ids` are what there was by then, and before
            the first token they are empty, and nothing was kept.
        prompt_tokens: Tokens the language model took in: text and kept visual tokens.
        cache_bytes: Size of the key-value cache at the end.
        visual: What was kept.
        timing: Seconds by stage.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    cache_bytes: int
    visual: Visual
    timing: Timing = field(default_factory=Timing)
