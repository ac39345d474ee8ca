"""Fixtures of the family tests."""

from typing import Any

import pytest
from tokenizers import Tokenizer

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
