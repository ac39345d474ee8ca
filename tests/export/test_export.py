"""Export: every graph agrees with transformers, at every precision, and what cannot be done is said."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from foveate import Pipeline
from foveate.bundle.manifest import CONTRIB_SUFFIX, GATHER
from foveate.bundle.reader import Bundle
from foveate.bundle.words import Words
from foveate.errors import (
    BackendError,
    CheckpointError,
    FoveateError,
    KeepError,
    LimitError,
    OutputExistsError,
    ParityError,
    UnsupportedFamilyError,
)
from foveate.export.contrib.cases import compressor_case
from foveate.export.contrib.compressor import compressor
from foveate.export.exporter import STAGES, ExportOptions, export
from foveate.export.parity import TOLERANCE, difference
from foveate.export.plans import compressor_plan
from foveate.export.reference import pictures, reference
from foveate.export.trace import save_graph, write_graph
from foveate.export.verify import verify
from foveate.modeling.cast_weights import cast_weights
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.f_theta import FTheta, Scaling
from foveate.modeling.families import torch_family
from foveate.modeling.ranker import Ranker
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions
from foveate.runtime.load import read_family, read_tokenizer
from tests.checkpoints import write_checkpoint


def test_graphs_agree_with_transformers(tiny_bundle: Bundle, nano_bundle: Bundle) -> None:
    """1e-5 of the largest magnitude: float32 sums in another order."""
    for bundle in (tiny_bundle, nano_bundle):
        parity = bundle.manifest.parity
        assert set(parity) == {"vision", "embeddings", "compressor", "decoder"}
        assert max(parity.values()) <= TOLERANCE["fp32"] == 1e-5
        assert parity["vision"] > 0


def test_contrib_graphs_agree_and_their_names_say_who_reads_them(contrib_bundle: Bundle) -> None:
    manifest = contrib_bundle.manifest
    assert set(manifest.graphs) == {"vision", "compressor", "merge", "decoder"}
    assert set(manifest.parity) == {*manifest.graphs, "embeddings"}
    assert max(manifest.parity.values()) <= TOLERANCE["fp32"]
    for role in manifest.graphs:
        assert manifest.files[role].path == f"{role}.contrib.onnx"
    assert manifest.files["decoder.weights"].path == "decoder.contrib.onnx.data"
    assert (manifest.operators, manifest.vision_axes) == ("contrib", {})


def test_axes_of_the_vision_graph_follow_from_the_request(tiny_bundle: Bundle) -> None:
    axes = tiny_bundle.manifest.vision_axes
    inputs = tiny_bundle.graph("vision").inputs
    assert axes.keys() == {axis for one in inputs for axis in one.shape if isinstance(axis, str)}
    family = read_family(tiny_bundle, read_tokenizer(tiny_bundle))
    visual = family.prepare(pictures()[:1])
    for one in inputs:
        for axis, size in zip(one.shape, visual.calls[0].inputs[one.name].shape, strict=True):
            if isinstance(axis, str):
                rule = axes[axis]
                assert size == rule.per_token * visual.tokens + rule.per_picture + rule.plus


@pytest.mark.parametrize("fixture", ["tiny_bundle", "half_bundle"])
def test_the_embedding_table_is_the_checkpoints(
    fixture: str, tiny_checkpoint: Path, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    assert "embeddings" not in bundle.manifest.graphs
    path = bundle.file("embeddings")
    assert path.name == "embeddings.safetensors"
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 8 == 0
    (table,) = load_file(path).items()
    weights = load_file(tiny_checkpoint / "model.safetensors")
    (wanted,) = (weights[name] for name in weights if name.endswith("embed_tokens.weight"))
    dtype = torch.float16 if fixture == "half_bundle" else torch.float32
    assert table[0] == "embeddings"
    assert torch.equal(table[1], wanted.to(dtype))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precisions_agree_within_their_bound(
    tiny_checkpoint: Path, half_bundle: Bundle, tmp_path: Path, precision: str
) -> None:
    """fp16 2e-2 and bf16 1e-1 of the largest magnitude: rounding after each operator on both sides."""
    bundle = half_bundle
    if precision == "bf16":
        bundle = export(tiny_checkpoint, tmp_path / "bundle", ExportOptions(precision="bf16"))
    assert 0 < bundle.manifest.parity["decoder"] <= TOLERANCE[precision]
    wanted = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    graph = onnx.load(bundle.file("decoder"), load_external_data=False).graph
    weights = [weight.data_type for weight in graph.initializer if len(weight.dims) == 2]
    assert set(weights) == {wanted}
    picture = np.zeros((112, 112, 3), np.uint8)
    if precision == "bf16":
        with pytest.raises(BackendError, match="bf16"):
            Pipeline.load(bundle.root, device="cpu")
    else:
        with Pipeline.load(bundle.root, device="cpu") as pipe:
            assert pipe.generate("What is it?", images=[picture], max_new_tokens=3).token_ids


def test_a_trained_network_of_heads_apart_ranks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    heads = json.loads((tiny_checkpoint / "config.json").read_text())["text_config"]
    weights = tmp_path / "f_theta.safetensors"
    network = FTheta(heads["num_attention_heads"], "log")
    network.save(weights, {"trained_on": "nothing", "figure.overlap_at_25": "0.5"})
    options = ExportOptions(compressor=weights, keep=0.5, operators="contrib")
    seen: list[tuple[str, int, int]] = []
    bundle = export(
        tiny_checkpoint, tmp_path / "bundle", options, progress=lambda *stage: seen.append(stage)
    )
    stages = [name for name in STAGES if name != GATHER]
    assert seen == [(name, number, len(stages)) for number, name in enumerate(stages, start=1)]
    facts = bundle.manifest.compressor
    assert (facts.kind, facts.keep, facts.trained_on) == ("f_theta", 0.5, "nothing")
    assert facts.figures == {"overlap_at_25": 0.5}
    assert FTheta.load(bundle.file("f_theta"))[0].scaling == "log"
    assert bundle.manifest.parity["compressor"] <= 1e-5
    assert verify(bundle, tiny_checkpoint)["compressor"] <= 1e-5
    picture = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    with Pipeline.load(bundle.root) as pipe:
        visual = pipe.generate("What is it?", images=[picture], max_new_tokens=1).visual
    assert (visual.kept, visual.total) == (32, 64)


def rankers(heads: int) -> Iterator[Ranker]:
    """Attention and f_θ in each of their forms at least once, random weights in what is trained."""
    torch.manual_seed(1)
    yield Ranker(words="unusual")
    forms: list[tuple[int, Scaling, Words]] = [
        (1, "none", "mean"), (heads, "log", "mean"), (1, "log", "unusual"), (1, "none", "learned"),
        (heads, "log", "learned"),
    ]  # fmt: skip
    for form in forms:
        network = FTheta(*form).eval()
        for slopes in network.words.parameters():
            torch.nn.init.normal_(slopes)
        yield Ranker(network)


def test_every_way_to_rank_gives_in_its_graph_what_it_gives_in_torch(
    tiny_checkpoint: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Scores and relevance to 1e-5 of the largest, of standard and of contrib operators: float32 sums."""
    torch_half = torch_family(tiny_bundle.manifest.family)
    family = read_family(tiny_bundle, read_tokenizer(tiny_bundle))
    model = torch_half.load(Checkpoint.open(tiny_checkpoint), torch.float32, "eager")
    language, facts = torch_half.language(model), torch_half.facts(model)
    for number, ranker in enumerate(rankers(facts.heads)):
        cases = reference(torch_half, model, ranker, family)
        (case,) = (case for case in cases if case.role == "compressor")
        folder = tmp_path / str(number)
        folder.mkdir()
        files, _ = write_graph(compressor_plan(language, facts, ranker), folder)
        graph = compressor(language, facts, ranker, torch.float32)
        contrib, _ = save_graph("compressor", graph, folder, CONTRIB_SUFFIX)
        for name, one in ((files, case), (contrib, compressor_case(case))):
            engine = OnnxEngine(folder / name["compressor"], OnnxOptions())
            outputs = {key: value.numpy() for key, value in engine.run(one.feeds).items()}
            assert difference("compressor", outputs, one.expected, "fp32") <= 1e-5
            engine.close()


def test_an_f_theta_that_reads_another_models_heads_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "f_theta.safetensors"
    FTheta(7).save(weights, {})
    with pytest.raises(CheckpointError, match="reads 7 heads"):
        export(tiny_checkpoint, tmp_path / "bundle", ExportOptions(compressor=weights))
    assert [path.name for path in tmp_path.iterdir()] == ["f_theta.safetensors"]


def test_verify_tells_another_checkpoint_apart(
    tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert max(verify(tiny_bundle, tiny_checkpoint).values()) <= 1e-5
    other = write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ParityError, match="differs from transformers"):
        verify(tiny_bundle, other)
    wider = write_checkpoint(tmp_path / "wider", hidden=96)
    with pytest.raises(ParityError, match="other sizes"):
        verify(tiny_bundle, wider)


def test_graphs_hold_no_trace_of_the_machine(tiny_bundle: Bundle) -> None:
    for role in tiny_bundle.manifest.graphs:
        data = tiny_bundle.file(role).read_bytes()
        assert b".py" not in data
        assert b"site-packages" not in data


def break_model_type(folder: Path) -> None:
    """Another family."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


def break_sliding_window(folder: Path) -> None:
    """A window over the keys."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 0,
    }
    config["text_config"].pop("layer_types")
    (folder / "config.json").write_text(json.dumps(config))


BREAKS = [
    (lambda folder: (folder / "config.json").unlink(), CheckpointError, "config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), CheckpointError, "config.json"),
    (break_model_type, UnsupportedFamilyError, "llama"),
    (break_sliding_window, CheckpointError, "liding"),
    (lambda folder: (folder / "tokenizer.json").unlink(), CheckpointError, "tokenizer.json"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), CheckpointError, "chat template"),
    (
        lambda folder: (folder / "preprocessor_config.json").unlink(),
        CheckpointError,
        "image settings",
    ),
    (lambda folder: (folder / "model.safetensors").unlink(), CheckpointError, "cannot load"),
    (
        lambda folder: (folder / "model.safetensors").write_bytes(b"junk"),
        CheckpointError,
        "cannot load",
    ),
]


@pytest.mark.parametrize(("break_it", "error", "message"), BREAKS)
def test_a_broken_checkpoint_is_one_error_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, break_it, error: type[FoveateError], message: str
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    break_it(folder)
    with pytest.raises(error, match=message):
        export(folder, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_what_cannot_be_is_refused_first(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for keep in (0.0, 1.5, float("nan")):
        with pytest.raises(KeepError):
            export(tiny_checkpoint, tmp_path / "b", ExportOptions(keep=keep))
    with pytest.raises(CheckpointError, match="no such folder"):
        export(tmp_path / "missing", tmp_path / "b")
    with pytest.raises(CheckpointError, match="safetensors"):
        export(tiny_checkpoint, tmp_path / "b", ExportOptions(compressor="missing.safetensors"))
    with pytest.raises(LimitError, match="context"):
        export(tiny_checkpoint, tmp_path / "b", ExportOptions(visual_tokens=10**6))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputExistsError):
            export(tiny_checkpoint, tmp_path / "b", ExportOptions(force=force))
    assert (tmp_path / "b" / "mine.txt").read_text() == "mine"


def test_cast_weights_are_those_that_torch_casts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = load_file(tiny_checkpoint / "model.safetensors")
    checkpoint = Checkpoint.open(tiny_checkpoint)
    assert cast_weights(checkpoint, torch.float32, tmp_path) is checkpoint
    half = cast_weights(checkpoint, torch.bfloat16, tmp_path)
    copy = load_file(half.root / "model.safetensors")
    assert set(copy) == set(source)
    for name, weight in source.items():
        assert copy[name].dtype == torch.bfloat16
        assert torch.equal(copy[name], weight.to(torch.bfloat16))
