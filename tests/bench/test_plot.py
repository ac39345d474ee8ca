"""Answers that stay right, read for the plot."""

import json
from pathlib import Path

import pytest

from foveate.bench.plot import read_quality
from foveate.errors import DataError, FoveateError
from tests.bench.conftest import EVALUATION


def test_quality_is_that_of_the_bundles_ranking(evaluation: Path, tmp_path: Path) -> None:
    assert read_quality(evaluation, "attention") == {"attention": [(0.5, 80.0), (1.0, 100.0)]}
    assert read_quality(evaluation, "f_theta") == {
        "f_theta.safetensors": [(0.25, 85.0), (1.0, 100.0)]
    }
    broken = tmp_path / "broken.json"
    for text in ("", "[]", '{"format": "x"}', json.dumps({**EVALUATION, "groups": []})):
        broken.write_text(text)
        with pytest.raises(DataError, match="no evaluation"):
            read_quality(broken, "attention")
    other = {**EVALUATION, "groups": [{**EVALUATION["groups"][0], "rows": []}]}
    broken.write_text(json.dumps(other))
    with pytest.raises(FoveateError, match="nothing in it was ranked by attention"):
        read_quality(broken, "attention")
