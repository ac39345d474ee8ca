"""What the tests of the bench share."""

import json
from pathlib import Path
from typing import Any

import pytest

EVALUATION: dict[str, Any] = {
    "format": "foveate-evaluation",
    "groups": [
        {
            "full": {"accuracy": 90.0},
            "rows": [
                {"ranking": "attention", "used": 0.5, "accuracy": 80.0},
                {"ranking": "random", "used": 0.5, "accuracy": 10.0},
                {"ranking": "some/f_theta.safetensors", "used": 0.25, "accuracy": 85.0},
            ],
        }
    ],
}


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """What an evaluation leaves of itself, as far as a plot reads it."""
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(EVALUATION))
    return path
