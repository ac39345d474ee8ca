"""Bundles of random weights: made from a configuration alone, and never taken for a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

from foveate.bundle.reader import Bundle
from foveate.errors import CheckpointError
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.random_weights import count_parameters, draw
from models.shape_tokenizer import CONTROL, shape_tokenizer
from tests.command import invoke, refused

SHAPE = Path(__file__).parents[2] / "models" / "qwen2-vl-7b"
SCENE = SHAPE.parent / "nano" / "samples" / "scene-77-00004.png"


@pytest.fixture(scope="module")
def configuration(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without its weights."""
    return shutil.copytree(
        tiny_checkpoint,
        tmp_path_factory.mktemp("shape") / "shape",
        ignore=shutil.ignore_patterns("*.safetensors"),
    )


def test_weights_are_drawn_in_their_type_and_always_the_same(configuration: Path) -> None:
    checkpoint = Checkpoint.open(configuration)
    model, again = (draw(checkpoint, torch.bfloat16, "eager") for _ in range(2))
    weights = dict(model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    for name, weight in again.named_parameters():
        assert torch.equal(weight, weights[name])
        if name.endswith("bias"):
            assert not weight.any()
        elif weight.dim() == 1:
            assert (weight == 1).all()
        else:
            assert weight.float().std().item() == pytest.approx(0.02, rel=0.1)
    whole = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(configuration))
    assert count_parameters(model) == count_parameters(whole)
    for (name, buffer), (_, wanted) in zip(
        model.named_buffers(), whole.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, wanted), name


def test_a_configuration_that_no_model_has_is_refused(configuration: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(configuration, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"cannot build it from its config\.json"):
        draw(Checkpoint.open(folder), torch.float32, "eager")


def test_the_verb_and_what_its_bundle_says(
    configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above so many weights nothing is compared with transformers."""
    monkeypatch.setattr("foveate.export.exporter.COMPARED", 1)
    options = ("--random-weights", "--operators", "contrib")
    told = invoke("export", configuration, tmp_path / "bundle", *options)
    assert told.exit_code == 0, told.stderr
    assert "weights: random" in told.stdout
    assert "not compared" in told.stdout
    assert "reference" not in told.stderr
    bundle = Bundle.open(tmp_path / "bundle")
    assert (bundle.manifest.weights, bundle.manifest.operators) == ("random", "contrib")
    assert bundle.manifest.parity == {}
    assert "no answer means anything" in invoke("inspect", bundle.root).stdout
    ran = invoke("run", bundle.root, "What?", "--image", SCENE, "--max-new-tokens", 2)
    assert ran.exit_code == 0
    assert "its weights are random" in ran.stderr.splitlines()[0]
    refused(invoke("verify", bundle.root, "--checkpoint", configuration), "random weights")


class TestTheSevenBillionShape:
    def test_it_has_the_published_number_of_weights(self) -> None:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(SHAPE))
        assert count_parameters(model) == 8_291_375_616
        assert set(model.config.text_config.layer_types) == {"full_attention"}

    def test_its_tokenizer_is_what_the_script_writes(self) -> None:
        tokenizer = Tokenizer.from_file(str(SHAPE / "tokenizer.json"))
        assert json.loads(tokenizer.to_str()) == json.loads(shape_tokenizer().to_str())
        ids = tokenizer.encode("<|im_start|>é!<|image_pad|><|im_end|>").ids
        assert (len(ids), ids[0], ids[-2:]) == (6, 151644, [151655, 151645])
        for text, index in CONTROL.items():
            assert tokenizer.token_to_id(text) == index
        assert tokenizer.decode(ids, skip_special_tokens=True) == "é!"
        question = "What is the dog doing?"
        tokens = ["What", "Ġis", "Ġthe", "Ġdog", *"Ġdoing", "?"]
        assert tokenizer.encode(question).tokens == tokens
        assert tokenizer.decode(tokenizer.encode(question).ids) == question
