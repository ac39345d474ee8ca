"""Engines built ahead of time by TensorRT for RTX, on a machine without a GPU; none is run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from foveate.bundle.engine_writer import EngineWriter
from foveate.bundle.manifest import outdated
from foveate.bundle.reader import Bundle
from foveate.errors import ExportError, MissingDependencyError
from foveate.export.tensorrt import library
from foveate.export.tensorrt.build import Result, build_engines
from foveate.export.tensorrt.library import check_precision, open_library
from foveate.export.tensorrt.targets import read_targets
from tests.attacks.harness import resealed
from tests.bundle.test_bundle import contents
from tests.command import invoke, refused
from tests.conftest import NANO, VerbExport

pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'foveate[rtx]'"
)

FOUR = '[rtx]\ncompute_capabilities = ["8.0", "8.6", "8.9", "12.0"]\n'
ROLES = ["vision", "compressor", "decoder"]
DATA = NANO / "samples" / "data.jsonl"


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may write in."""
    return shutil.copytree(tiny_bundle.root, tmp_path / "bundle")


@pytest.fixture
def targets_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a file of targets."""

    def written(text: str) -> Path:
        (tmp_path / "targets.toml").write_text(text)
        return tmp_path / "targets.toml"

    return written


def check_built(result: Result, before: Bundle, precision: str) -> None:
    """Every graph but the lookup has one whole engine, built from this bundle, of its own size.

    Beside its weights an engine has the kernels of four GPUs: at most 1.5 MB each, in the compressor, whose
    top-k is many small ones.
    """
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
        assert weights < len(data) < 3 * weights + 4 * 1.5e6
    compressor = bundle.manifest.engines[1].profiles["default"]
    assert compressor.values["keep"] == ([1], [64], [1536])
    kept = {name: entry for name, entry in bundle.manifest.files.items() if "engine" not in name}
    assert kept == before.manifest.files


def test_nano_ahead_of_time(
    nano_bundle: Bundle, tmp_path: Path, targets_file: Callable[[str], Path]
) -> None:
    shutil.copytree(nano_bundle.root, tmp_path / "bundle")
    stages: list[str] = []
    phases: list[str] = []
    result = build_engines(
        tmp_path / "bundle", ["rtx"], targets_file(FOUR),
        progress=lambda stage, number, total: stages.append(f"{stage} {number}/{total}"),
        say=phases.append,
    )  # fmt: skip
    check_built(result, Bundle(tmp_path / "bundle", nano_bundle.manifest), "fp32")
    assert stages == ["checksums 0/0", "rtx vision 1/3", "rtx compressor 2/3", "rtx decoder 3/3"]
    assert "Building engine" in phases


def test_fp16_with_f_theta_ahead_of_time(
    half_bundle: Bundle, tmp_path: Path, targets_file: Callable[[str], Path]
) -> None:
    shutil.copytree(half_bundle.root, tmp_path / "bundle")
    copied = Bundle(tmp_path / "bundle", half_bundle.manifest)
    check_built(build_engines(copied.root, ["rtx"], targets_file(FOUR)), copied, "fp16")


def test_graphs_with_contrib_operators_are_refused(contrib_bundle: Bundle) -> None:
    refused(
        invoke("build", contrib_bundle.root, "--target", "rtx"),
        "contrib operators of onnxruntime",
        "--operators standard",
    )
    assert "com.microsoft" in invoke("inspect", contrib_bundle.root).stdout


def test_the_verb_inspect_and_verify(copy: Path, targets_file: Callable[[str], Path]) -> None:
    other = targets_file(FOUR.replace("[rtx]", "[rtx]\ndecoder_profiles = 2"))
    arguments = ("build", copy, "--target", "rtx", "--targets", other)
    facts = json.loads(invoke(*arguments, "--json").stdout)
    assert [engine["role"] for engine in facts["engines"]] == ROLES
    assert facts["workspace_mib"] == {"rtx": 4096}
    refused(invoke(*arguments), "already has engines for rtx", "--force")
    again = invoke(*arguments, "--force")
    assert again.exit_code == 0, again.stderr
    assert "up to 4096 MiB of workspace" in again.stdout
    assert "[3/3] rtx decoder" in again.stderr

    shown = invoke("inspect", copy).stdout
    assert "compute capability 8.0, 8.6, 8.9, 12.0" in shown
    assert "keep 1 64 1536" in shown
    assert "past 0 0 0" in shown
    verified = invoke("verify", copy)
    assert verified.exit_code == 0, verified.stderr
    assert "rtx decoder     built from this graph by TensorRT for RTX" in verified.stdout
    engines = json.loads(invoke("verify", copy, "--json").stdout)["engines"]
    assert list(engines) == [f"rtx {role}" for role in ROLES]

    bundle = Bundle.open(copy)
    engine = bundle.file(bundle.manifest.engines[0].file)
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    refused(invoke("verify", copy), "does not match its checksum")
    os.truncate(engine, 1000)
    refused(invoke("verify", copy), "1000 bytes where manifest.json says")


def test_verify_refuses_engines_of_another_graph(verb_export: VerbExport, tmp_path: Path) -> None:
    copy = shutil.copytree(verb_export.root, tmp_path / "bundle")
    manifest = copy / "manifest.json"
    wrong = Bundle.open(copy).manifest.files["embeddings"].sha256
    document = json.loads(manifest.read_bytes())
    document["engines"][2]["built_from"]["decoder.weights"] = wrong
    manifest.write_bytes(resealed(json.dumps(document).encode()))
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


def test_a_build_is_refused_before_anything_is_built(
    copy: Path, targets_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineWriter, "__enter__", lambda self: pytest.fail("a build began"))
    version = open_library("rtx", read_targets()["rtx"]).version

    def check(text: str, kind: type[Exception], *words: str) -> None:
        with pytest.raises(kind) as caught:
            build_engines(copy, ["rtx"], targets_file(text))
        for word in (*words, "foveate" if kind is MissingDependencyError else ""):
            assert word in str(caught.value)

    check('[rtx]\nversions = ["9", "10"]', ExportError, "9 to before 10", f"{version} is installed")
    check(
        '[rtx]\ncompute_capabilities = ["9.0"]', ExportError, "capability 9.0", "8.6", "--targets"
    )
    check('[rtx]\nprecisions = ["fp16"]', ExportError, "not in fp32", "--precision fp16")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    check("[rtx]", MissingDependencyError, "TensorRT for RTX", "pip install 'foveate[rtx]'")


def test_plain_tensorrt_builds_for_the_gpu_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = SimpleNamespace(__members__={"EXPLICIT_BATCH": 0})
    plain = SimpleNamespace(__version__="8.6.0", NetworkDefinitionCreationFlag=flags)
    monkeypatch.setitem(sys.modules, "tensorrt", plain)
    target = read_targets()["h100"]
    for here, words in ((None, "there is none here"), ("8.7", "has compute capability 8.7")):
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


def test_too_little_workspace_is_reported_in_tensorrts_words(
    copy: Path, targets_file: Callable[[str], Path]
) -> None:
    with pytest.raises(
        ExportError, match=r"vision: .* cannot build .*within workspace limit.* workspace_mib"
    ):
        build_engines(copy, ["rtx"], targets_file("[rtx]\nworkspace_mib = 1\n"))
    assert not list(copy.glob(".engines*"))


def test_export_builds_for_a_target(verb_export: VerbExport) -> None:
    assert [engine["role"] for engine in verb_export.facts["build"]["engines"]] == ROLES
    assert {one.target for one in Bundle.open(verb_export.root).manifest.engines} == {"rtx"}


def test_export_refuses_a_target_before_it_writes_anything(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for options, words in (
        (("--target", "rtx-9000"), ("rtx-9000",)),
        (("--target", "rtx", "--operators", "contrib"), ("--operators standard",)),
        (("--target", "rtx", "--precision", "fp8", "--calibration", DATA), ("fp8", "rtx")),
        (("--target", "h100"), ("h100",)),
    ):
        refused(invoke("export", tiny_checkpoint, tmp_path / "bundle", *options), *words)
    assert not list(tmp_path.iterdir())
