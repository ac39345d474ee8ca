"""The registry of families."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from foveate import families
from foveate.errors import UnsupportedFamilyError
from tests.families.reference import TEMPLATE, control_ids

MODEL_TYPES = {"llava_llama": "vila", "llava_onevision": "llava_onevision", "qwen2_vl": "qwen2_vl"}


def test_a_family_is_created_by_name(tokenizer: Tokenizer) -> None:
    for name in families.names():
        family = families.create(
            name,
            preprocessing={"images": {}},
            tokenizer=tokenizer,
            chat_template=TEMPLATE,
            tokens=control_ids(tokenizer),
        )
        assert family.name == name


def test_model_types_lead_to_families() -> None:
    assert families.names() == ("llava_onevision", "qwen2_vl", "vila")
    for model_type, name in MODEL_TYPES.items():
        assert families.from_model_type(model_type) == name


@pytest.mark.parametrize("unknown", ["qwen2_5_vl", "", "Qwen2_VL"])
def test_unknown_names_are_refused_with_those_known(unknown: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(
        UnsupportedFamilyError, match=f"{unknown!r}; it takes {', '.join(MODEL_TYPES)}"
    ):
        families.from_model_type(unknown)
    with pytest.raises(
        UnsupportedFamilyError, match=f"{unknown!r}; it knows {', '.join(families.names())}"
    ):
        families.create(unknown, preprocessing={}, tokenizer=tokenizer, chat_template="", tokens={})
    with pytest.raises(UnsupportedFamilyError):
        families.settings_from_checkpoint(unknown, Path())


def test_settings_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 4321}))
    assert families.settings_from_checkpoint("qwen2_vl", tmp_path)["images"]["max_pixels"] == 4321


def test_families_and_picture_intake_load_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'torchvision'): sys.modules[name] = None\n"
        "import foveate.families, foveate.runtime.media.pictures\n"
    )
    root = Path(families.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
