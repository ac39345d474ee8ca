"""Fixtures of the family tests."""

from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from foveate.families.qwen2_vl import Qwen2VL
from tests.families.reference import make_family, make_reference, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The small tokenizer."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def family(tokenizer: Tokenizer) -> Qwen2VL:
    """The family with default settings."""
    return make_family(tokenizer)


@pytest.fixture(scope="session")
def reference(tokenizer: Tokenizer) -> Any:
    """The reference processor."""
    return make_reference(tokenizer)


@pytest.fixture(scope="session")
def model() -> Qwen2VLModel:
    """A tiny random model, for its rotary positions."""
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16},
    )
    return Qwen2VLModel(config)
