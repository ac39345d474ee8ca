"""A decoder over a static cache computes what the one over a growing cache does; engines are built, not run."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import helper, numpy_helper

from foveate.bundle.manifest import GraphSpec
from foveate.bundle.reader import Bundle
from foveate.errors import ExportError
from foveate.export.tensorrt import library
from foveate.export.tensorrt.build import build_engines
from foveate.export.tensorrt.checks import check_cache
from foveate.export.tensorrt.library import Builder, check_decoder
from foveate.export.tensorrt.profiles import cache_capacity, plan_profiles
from foveate.export.tensorrt.static import static_graph
from foveate.export.tensorrt.targets import read_targets
from foveate.runtime.backends.trt.tensor_specs import static_spec
from tests.command import invoke, refused
from tests.runtime.backends.trt.hosted import open_graph

CAPACITY = 48
TOLERANCE = 1e-5
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
Arrays = dict[str, Any]


class Session:
    """A decoder graph in onnxruntime, with its weights where they are."""

    def __init__(self, graph: bytes, folder: Path) -> None:
        self.session = open_graph(graph, folder)
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]

    def zeros(self, batch: int, length: int) -> Arrays:
        """A cache."""
        pasts = [one for name, one in self.inputs.items() if name.startswith("past.")]
        return {
            one.name: np.zeros((batch, one.shape[1], length, one.shape[3]), TYPES[one.type])
            for one in pasts
        }

    def run(self, embeds: Any, cache: Arrays, **others: Any) -> tuple[Any, Arrays]:
        """Logits, and the cache afterwards."""
        dtype = TYPES[self.inputs["inputs_embeds"].type]
        feeds = {"inputs_embeds": embeds.astype(dtype), **others, **cache}
        logits, *states = self.session.run(self.outputs, feeds)
        names = (name.replace("present.", "past.") for name in self.outputs[1:])
        return logits, dict(zip(names, states, strict=True))


def chunks(width: int, seed: int) -> Iterator[tuple[int, Any, Any]]:
    """A prompt and steps, and once several tokens at a time, until the cache is full: positions have gaps."""
    generator = np.random.default_rng(seed)
    place = 0
    for count in (30, 1, 1, 7, 1, CAPACITY - 41, 1):
        embeds = generator.standard_normal((1, count, width))
        gaps = np.sort(generator.integers(place, place + 3 * count + 1, (3, 1, count)), axis=-1)
        place = int(gaps.max()) + 4
        yield count, embeds, gaps


def distance(found: Any, wanted: Any) -> float:
    """The largest difference over the largest value."""
    gap = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
    return float(gap / np.abs(wanted.astype(np.float64)).max())


def check_parity(bundle: Bundle) -> None:
    """Both decoders of a bundle compute the same logits and the same cache, call after call."""
    path = bundle.file("decoder")
    growing = Session(path.read_bytes(), path.parent)
    static = Session(static_graph(path, CAPACITY), path.parent)
    grown, fixed, length = growing.zeros(1, 0), static.zeros(1, CAPACITY), 0
    for count, embeds, places in chunks(bundle.manifest.model.hidden_size, 0):
        seen = np.ones((1, length + count), np.int64)
        wanted, grown = growing.run(embeds, grown, position_ids=places, attention_mask=seen)
        found, fixed = static.run(
            embeds, fixed, position_ids=places, write_indices=np.array([length])
        )
        length += count
        assert np.isfinite(found).all()
        assert distance(found, wanted) <= TOLERANCE
        for name, state in fixed.items():
            assert distance(state[:, :, :length], grown[name]) <= TOLERANCE
            assert not state[:, :, length:].any()
    assert length == CAPACITY


def test_the_same_is_computed_in_fp32(tiny_bundle: Bundle) -> None:
    check_parity(tiny_bundle)


def test_the_same_is_computed_in_fp16(half_bundle: Bundle) -> None:
    check_parity(half_bundle)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_same_is_computed_by_quantized_graphs(
    quantized_bundles: dict[str, Bundle], precision: str
) -> None:
    check_parity(quantized_bundles[precision])


def test_every_sequence_of_a_batch_sees_its_own_cache(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.file("decoder")
    session = Session(static_graph(path, CAPACITY), path.parent)
    generator = np.random.default_rng(0)
    lengths = (5, 11)
    caches, alone = [], []
    for length in lengths:
        places = np.tile(np.arange(length), (3, 1, 1))
        _, cache = session.run(
            generator.standard_normal((1, length, 64)), session.zeros(1, CAPACITY),
            position_ids=places, write_indices=np.array([0]),
        )  # fmt: skip
        caches.append(cache)
    embeds, places = generator.standard_normal((2, 3, 64)), np.tile(np.arange(20, 23), (3, 2, 1))
    for row, length in enumerate(lengths):
        logits, _ = session.run(
            embeds[row : row + 1], caches[row], position_ids=places[:, :1],
            write_indices=np.array([length]),
        )  # fmt: skip
        alone.append(logits)
    both = {name: np.concatenate([cache[name] for cache in caches]) for name in caches[0]}
    found, _ = session.run(embeds, both, position_ids=places, write_indices=np.array(lengths))
    assert distance(found, np.concatenate(alone)) <= TOLERANCE
    wrong, _ = session.run(embeds, both, position_ids=places, write_indices=np.array(lengths[::-1]))
    assert distance(wrong, np.concatenate(alone)) > 100 * TOLERANCE


def test_the_graph_is_valid_and_holds_no_weights(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tiny_bundle.file("decoder")
    shutil.copyfile(path.with_name("decoder.onnx.data"), tmp_path / "decoder.onnx.data")
    data = static_graph(path, CAPACITY)
    (tmp_path / "static.onnx").write_bytes(data)
    onnx.checker.check_model(str(tmp_path / "static.onnx"), full_check=True)
    assert len(data) < path.stat().st_size
    model = onnx.load_from_string(data)
    spec = static_spec(tiny_bundle.graph("decoder"), CAPACITY)
    for values, promised in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        for value, tensor in zip(values, promised, strict=True):
            axes = value.type.tensor_type.shape.dim
            assert value.name == tensor.name
            assert [axis.dim_param or axis.dim_value for axis in axes] == tensor.shape


# Graphs that are not as expected


def bias(graph: Any) -> None:
    """Add something to the mask for far away keys, as some models do."""
    (adds, *_) = masks(graph)
    graph.initializer.append(numpy_helper.from_array(np.float32(1), "bias"))
    graph.node.insert(0, helper.make_node("Add", [adds.input[1], "bias"], ["biased"], name="bias"))
    maker = next(node for node in graph.node if adds.input[1] in node.output)
    moved = graph.node.pop(0)
    graph.node.insert(list(graph.node).index(maker) + 1, moved)
    for node in masks(graph):
        node.input[1] = "biased"


def masks(graph: Any) -> list[Any]:
    """The nodes that add the mask."""
    makers = {node.output[0]: node for node in graph.node}
    return [makers[node.input[0]] for node in graph.node if node.op_type == "Softmax"]


def two_masks(graph: Any) -> None:
    """Give one layer a mask of its own."""
    node = masks(graph)[0]
    place = list(graph.node).index(node)
    graph.node.insert(place, helper.make_node("Identity", [node.input[1]], ["own"], name="own"))
    node.input[1] = "own"


def window(graph: Any) -> None:
    """Let no token see far back: keys must be less than 20 before it."""
    compare = next(node for node in graph.node if node.op_type == "LessOrEqual")
    place = list(graph.node).index(compare)
    keys, rows = compare.input
    graph.initializer.append(numpy_helper.from_array(np.array(20), "window"))
    for node in (
        helper.make_node("And", ["causal", "near"], [compare.output[0]], name="both"),
        helper.make_node("Greater", ["reach", rows], ["near"], name="near"),
        helper.make_node("Add", [keys, "window"], ["reach"], name="reach"),
    ):
        graph.node.insert(place + 1, node)
    compare.output[0] = "causal"


def other_axis(graph: Any) -> None:
    """Append to the cache elsewhere."""
    node = next(node for node in graph.node if "past.1.key" in node.input and len(node.input) == 2)
    next(one for one in node.attribute if one.name == "axis").i = 1


def reads_cache(graph: Any) -> None:
    """Read the cache in another node, too."""
    graph.node.insert(0, helper.make_node("Neg", ["past.0.value"], ["negated"], name="odd"))
    node = next(
        node for node in graph.node if node.op_type == "Concat" and "past.0.value" in node.input
    )
    node.input[1:] = ["negated"]


def no_mask(graph: Any) -> None:
    """Rename the mask."""
    next(one for one in graph.input if one.name == "attention_mask").name = "mask"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (bias, "its mask is not the causal one"),
        (window, "its mask is not the causal one"),
        (two_masks, "do not all add one mask"),
        (other_axis, "is not what appends to past.1.key"),
        (reads_cache, "odd reads the cache"),
        (no_mask, "lacks an input"),
    ],
)
def test_a_graph_that_is_not_as_expected_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, change: Callable[[Any], None], words: str
) -> None:
    model = onnx.load(str(tiny_bundle.file("decoder")), load_external_data=False)
    change(model.graph)
    onnx.save(model, tmp_path / "decoder.onnx")
    with pytest.raises(ExportError) as caught:
        static_graph(tmp_path / "decoder.onnx", CAPACITY)
    assert words in str(caught.value)
    assert "--decoder concat" in str(caught.value)


# Targets


def test_every_target_can_have_a_static_decoder(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    for target in read_targets().values():
        assert target.decoder == "concat"
        for count, names in ((1, ["default"]), (2, ["decode", "prefill"])):
            static = replace(target, decoder="static", decoder_profiles=count)
            capacity = cache_capacity(manifest, static)
            assert capacity == min(target.ranges.cache[1], manifest.limits.prompt_tokens)
            plans = plan_profiles(manifest, static)["decoder"]
            assert [plan.name for plan in plans] == names
            spec = static_spec(manifest.graphs["decoder"], capacity)
            for plan in plans:
                low, _, most = plan.ranges(spec, "decoder").shapes["past.0.key"]
                assert low == most == [1, 2, capacity, 16]
            assert plans[-1].axes["sequence"][2] == min(target.ranges.prompt[1], capacity)
            assert plans[0].axes["sequence"][0] == 1


def test_libraries_that_cannot_write_caches_in_place() -> None:
    thor = replace(read_targets()["jetson-thor"], decoder="static")
    with pytest.raises(
        ExportError, match=r"TensorRT 10\.13\.3 cannot .* came with 10\.15\. .*--decoder concat"
    ):
        check_decoder("jetson-thor", thor, Builder(None, "tensorrt", "10.13.3"))
    check_decoder("jetson-thor", thor, Builder(None, "tensorrt", "10.16.1"))
    check_decoder("h100", thor, Builder(None, "tensorrt", "11.0.0.114"))
    check_decoder("jetson-thor", read_targets()["jetson-thor"], Builder(None, "tensorrt", "10.13"))


def test_a_build_is_refused_before_anything_is_built(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = SimpleNamespace(__members__={"STRONGLY_TYPED": 0})
    plain = SimpleNamespace(__version__="10.14.1", NetworkDefinitionCreationFlag=flags)
    monkeypatch.setitem(sys.modules, "tensorrt", plain)
    monkeypatch.setattr(library, "capability", lambda: "9.0")
    with pytest.raises(ExportError, match=r"10\.14\.1 cannot write a cache in place"):
        build_engines(tiny_bundle.root, ["h100"], decoder="static")


# What the parser makes of it


def layer(kind: str, inputs: list[str], output: str) -> Any:
    """A layer of a network."""
    return SimpleNamespace(
        type=kind, num_outputs=1,
        get_input=lambda place: SimpleNamespace(name=inputs[place]),
        get_output=lambda place: SimpleNamespace(name=output),
    )  # fmt: skip


def test_caches_that_would_not_be_written_in_place_are_refused(tiny_bundle: Bundle) -> None:
    spec: GraphSpec = static_spec(tiny_bundle.graph("decoder"), CAPACITY)
    names = [one.name[5:] for one in spec.inputs if one.name.startswith("past.")]
    trt = SimpleNamespace(LayerType=SimpleNamespace(KV_CACHE_UPDATE="update", CAST="cast"))

    def check(layers: list[Any]) -> None:
        network = SimpleNamespace(num_layers=len(layers), get_layer=lambda place: layers[place])
        check_cache(trt, network, "decoder", spec)

    def updates(place: str, first: str = "present") -> list[Any]:
        return [
            layer("update", [f"past.{name}", "new", place], f"{first}.{name}") for name in names
        ]

    cast = layer("cast", ["write_indices"], "narrow")
    check([cast, *updates("narrow")])
    check(updates("write_indices"))
    other = layer("cast", ["position_ids"], "narrow")
    for layers in (
        [],
        updates("narrow")[1:],
        [other, *updates("narrow")],
        updates("write_indices", "p"),
    ):
        with pytest.raises(
            ExportError, match=r"cache updates of 4.*past\.0\.key.*--decoder concat"
        ):
            check(layers)


# Engines


@pytest.mark.parametrize("count", [1, 2])
def test_engines_are_built_ahead_of_time(
    nano_bundle: Bundle, half_bundle: Bundle, tmp_path: Path, count: int
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'foveate[rtx]'")
    before = {1: nano_bundle, 2: half_bundle}[count]
    bundle, targets = tmp_path / "bundle", tmp_path / "targets.toml"
    shutil.copytree(before.root, bundle)
    targets.write_text(
        f'[rtx]\ncompute_capabilities = ["8.0", "8.6", "8.9", "12.0"]\ndecoder_profiles = {count}\n'
    )
    arguments = ("build", bundle, "--target", "rtx", "--targets", targets, "--decoder", "static")
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)["engines"]
    assert [one["decoder"] for one in facts] == [None, None, "static"]
    opened = Bundle.open(bundle)
    decoder = opened.manifest.engines[2]
    assert decoder.decoder == "static"
    assert len(decoder.profiles) == count
    data = opened.file(decoder.file).read_bytes()
    assert b"write_indices" in data
    assert b"attention_mask" not in data
    capacity = next(iter(decoder.profiles.values())).shapes["past.0.key"][0][2]
    assert capacity == min(4096, before.manifest.limits.prompt_tokens)
    weights = before.manifest.files["decoder.weights"].bytes
    assert weights < len(data) < (1 + count) * weights + count * 4e6

    shown = invoke("inspect", bundle).stdout
    assert f"{before.manifest.precision}, static decoder, compute capability" in shown
    assert f"cache {capacity}" in shown
    verified = invoke("verify", bundle)
    assert verified.exit_code == 0, verified.stderr
    assert (
        "rtx decoder     built from this graph with a static cache by TensorRT" in verified.stdout
    )


def test_an_export_cannot_choose_a_decoder_for_no_target(tmp_path: Path) -> None:
    done = invoke("export", "models/nano", tmp_path / "bundle", "--decoder", "static")
    assert done.exit_code == 2
    assert "--target" in done.stderr
    refused(invoke("build", tmp_path / "none", "--target", "rtx", "--decoder", "static"), "none")
