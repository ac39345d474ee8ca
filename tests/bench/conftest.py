"""What the tests of the bench share."""

import json
from pathlib import Path
from typing import Any

import pytest

EVALUATION: dict[str, Any] = {
    "format": "foveate-evaluation",
    "version": 2,
    "groups": [
        {
            "rows": [
                {"way": "own", "ranking": "attention", "used": 0.5, "kept": {"value": 80.0}},
                {"way": "other", "ranking": "attention", "used": 0.5, "kept": {"value": 9.0}},
                {"way": "random", "ranking": "", "used": 0.5, "kept": {"value": 10.0}},
                {
                    "way": "own",
                    "ranking": "some/f_theta.safetensors",
                    "used": 0.25,
                    "kept": {"value": 85.0},
                },
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
