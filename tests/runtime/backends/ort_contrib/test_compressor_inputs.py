"""What a compressor of contrib operators takes: visual tokens first, then text and padding."""

import numpy as np

from foveate.families.base import Prompt
from foveate.runtime.backends.ort.memory import upload
from foveate.runtime.backends.ort_contrib.compressor_inputs import KeptIndices, compressor_inputs


def test_text_and_instruction_are_padded_after_the_visual_tokens() -> None:
    prompt = Prompt(
        token_ids=np.arange(8), visual_index=np.array([3, 4, 5]), instruction_index=np.array([6, 7]),
        position_ids=np.arange(24).reshape(3, 8), next_position=24,
    )  # fmt: skip
    text = np.ones((5, 2), np.float32)
    assert prompt.text_index.tolist() == [0, 1, 2, 6, 7]
    assert prompt.instruction_rows.tolist() == [3, 4]
    padded = compressor_inputs(prompt, text, 2, 4)
    assert padded["places"].tolist() == [3, 4, 5, 0, 1, 2, 6, 7, 8, 9, 10]
    assert padded["position_ids"][:, 0].tolist() == [3, 4, 5, 0, 1, 2, 6, 7, 0, 0, 0]
    assert padded["position_ids"][:, 2].tolist() == [19, 20, 21, 16, 17, 18, 22, 23, 0, 0, 0]
    assert padded["text_embeds"].sum(1).tolist() == [2] * 5 + [0] * 3
    assert padded["instruction_rows"].tolist() == [6, 7, 3, 3]
    assert padded["instruction_weights"].tolist() == [0.5, 0.5, 0, 0]
    assert padded["keep"].tolist() == [2]
    bare = compressor_inputs(prompt, text, 2, 1)
    assert bare["places"].tolist() == [3, 4, 5, 0, 1, 2, 6, 7]
    assert bare["text_embeds"] is text


def test_kept_indices_are_the_rows_that_are_visual() -> None:
    rows = upload(np.array([9, 0, 2, 3, 10, 11, 12, 12]), "int64", "cpu")
    assert KeptIndices(rows, 9).numpy().tolist() == [0, 2, 3]
