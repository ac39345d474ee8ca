"""Engines built ahead of time by TensorRT for RTX, on a machine without a GPU; none is run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from foveate.bundle.engine_writer import EngineWriter
from foveate.bundle.manifest import GraphSpec, TensorSpec, outdated
from foveate.bundle.reader import Bundle
from foveate.errors import ExportError, MissingDependencyError
from foveate.export.tensorrt import library
from foveate.export.tensorrt.build import Result, build_engines
from foveate.export.tensorrt.builder import build_engine
from foveate.export.tensorrt.library import check_precision, open_library
from foveate.export.tensorrt.profiles import Plan
from foveate.export.tensorrt.targets import read_targets
from tests.bundle.test_bundle import contents
from tests.command import invoke, refused

pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'foveate[rtx]'"
)

FOUR = '[rtx]\ncompute_capabilities = ["8.0", "8.6", "8.9", "12.0"]\n'
ROLES = ["vision", "compressor", "decoder"]
Sizes = Sequence[int | str]


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may write in."""
    shutil.copytree(tiny_bundle.root, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def targets_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a file of targets."""

    def written(text: str) -> Path:
        (tmp_path / "targets.toml").write_text(text)
        return tmp_path / "targets.toml"

    return written


def check_built(result: Result, before: Bundle, precision: str) -> None:
    """Every graph but the lookup has one whole engine, built from this bundle, of its own size."""
    bundle = Bundle.open(before.root)
    assert bundle == result.bundle
    assert [engine.role for engine in bundle.manifest.engines] == ROLES
    assert [engine.decoder for engine in bundle.manifest.engines] == [None, None, "concat"]
    for engine in bundle.manifest.engines:
        assert (engine.library, engine.precision) == ("tensorrt_rtx", precision)
        assert engine.compute_capabilities == ["8.0", "8.6", "8.9", "12.0"]
        assert outdated(bundle.manifest, engine) is None
        assert set(engine.built_from) == {engine.role, f"{engine.role}.weights"}
        data = bundle.file(engine.file).read_bytes()
        spec = bundle.graph(engine.role)
        for tensor in (*spec.inputs, *spec.outputs):
            assert tensor.name.encode() in data
        (*_, profile) = engine.profiles.values()
        assert list(profile.shapes) == [tensor.name for tensor in spec.inputs]
        weights = bundle.manifest.files[f"{engine.role}.weights"].bytes
        assert weights < len(data) < 3 * weights + 4e6
    compressor = bundle.manifest.engines[1].profiles["default"]
    assert compressor.values["keep"] == ([1], [64], [1536])
    kept = {name: entry for name, entry in bundle.manifest.files.items() if "engine" not in name}
    assert kept == before.manifest.files


def test_nano_ahead_of_time(
    nano_bundle: Bundle, tmp_path: Path, targets_file: Callable[[str], Path]
) -> None:
    shutil.copytree(nano_bundle.root, tmp_path / "bundle")
    stages: list[str] = []
    said: list[str] = []
    result = build_engines(
        tmp_path / "bundle", ["rtx"], targets_file(FOUR),
        progress=lambda stage, number, total: stages.append(f"{stage} {number}/{total}"),
        say=said.append,
    )  # fmt: skip
    check_built(result, Bundle(tmp_path / "bundle", nano_bundle.manifest), "fp32")
    assert stages == ["checksums 0/0", "rtx vision 1/3", "rtx compressor 2/3", "rtx decoder 3/3"]
    assert "Building engine" in said


def test_fp16_with_f_theta_ahead_of_time(
    half_bundle: Bundle, tmp_path: Path, targets_file: Callable[[str], Path]
) -> None:
    shutil.copytree(half_bundle.root, tmp_path / "bundle")
    copied = Bundle(tmp_path / "bundle", half_bundle.manifest)
    check_built(build_engines(copied.root, ["rtx"], targets_file(FOUR)), copied, "fp16")


def test_graphs_fused_for_onnxruntime_are_refused(copy: Path) -> None:
    manifest = copy / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"operators": "standard"', '"operators": "onnxruntime"')
    )
    refused(
        invoke("build", copy, "--target", "rtx"), "fused for onnxruntime", "--operators standard"
    )
    assert "com.microsoft" in invoke("inspect", copy).stdout


def test_the_verb_inspect_and_verify(copy: Path, targets_file: Callable[[str], Path]) -> None:
    other = targets_file(FOUR.replace("[rtx]", "[rtx]\ndecoder_profiles = 2"))
    arguments = ("build", copy, "--target", "rtx", "--targets", other)
    facts = json.loads(invoke(*arguments, "--json").stdout)
    assert [engine["role"] for engine in facts["engines"]] == ROLES
    assert facts["left_out"] == ["embeddings"]
    assert facts["workspace_mib"] == {"rtx": 4096}
    refused(invoke(*arguments), "already has engines for rtx", "--force")
    told = invoke(*arguments, "--force")
    assert told.exit_code == 0, told.stderr
    assert "up to 4096 MiB of workspace" in told.stdout
    assert "[3/3] rtx decoder" in told.stderr

    shown = invoke("inspect", copy).stdout
    assert "compute capability 8.0, 8.6, 8.9, 12.0" in shown
    assert "keep 1 64 1536" in shown
    assert "past 0 0 0" in shown
    verified = invoke("verify", copy)
    assert verified.exit_code == 0, verified.stderr
    assert "rtx decoder     built from this graph by TensorRT for RTX" in verified.stdout
    engines = json.loads(invoke("verify", copy, "--json").stdout)["engines"]
    assert list(engines) == [f"rtx {role}" for role in ROLES]

    engine = copy / facts["engines"][0]["file"]
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    refused(invoke("verify", copy), "does not match its checksum")
    os.truncate(engine, 1000)
    refused(invoke("verify", copy), "1000 bytes where manifest.json says")


def test_verify_refuses_engines_of_another_graph(copy: Path) -> None:
    bundle = build_engines(copy, ["rtx"]).bundle
    wrong = bundle.manifest.files["embeddings"].sha256
    manifest = copy / "manifest.json"
    document = json.loads(manifest.read_bytes())
    document["engines"][2]["built_from"]["decoder.weights"] = wrong
    manifest.write_text(json.dumps(document))
    refused(invoke("verify", copy), "not built from this bundle's decoder.weights", "foveate build")
    assert "OUTDATED" in invoke("inspect", copy).stdout


# Builds that end early


def test_killed_and_interrupted(copy: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from foveate.export.tensorrt.build import build_engines\n"
        "def stop(stage, number, total):\n"
        "    if number == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "build_engines(Path(sys.argv[1]), ['rtx'], progress=stop)\n"
    )
    before = contents(copy)
    done = subprocess.run([sys.executable, "-c", script, str(copy)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = copy.glob(".engines.partial-*")
    shutil.rmtree(left)
    assert contents(copy) == before

    def interrupt(detail: str) -> None:
        if detail.startswith("Optimizing graph"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engines(copy, ["rtx"], say=interrupt)
    assert contents(copy) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert Bundle.open(copy).manifest.engines == []


def test_what_can_be_known_is_told_before_anything_is_built(
    copy: Path, targets_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineWriter, "__enter__", lambda self: pytest.fail("a build began"))
    version = open_library("rtx", read_targets()["rtx"]).version

    def told(text: str, kind: type[Exception], *words: str) -> None:
        with pytest.raises(kind) as caught:
            build_engines(copy, ["rtx"], targets_file(text))
        for word in (*words, "foveate" if kind is MissingDependencyError else ""):
            assert word in str(caught.value)

    told('[rtx]\nversions = ["9", "10"]', ExportError, "9 to before 10", f"{version} is installed")
    told('[rtx]\ncompute_capabilities = ["9.0"]', ExportError, "capability 9.0", "8.6", "--targets")
    told('[rtx]\nprecisions = ["fp16"]', ExportError, "not in fp32", "--precision fp16")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    told("[rtx]", MissingDependencyError, "TensorRT for RTX", "pip install 'foveate[rtx]'")


def test_plain_tensorrt_builds_for_the_gpu_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = SimpleNamespace(__members__={"EXPLICIT_BATCH": 0})
    plain = SimpleNamespace(__version__="8.6.0", NetworkDefinitionCreationFlag=flags)
    monkeypatch.setitem(sys.modules, "tensorrt", plain)
    target = read_targets()["h100"]
    for here, words in ((None, "is not to be seen"), ("8.7", "has compute capability 8.7")):
        monkeypatch.setattr(library, "capability", lambda here=here: here)
        with pytest.raises(ExportError, match=rf"only for the GPU .* {words}.* NVIDIA H100"):
            open_library("h100", target)
    monkeypatch.setattr(library, "capability", lambda: "9.0")
    builder = open_library("h100", target)
    check_precision("h100", target, builder, "fp32")
    with pytest.raises(ExportError, match=r"TensorRT 8\.6\.0 may compute in other types"):
        check_precision("h100", target, builder, "fp16")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="on a Jetson it comes with JetPack"):
        open_library("h100", target)


# Networks that would not compute what their graphs do


def tensors(*several: tuple[str, str, list[int | str]]) -> list[TensorSpec]:
    return [
        TensorSpec(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]
        for name, dtype, shape in several
    ]


def try_to_build(
    folder: Path, nodes: list[Any], spec: GraphSpec, axes: dict[str, tuple[int, int, int]]
) -> None:
    """Build a small graph with one profile."""
    kinds = {
        "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64
    }  # fmt: skip
    inputs, outputs = (
        [helper.make_tensor_value_info(one.name, kinds[one.dtype], one.shape) for one in side]
        for side in (spec.inputs, spec.outputs)
    )
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", spec.opset)],
    )
    onnx.save(model, folder / "graph.onnx")
    target = read_targets()["rtx"]
    values = {"k": axes["kept"]} if "kept" in axes else {}
    build_engine(
        open_library("rtx", target), target, folder / "graph.onnx", "decoder", spec,
        [Plan("default", axes, values)], lambda detail: None,
    )  # fmt: skip


ADD = helper.make_node("Add", ["x", "x"], ["y"], name="add")
X, Y = ("x", "float32", ["b", 4]), ("y", "float32", ["b", 4])
SIZES = {"b": (1, 2, 4)}


def test_a_graph_as_promised(tmp_path: Path) -> None:
    spec = GraphSpec(opset=18, inputs=tensors(X), outputs=tensors(Y))
    try_to_build(tmp_path, [ADD], spec, SIZES)


@pytest.mark.parametrize(
    ("nodes", "spec", "axes", "words"),
    [
        pytest.param(
            [ADD],
            GraphSpec(opset=18, inputs=tensors(X, ("z", "float32", ["b", 4])), outputs=tensors(Y)),
            SIZES,
            "TensorRT ignores the input 'z'",
            id="an input that nothing reads",
        ),
        pytest.param(
            [
                helper.make_node(
                    "Attention", ["q", "k", "v", "", "", "", "seen"], ["y"], name="attention"
                )
            ],
            GraphSpec(
                opset=24,
                inputs=tensors(
                    *((name, "float16", ["b", 2, "t", 64]) for name in "qkv"),
                    ("seen", "int64", ["b"]),
                ),
                outputs=tensors(("y", "float16", ["b", 2, "t", 64])),
            ),
            {"b": (1, 1, 1), "t": (1, 4, 8)},
            "'seen'",
            id="an input that the parser drops",
        ),
        pytest.param(
            [helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attention", is_causal=1)],
            GraphSpec(
                opset=23,
                inputs=tensors(*((name, "float16", ["b", 2, "t", 64]) for name in "qkv")),
                outputs=tensors(("y", "float16", ["b", 2, "t", 64])),
            ),
            {"b": (1, 1, 1), "t": (1, 4, 8)},
            "is causal attention",
            id="attention that guesses its mask",
        ),
        pytest.param(
            [helper.make_node("TopK", ["x", "k"], ["y", "i"], name="best")],
            GraphSpec(
                opset=18,
                inputs=tensors(("x", "float32", ["all"]), ("k", "int64", [1])),
                outputs=tensors(("y", "float32", ["kept"]), ("i", "int64", ["kept"])),
            ),
            {"all": (1, 64, 8000), "kept": (1, 8, 3841)},
            "best sorts out up to 3841 elements",
            id="a K too large",
        ),
        pytest.param(
            [
                helper.make_node("TopK", ["x", "k"], ["v", "i"], name="best"),
                helper.make_node("ReduceSum", ["v"], ["y"], keepdims=1),
            ],
            GraphSpec(
                opset=18,
                inputs=tensors(("x", "float32", ["all"]), ("k", "int64", [1])),
                outputs=tensors(("y", "float32", [1])),
            ),
            {"all": (1, 64, 8000), "kept": (1, 8, 16)},
            "how many elements the layer best gives cannot be told",
            id="a K of unknown size",
        ),
        pytest.param(
            [helper.make_node("Add", ["x", "z"], ["y"], name="add")],
            GraphSpec(opset=18, inputs=tensors(X, ("z", "float32", ["c", 4])), outputs=tensors(Y)),
            {"b": (1, 2, 4), "c": (1, 2, 5)},
            "finds the profiles impossible",
            id="shapes that do not go together",
        ),
        pytest.param(
            [helper.make_node("Nonsense", ["x"], ["y"])],
            GraphSpec(opset=18, inputs=tensors(X), outputs=tensors(Y)),
            SIZES,
            "cannot take the graph",
            id="an operator that there is not",
        ),
    ],
)
def test_networks_that_are_refused(
    tmp_path: Path,
    nodes: list[Any],
    spec: GraphSpec,
    axes: dict[str, tuple[int, int, int]],
    words: str,
) -> None:
    with pytest.raises(ExportError) as caught:
        try_to_build(tmp_path, nodes, spec, axes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("decoder: ")


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([("w", "float32", ["b", 4])], [Y], "lost the input 'w'"),
        ([X], [("w", "float32", ["b", 4])], "'w'"),
        ([("x", "float16", ["b", 4])], [Y], "'x' is float16 ['b', 4] in the manifest and float32"),
        ([("x", "float32", ["b", 5])], [Y], "'x' is float32 ['b', 5]"),
        ([("x", "float32", [2, 4])], [("y", "float32", ["b"])], "'y' is float32 ['b']"),
    ],
)
def test_promises_that_the_network_does_not_keep(
    tmp_path: Path, inputs: list[Any], outputs: list[Any], words: str
) -> None:
    from foveate.export.tensorrt import builder, checks

    promised = GraphSpec(opset=18, inputs=tensors(*inputs), outputs=tensors(*outputs))
    original = checks.check_network
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ExportError) as caught:
        patch.setattr(
            builder, "check_network",
            lambda trt, network, role, spec, *rest: original(trt, network, role, promised, *rest),
        )  # fmt: skip
        true = GraphSpec(opset=18, inputs=tensors(X), outputs=tensors(Y))
        try_to_build(tmp_path, [ADD], true, SIZES)
    assert words in str(caught.value)


def test_a_bundle_that_keeps_too_much_for_a_sort(
    copy: Path, targets_file: Callable[[str], Path]
) -> None:
    before = contents(copy)
    file = targets_file(
        "[rtx]\nworkspace_mib = 8192\n[rtx.ranges]\ntext = [64, 1024]\nkeep = [64, 3000]\nvisual = [64, 4096]\n"
    )
    line = refused(
        invoke("build", copy, "--target", "rtx", "--targets", file), "sorts out up to 4024", "3840"
    )
    assert "compressor: the layer" in line
    assert contents(copy) == before


def test_too_little_workspace_comes_with_tensorrts_words(
    copy: Path, targets_file: Callable[[str], Path]
) -> None:
    with pytest.raises(
        ExportError, match=r"vision: .* cannot build .*within workspace limit.* workspace_mib"
    ):
        build_engines(copy, ["rtx"], targets_file("[rtx]\nworkspace_mib = 1\n"))
    assert not list(copy.glob(".engines*"))


def test_export_builds_for_a_target_and_asks_first_whether_it_can(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    for options, words in (
        (("--target", "rtx-9000"), ("rtx-9000",)),
        (("--target", "rtx", "--operators", "onnxruntime"), ("--operators standard",)),
        (("--target", "rtx", "--precision", "fp8"), ("fp8", "rtx")),
        (("--target", "h100"), ("h100",)),
    ):
        refused(invoke("export", tiny_checkpoint, out, *options), *words)
    assert not list(tmp_path.iterdir())

    done = invoke("export", tiny_checkpoint, out, "--target", "rtx", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [engine["role"] for engine in facts["build"]["engines"]] == ROLES
    assert {one.target for one in Bundle.open(out).manifest.engines} == {"rtx"}
