"""Numbers that are not finite: an error wherever they come from, however tokens are chosen; no text."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from foveate import Pipeline, Request
from foveate.bundle.manifest import Precision
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, FoveateError
from foveate.export.exporter import ExportOptions, export
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.finite import remedy
from foveate.runtime.language.base import NextLogits
from foveate.runtime.language.static_decoder import BEST
from tests.command import invoke, refused
from tests.conftest import NANO, Sample
from tests.runtime.poisoned import poison_weight, poison_word
from tests.runtime.watched import graph_of

RED = Tokenizer.from_file(str(NANO / "tokenizer.json")).token_to_id("Ġred")
WITH, WITHOUT = "What letter is in the red square?", "What has the letter A?"
REFUSED = r"not finite.*get them again"


@pytest.fixture(scope="module")
def scene(samples: list[Sample]) -> Path:
    return next(sample.image for sample in samples if sample.task == "letter")


@pytest.fixture(scope="module", params=["standard", "contrib", "tensorrt"])
def pipes(
    request: pytest.FixtureRequest,
    open_engine: Callable[[str], Pipeline],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Pipeline, Pipeline]]:
    """The nano checkpoint on an engine, and the same where the embedding of " red" is NaN."""
    good = open_engine(request.param)
    folder = poison_word(good.bundle, tmp_path_factory.mktemp("poisoned") / "bundle", RED)
    if request.param == "tensorrt":
        from tests.runtime.backends.trt.hosted import host_pipeline

        poisoned = host_pipeline(Bundle.open(folder, checksums=False), "static")
    else:
        poisoned = Pipeline.load(folder, device="cpu", checksums=False)
    with poisoned:
        yield good, poisoned


def test_a_word_that_is_not_a_number_is_refused_and_others_go_on(
    pipes: tuple[Pipeline, Pipeline], scene: Path
) -> None:
    good, poisoned = pipes
    seen, usual = poisoned.encode(images=[scene]), good.encode(images=[scene])
    ways: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "top_k": 3, "top_p": 0.9},
    ]
    for keep in (1.0, 0.5):
        for way in ways:
            with pytest.raises(BackendError, match=REFUSED) as caught:
                seen.generate(WITH, keep=keep, max_new_tokens=6, **way)
            assert not any(precision in str(caught.value) for precision in ("fp32", "fp16", "bf16"))
            assert "\n" not in str(caught.value)
        wanted = usual.generate(WITHOUT, keep=keep, max_new_tokens=6)
        given = seen.generate(WITHOUT, keep=keep, max_new_tokens=6)
        assert (given.token_ids, given.text) == (wanted.token_ids, wanted.text)
    with pytest.raises(BackendError, match=REFUSED):
        seen.generate(WITHOUT, keep=0.5, rank_by=WITH)
    with pytest.raises(BackendError, match=REFUSED):
        poisoned.generate(WITH, images=[scene], kept=range(20))


def test_a_batch_says_which_request_it_is_about(
    pipes: tuple[Pipeline, Pipeline], scene: Path
) -> None:
    _, poisoned = pipes
    if poisoned._language.capabilities.batch is not None:
        pytest.skip("one sequence at a time")
    seen = poisoned.encode(images=[scene])
    for keep in (1.0, 0.5):
        requests = [Request(prompt, encoded=seen, keep=keep) for prompt in (WITHOUT, WITHOUT, WITH)]
        with pytest.raises(BackendError, match=rf"requests\[2\]: .*{REFUSED}"):
            poisoned.generate_batch(requests)


def test_what_was_not_finite_leaves_nothing_behind(
    contrib_bundle: Bundle, open_engine: Callable[[str], Pipeline], scene: Path, tmp_path: Path
) -> None:
    """Shorter prompts are padded on CUDA with what stands in the memory of longer ones."""
    folder = poison_word(contrib_bundle, tmp_path / "bundle", RED)
    usual: dict[str, Any] = {"keep": 0.1, "max_new_tokens": 12, "ignore_eos": True}
    wanted = open_engine("contrib").generate(WITHOUT, images=[scene], **usual).token_ids
    with Pipeline.load(folder, device="cpu", checksums=False) as poisoned:
        seen = poisoned.encode(images=[scene])
        # Nothing dropped; ranked by the graph; chosen on the host by the graph's scores.
        for way in ({"keep": 1.0}, {"keep": 0.9}, {"keep": 50, "rank": "each"}):
            with pytest.raises(BackendError, match=REFUSED):
                seen.generate(WITH, **way)
            (prompt, *_) = poisoned._backend._own.prompt.values()  # type: ignore[attr-defined]
            assert np.isfinite(prompt.numpy()).all()
            for spare in graph_of(poisoned).pool._spare:
                assert all(np.isfinite(one.numpy()).all() for one in spare.states.values())
        assert seen.generate(WITHOUT, **usual).token_ids == wanted


def test_a_token_that_the_answer_comes_to(
    contrib_bundle: Bundle, open_engine: Callable[[str], Pipeline], scene: Path, tmp_path: Path
) -> None:
    """The text before it was right; the error gives everything back and names the request of a batch."""
    ask: dict[str, Any] = {"images": [scene], "keep": 0.5}
    whole = open_engine("contrib").generate("Describe the picture.", **ask)
    folder = poison_word(contrib_bundle, tmp_path / "bundle", whole.token_ids[4])
    with Pipeline.load(folder, device="cpu", checksums=False) as poisoned:
        stream, pieces = poisoned.stream("Describe the picture.", **ask), []
        with pytest.raises(BackendError, match=REFUSED):
            pieces.extend(piece for piece in stream)
        # The token itself is an answer's; what follows it is none.
        assert poisoned._admission._running == 0
        assert list(stream) == []
        with pytest.raises(FoveateError, match="not finished"):
            _ = stream.answer
        assert whole.text.startswith("".join(pieces))
        requests = [Request(WITHOUT, **ask), Request("Describe the picture.", **ask)]
        with pytest.raises(BackendError, match=rf"requests\[1\]: .*{REFUSED}"):
            poisoned.generate_batch(requests)
        assert graph_of(poisoned).pool._spare == []
        assert poisoned.generate(WITHOUT, **ask).text == "purple diamond"


@pytest.mark.parametrize("operators", ["nano_bundle", "contrib_bundle"])
@pytest.mark.parametrize("role", ["vision", "compressor", "decoder"])
def test_a_weight_that_is_not_a_number(
    request: pytest.FixtureRequest, tmp_path: Path, scene: Path, operators: str, role: str
) -> None:
    """Of the contrib decoder it is one of the head: a single logit of all is NaN, and never the first."""
    bundle: Bundle = request.getfixturevalue(operators)
    part = "lm_head" if (role, operators) == ("decoder", "contrib_bundle") else ""
    folder = poison_weight(bundle, tmp_path / "bundle", role, part)
    with Pipeline.load(folder, device="cpu", checksums=False) as pipe:
        for keep in (1.0, 0.5):
            ask = {"images": [scene], "keep": keep, "max_new_tokens": 2}
            if (role, keep) == ("compressor", 1.0):
                # Nothing is ranked, so nothing is wrong.
                assert pipe.generate(WITH, **ask).text == "E"
                continue
            with pytest.raises(BackendError, match=REFUSED):
                pipe.generate(WITH, **ask)
        assert pipe._admission._running == 0


def test_half_precision_is_told_of_a_wider_one(
    half_bundle: Bundle, tmp_path: Path, scene: Path
) -> None:
    with Pipeline.load(half_bundle.root, device="cpu") as good:
        token = int(good._tokenizer.encode(WITH).ids[-1])
    folder = poison_word(half_bundle, tmp_path / "bundle", token, np.inf)
    with Pipeline.load(folder, device="cpu", checksums=False) as pipe:
        for keep in (1.0, 0.5):
            with pytest.raises(BackendError, match="--precision fp32") as caught:
                pipe.generate(WITH, images=[scene], keep=keep, max_new_tokens=2)
            assert "fp16" not in str(caught.value)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_word_that_quantization_would_hide(
    nano_bundle: Bundle, tmp_path: Path, precision: Precision
) -> None:
    folder = poison_word(nano_bundle, tmp_path / "bundle", RED)
    manifest = replace(nano_bundle.manifest, precision=precision)
    table = EmbeddingTable(Bundle(folder, manifest))
    assert np.isfinite(table.look_up(np.array([RED - 1, RED + 1]))).all()
    with pytest.raises(BackendError, match=f"embeddings .* {REFUSED}"):
        table.look_up(np.array([RED - 1, RED]))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8", "int4"])
def test_the_precision_in_use_is_never_advised(precision: Precision) -> None:
    said = remedy(precision, "export the checkpoint with --precision bf16")
    assert precision not in said
    assert ("--precision" in said) == (precision not in ("fp32", "bf16"))
    assert "weights" in said


def test_a_checkpoint_is_exported_and_refused_when_it_is_run(tmp_path: Path, scene: Path) -> None:
    """The questions that export compares do not have the word."""
    checkpoint = shutil.copytree(
        NANO, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("samples")
    )
    weights, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    tensors = load_file(weights)
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors["lm_head.weight"] = tensors[name].copy()
    tensors[name][RED] = np.nan
    save_file(tensors, weights, {"format": "pt"})
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "tie_word_embeddings": False}), encoding="utf-8")
    bundle = export(checkpoint, tmp_path / "bundle", ExportOptions(operators="contrib")).root
    for keep in ("1", "0.5"):
        words = ["run", bundle, WITH, "--image", scene, "--keep", keep]
        for more in ([], ["--json"], ["--temperature", "1"]):
            refused(invoke(*words, *more), "not finite", "get them again")
    assert invoke("run", bundle, WITHOUT, "--image", scene).stdout == "purple diamond\n"


# The logits of one step


@pytest.fixture(scope="module")
def tail(contrib_bundle: Bundle) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The end of the contrib decoder that chooses, as it was exported: logits in, `best_or_nan` out."""
    graph = onnx.load(contrib_bundle.file("decoder"), load_external_data=False).graph
    nodes, wanted = [], {BEST}
    for node in reversed(graph.node):
        if wanted & set(node.output) and "logits" not in node.output:
            nodes.append(node)
            wanted |= set(node.input)
    constants = [one for one in graph.initializer if one.name in wanted]
    vocabulary = contrib_bundle.manifest.model.vocabulary
    model = helper.make_model(
        helper.make_graph(
            nodes[::-1],
            "tail",
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", vocabulary])],
            [helper.make_tensor_value_info(BEST, TensorProto.FLOAT, ["batch"])],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda logits: session.run([BEST], {"logits": logits})[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_wherever_a_logit_is_not_finite(
    tail: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    contrib_bundle: Bundle,
    value: float,
) -> None:
    """At every place, in a row by itself: the maximum that onnxruntime finds passes most NaN over."""
    count = contrib_bundle.manifest.model.vocabulary
    good = np.random.default_rng(0).standard_normal((count, count)).astype(np.float32)
    assert tail(good).tolist() == good.argmax(axis=1).tolist()
    bad = good.copy()
    np.fill_diagonal(bad, value)
    assert np.isnan(tail(bad)).all()
    two = np.stack([good[0], bad[7]])
    found = tail(two)
    assert NextLogits(lambda: two, lambda: found, 0).argmax() == good[0].argmax()
    for best in (None, lambda: found):
        for read in ("argmax", "logits"):
            with pytest.raises(BackendError, match="the language model's logits are not finite"):
                getattr(NextLogits(lambda: two, best, 1), read)()


def test_logits_whose_sum_alone_is_not_finite(
    tail: Callable[[NDArray[np.float32]], NDArray[np.float32]], contrib_bundle: Bundle
) -> None:
    logits = np.full((1, contrib_bundle.manifest.model.vocabulary), 3e38, np.float32)
    logits[0, 5] = 3.1e38
    found = tail(logits)
    assert np.isnan(found).all()
    assert NextLogits(lambda: logits, lambda: found).argmax() == 5


def test_graphs_without_the_checked_argmax_are_read_whole(
    contrib_bundle: Bundle, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pipeline.load(contrib_bundle.root, device="cpu") as pipe:
        wanted = pipe.generate("Describe the picture.", images=[scene], keep=0.5).token_ids
        graph = graph_of(pipe)
        graph.pool._spare.clear()
        monkeypatch.delitem(graph.engine.types, BEST)
        given = pipe.generate("Describe the picture.", images=[scene], keep=0.5).token_ids
        assert BEST not in graph.pool._spare[0].step.outputs
    assert given == wanted
