"""What several verbs' tests need."""

from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle


@pytest.fixture
def bundle(tiny_bundle: Bundle) -> Path:
    return tiny_bundle.root
