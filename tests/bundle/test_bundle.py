"""The bundle as its writer and reader keep it; tests/attacks is about hostile and damaged ones.

`attacks/bundle` is the golden bundle: the writer must reproduce it byte for byte.
"""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from onnx import TensorProto, helper

from foveate import __version__
from foveate.atomic_write import replace_file, writing
from foveate.bundle.manifest import (
    CompressorFacts,
    EngineVariant,
    FileEntry,
    Generation,
    GraphSpec,
    ImageBackend,
    Limits,
    Manifest,
    ModelFacts,
    Profile,
    Rope,
    TensorSpec,
    decode,
    encode,
)
from foveate.bundle.reader import Bundle
from foveate.bundle.writer import BundleWriter
from foveate.errors import BundleError, BundleNotFoundError, OutputError, OutputExistsError

GOLDEN = Path(__file__).parents[1] / "attacks" / "bundle"
HERE = Path("manifest.json")
FILES = {
    "vision": "vision.onnx",
    "vision.weights": "vision.onnx.data",
    "tokenizer": "text/tokenizer.json",
    "engine.jetson-orin.vision": "engines/jetson-orin/vision.engine",
}
WRITER = """
import os, sys, time
from pathlib import Path
from foveate.bundle.reader import BundleWriter
from foveate.bundle.manifest import decode
golden, target, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
manifest = decode((golden / "manifest.json").read_bytes(), golden)
while True:
    with BundleWriter(target, force=True) as writer:
        for entry in manifest.files.values():
            path = writer.root / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((golden / entry.path).read_bytes())
            while mode == "stuck":
                print("writing", flush=True)
                time.sleep(60)
        writer.finish(manifest)
    print("written", flush=True)
"""


def vision_graph() -> bytes:
    """y = pixels + w, with w in vision.onnx.data."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "vision.onnx.data"), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Add", ["pixels", "w"], ["features"])],
        "vision",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["patches", 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["patches", 4])],
        [weights],
    )
    model = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)], producer_name="foveate"
    )
    return bytes(model.SerializeToString(deterministic=True))


def tensor(name: str, shape: list[int | str], dtype: str = "float32") -> TensorSpec:
    """A tensor as an engine or an export describes it."""
    return msgspec.convert({"name": name, "dtype": dtype, "shape": shape}, TensorSpec)


def example(files: dict[str, FileEntry]) -> Manifest:
    """A manifest with something in every field."""
    return Manifest(
        family="qwen2_vl",
        precision="fp32",
        weights="trained",
        operators="standard",
        model=ModelFacts(
            hidden_size=64,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            vocabulary=512,
            tied_embeddings=True,
            rope=Rope(theta=1e6, sections=(2, 3, 3)),
        ),
        files=files,
        graphs={
            "vision": GraphSpec(
                opset=18,
                inputs=[tensor("pixels", ["patches", 4])],
                outputs=[tensor("features", ["patches", 4])],
            )
        },
        engines=[
            EngineVariant(
                target="jetson-orin",
                role="vision",
                file="engine.jetson-orin.vision",
                library="tensorrt",
                version="10.3.0",
                compute_capabilities=["8.7"],
                precision="fp32",
                decoder=None,
                profiles={
                    "default": Profile(shapes={"pixels": ([1, 4], [64, 4], [256, 4])}, values={})
                },
                built_from={
                    role: files[role].sha256 for role in files if role.startswith("vision")
                },
            )
        ],
        preprocessing={"patch": 14, "mean": [0.48, 0.46, 0.41], "resample": "bicubic", "pad": True},
        image_backend=ImageBackend(name="pillow", version="13.0.0"),
        tokens={"image": 5, "vision_start": 6, "vision_end": 7},
        generation=Generation(eos=[2, 3], repetition_penalty=1.05, max_new_tokens=256),
        limits=Limits(visual_tokens=1296, prompt_tokens=32768),
        compressor=CompressorFacts(
            kind="f_theta", keep=0.25, trained_on="nano scenes", figures={"accuracy": 0.97}
        ),
        parity={"vision": 2.1e-7},
        tools={"foveate": "0.1.0", "torch": "2.13.0"},
    )


def fill(root: Path) -> None:
    """Write the example's files."""
    (root / "text").mkdir()
    (root / "vision.onnx").write_bytes(vision_graph())
    (root / "vision.onnx.data").write_bytes(bytes(range(16)))
    (root / "text" / "tokenizer.json").write_bytes(b'{"version": "1.0"}\n')
    (root / "engines" / "jetson-orin").mkdir(parents=True)
    (root / "engines" / "jetson-orin" / "vision.engine").write_bytes(b"engine")


def write(path: Path, *, force: bool = False) -> Bundle:
    """Write the example bundle."""
    with BundleWriter(path, force=force) as writer:
        fill(writer.root)
        return writer.finish(example(writer.entries(FILES)))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root's rights for a while, so that permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python program with the package at hand."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


# Reading and writing


def test_the_writer_reproduces_the_golden_bundle(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == contents(GOLDEN)
    assert os.listdir(tmp_path) == ["bundle"]


def test_round_trip(tmp_path: Path) -> None:
    written = write(tmp_path / "bundle")
    read = Bundle.open(tmp_path / "bundle")
    assert read == written
    assert read.manifest == example(read.manifest.files)
    assert read.root == tmp_path / "bundle"
    data = (GOLDEN / "manifest.json").read_bytes()
    assert encode(decode(data, HERE)) == data


def test_a_manifest_without_engines_has_none() -> None:
    document = msgspec.json.decode((GOLDEN / "manifest.json").read_bytes())
    del document["engines"]
    assert decode(msgspec.json.encode(document), HERE).engines == []


def test_encode_refuses_what_decode_would() -> None:
    manifest = decode((GOLDEN / "manifest.json").read_bytes(), HERE)
    changes: list[dict[str, Any]] = [
        {"parity": {"vision": float("nan")}},
        {"tokens": {"image": -1}},
        {"files": {}},
        {"family": ""},
    ]
    for change in changes:
        with pytest.raises(BundleError, match=r"manifest\.json is not a valid manifest"):
            encode(msgspec.structs.replace(manifest, **change))


def test_paths_are_relative_to_the_folder_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    bundle = Bundle.open("bundle")
    monkeypatch.chdir("/")
    assert bundle.file("tokenizer") == tmp_path / "bundle" / "text" / "tokenizer.json"
    assert bundle.file("vision").is_file()
    assert bundle.graph("vision").opset == 18


def test_the_folder_itself_may_be_reached_through_a_link(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "link").symlink_to("bundle")
    assert Bundle.open(tmp_path / "link").file("vision").is_file()


def test_an_absent_role_is_named_with_those_there_are() -> None:
    bundle = Bundle.open(GOLDEN)
    with pytest.raises(BundleError, match=r"no file for 'compressor' \(it has vision, .*again"):
        bundle.file("compressor")
    with pytest.raises(BundleError, match=r"no graph for 'tokenizer' \(it has vision\)"):
        bundle.graph("tokenizer")


def test_checksums_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "bundle" / "vision.onnx.data").write_bytes(bytes(16))
    Bundle.open(tmp_path / "bundle", checksums=False)
    with pytest.raises(BundleError, match=r"vision\.onnx\.data does not match its checksum"):
        Bundle.open(tmp_path / "bundle")


def test_a_folder_without_permission(tmp_path: Path) -> None:
    write(tmp_path / "bundle").root.chmod(0)
    try:
        with (
            unprivileged(),
            pytest.raises(BundleError, match=r"bundle cannot be read: Permission denied\. Check"),
        ):
            Bundle.open(tmp_path / "bundle")
    finally:
        (tmp_path / "bundle").chmod(0o700)


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("name", ["manifest.json", "vision.onnx", "text"])
def test_a_file_without_permission(name: str, checksums: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = write(Path(folder) / "bundle").root / name
        path.chmod(0)
        with (
            unprivileged(),
            pytest.raises(
                BundleError, match=rf"{name}.* cannot be read: Permission denied\. Check"
            ),
        ):
            Bundle.open(path.parent, checksums=checksums)
        path.chmod(0o700)


def test_import_is_light() -> None:
    script = (
        "import sys, foveate.bundle.reader\n"
        "print(*{'numpy', 'onnx', 'onnxruntime', 'torch', 'transformers'} & set(sys.modules))"
    )
    output, _ = run(script).communicate(timeout=30)
    assert output == "\n"


# What an engine says against what the manifest promises


PIXELS, FEATURES = tensor("pixels", ["n", 4]), tensor("features", ["n", 4])


def test_check_graph_takes_any_order_and_any_axis_name() -> None:
    bundle = Bundle.open(GOLDEN)
    bundle.check_graph("vision", [tensor("pixels", ["other", 4])], [FEATURES])
    graph = GraphSpec(opset=18, inputs=[PIXELS, FEATURES], outputs=[])
    manifest = msgspec.structs.replace(bundle.manifest, graphs={"vision": graph})
    Bundle(GOLDEN, manifest).check_graph("vision", [FEATURES, PIXELS], [])


@pytest.mark.parametrize(
    ("inputs", "outputs", "difference"),
    [
        ([], [FEATURES], "input 'pixels' is absent in the graph and float32 [free, 4]"),
        ([PIXELS, tensor("mask", [1])], [FEATURES], "input 'mask' is float32 [1] in the graph"),
        ([PIXELS], [], "output 'features' is absent"),
        ([FEATURES], [PIXELS], "input 'features' is float32 [free, 4] in the graph and absent"),
        ([tensor("pixels", ["n", 4], "float16")], [FEATURES], "'pixels' is float16 [free, 4]"),
        ([tensor("pixels", ["n", 5])], [FEATURES], "is float32 [free, 5] in the graph and float32"),
        ([tensor("pixels", [1, "n", 4])], [FEATURES], "'pixels' is float32 [1, free, 4]"),
        ([tensor("pixels", [9, 4])], [FEATURES], "'pixels' is float32 [9, 4] in the graph"),
        ([PIXELS], [tensor("features", ["n", "m"])], "'features' is float32 [free, free]"),
    ],
)
def test_check_graph_names_file_tensor_and_difference(
    inputs: list[TensorSpec], outputs: list[TensorSpec], difference: str
) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(GOLDEN).check_graph("vision", inputs, outputs)
    assert f"{GOLDEN / 'vision.onnx'}: the " in str(caught.value)
    assert difference in str(caught.value)
    assert str(caught.value).endswith("Export the checkpoint again.")


# The writer


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), BundleWriter(tmp_path / "bundle") as writer:
        fill(writer.root)
        raise error
    assert os.listdir(tmp_path) == []


def test_a_writer_that_does_not_finish_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        fill(writer.root)
        assert not (tmp_path / "bundle").exists()
    assert os.listdir(tmp_path) == []


def test_finish_refuses_a_file_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"decoder\.onnx\.data is not in manifest\.json\. List it"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        (writer.root / "decoder.onnx.data").write_bytes(b"left out")
        writer.finish(example(writer.entries(FILES)))
    assert os.listdir(tmp_path) == []


def test_finish_refuses_a_linked_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"link is not in manifest\.json"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        (writer.root / "link").symlink_to("text")
        writer.finish(example(writer.entries(FILES)))


def test_finish_refuses_weights_that_nobody_listed(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"vision\.onnx takes weights from 'vision\.onnx\.data'"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        manifest = example(writer.entries({"vision": "vision.onnx"}))
        writer.finish(msgspec.structs.replace(manifest, engines=[]))
    assert os.listdir(tmp_path) == []


def test_finish_refuses_files_changed_since_they_were_measured(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"vision\.onnx has .* cut short or changed"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        entries = writer.entries(FILES)
        (writer.root / "vision.onnx").write_bytes(b"later")
        writer.finish(example(entries))
    assert os.listdir(tmp_path) == []


def test_the_folder_has_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert write(tmp_path / "bundle").root.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["entries", "missing"])
def test_entries_refuses_links_and_missing_files(tmp_path: Path, name: str) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        fill(writer.root)
        if name == "entries":
            (writer.root / name).symlink_to("vision.onnx")
        with pytest.raises(BundleError, match=f"{name} is "):
            writer.entries({"vision": name})


def test_kill_while_writing(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    child = run(WRITER, GOLDEN, target, "stuck")
    assert child.stdout
    assert child.stdout.readline() == "writing\n"
    child.kill()
    child.communicate(timeout=30)
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".bundle.partial-")
    with pytest.raises(BundleNotFoundError, match="bundle does not exist"):
        Bundle.open(target)
    with pytest.raises(BundleNotFoundError, match=r"cut short\. Delete it and export again"):
        Bundle.open(partial)
    partial.rename(tmp_path / "renamed")
    with pytest.raises(BundleNotFoundError, match=r"cut short, or copied in part\. Delete it"):
        Bundle.open(tmp_path / "renamed")
    write(target)
    assert contents(target) == contents(GOLDEN)


def test_kill_at_any_moment_leaves_the_old_bundle_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for round_ in range(4):
        child = run(WRITER, GOLDEN, target, "loop")
        assert child.stdout
        assert child.stdout.readline() == "written\n"
        time.sleep(0.011 * round_)
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
        if target.exists():
            Bundle.open(target)
            continue
        with pytest.raises(BundleNotFoundError) as caught:
            Bundle.open(target)
        aside = re.search(r"cut short\. Rename (\S+) back to it", str(caught.value))
        assert aside
        Path(aside[1]).rename(target)
        Bundle.open(target)


def test_a_bundle_set_aside_is_named(tmp_path: Path) -> None:
    aside = write(tmp_path / "x [1]").root.rename(tmp_path / ".x [1].replaced-0123abcd")
    with pytest.raises(BundleNotFoundError, match=f"Rename {re.escape(str(aside))} back to it"):
        Bundle.open(tmp_path / "x [1]")


# What may be replaced


def test_an_existing_path_is_refused_without_force(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("bundle", "file", "empty", "dangling"):
        with (
            pytest.raises(OutputExistsError, match=f"{name} is already there. Give another path"),
            BundleWriter(tmp_path / name),
        ):
            pass
    assert sorted(os.listdir(tmp_path)) == ["bundle", "dangling", "empty", "file"]


def test_force_replaces_a_bundle_and_an_empty_folder(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "bundle", force=True)
    write(tmp_path / "empty", force=True)
    assert contents(tmp_path / "bundle") == contents(tmp_path / "empty") == contents(GOLDEN)
    assert sorted(os.listdir(tmp_path)) == ["bundle", "empty"]


def test_force_replaces_a_bundle_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text('{"format": "foveate-bundle", "version": 9}')
    write(tmp_path / "bundle", force=True)
    Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize(
    "manifest", [None, "{}", "[]", "not JSON", '{"format": "other"}', "[" * 99_999]
)
def test_force_never_replaces_another_folder(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    if manifest is not None:
        (tmp_path / "mine" / "manifest.json").write_text(manifest)
    before = contents(tmp_path)
    with (
        pytest.raises(OutputExistsError, match="neither a bundle nor an empty folder"),
        BundleWriter(tmp_path / "mine", force=True),
    ):
        pass
    assert contents(tmp_path) == before


def test_force_replaces_neither_files_nor_links(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("bundle")
    for name in ("file", "link"):
        with pytest.raises(OutputExistsError), BundleWriter(tmp_path / name, force=True):
            pass
    Bundle.open(tmp_path / "link")


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputExistsError, match="already there"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        (tmp_path / "bundle").mkdir()
        writer.finish(example(writer.entries(FILES)))
    assert os.listdir(tmp_path) == ["bundle"]
    assert contents(tmp_path) == {}


def test_the_old_bundle_comes_back_when_the_move_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "bundle" / "old").touch()
    rename = Path.rename

    def fail(source: Path, target: Path) -> Path:
        """Rename, but never a partial folder."""
        if "partial" in source.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match=r"Input/output error\. Check the disk"):
        write(tmp_path / "bundle", force=True)
    assert os.listdir(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "old").exists()


# A disk that does not take it


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    parent = tmp_path / "no" / "such"
    with (
        pytest.raises(OutputError, match=f"{parent}/bundle .* folder does not exist. Make that"),
        BundleWriter(parent / "bundle"),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"its folder is a file\. Give another path"),
        BundleWriter(tmp_path / "file" / "bundle"),
    ):
        pass


def test_a_parent_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with (
            unprivileged(),
            pytest.raises(OutputError, match=r"no permission\. Give a path that you may write to"),
            BundleWriter(tmp_path / "bundle"),
        ):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_while_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"bundle could not be written: the disk is full\. Free"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        (writer.root / "vision.onnx").unlink()
        with open("/dev/full", "wb") as file:
            file.write(vision_graph())
    assert os.listdir(tmp_path) == []


def test_a_file_too_large_for_the_limit(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from foveate.bundle.reader import BundleWriter
from foveate.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with BundleWriter(sys.argv[1]) as writer:
        (writer.root / "vision.onnx").write_bytes(bytes(8192))
except OutputError as error:
    print(error.errno, error)
"""
    output, _ = run(script, tmp_path / "bundle").communicate(timeout=30)
    assert output.startswith(f"{errno.EFBIG} {tmp_path}/bundle could not be written: it is larger")
    assert os.listdir(tmp_path) == []


def test_reading_errors_inside_the_writer_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, BundleWriter(tmp_path / "bundle"):
        (tmp_path / "checkpoint").read_bytes()
    assert type(caught.value) is FileNotFoundError
    with (
        pytest.raises(OutputError, match="folder does not exist"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        (writer.root / "no" / "file").touch()


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EROFS, "Give a path on another disk"),
        (errno.EPERM, "Give a path that you may write to"),
        (errno.EIO, "Check the disk"),
    ],
)
def test_writing_names_path_and_fix(number: int, fix: str) -> None:
    with (
        pytest.raises(OutputError, match=f"^out.png could not be written: .*{fix}") as caught,
        writing("out.png"),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number


# One file


def test_replace_file(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    replace_file(target, b"one")
    with pytest.raises(OutputExistsError, match=r"out\.json is already there"):
        replace_file(target, b"two")
    assert target.read_bytes() == b"one"
    with target.open("rb") as reader:
        replace_file(target, lambda file: file.write(b"three"), force=True)
        assert reader.read() == b"one"
    assert target.read_bytes() == b"three"
    assert os.listdir(tmp_path) == ["out.json"]


def test_replace_file_keeps_the_old_one_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")

    def fail(file: object) -> None:
        """An image library that gives up."""
        raise OSError("cannot write mode F as PNG")

    with pytest.raises(OutputError, match=r"out\.png .* cannot write mode F as PNG"):
        replace_file(target, fail, force=True)
    with pytest.raises(ZeroDivisionError):
        replace_file(target, lambda file: 1 // 0, force=True)
    assert contents(tmp_path) == {"out.png": b"old"}


def test_replace_file_replaces_only_plain_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "link", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OutputExistsError, match=r"is not a plain file\. Give another path"):
            replace_file(path, b"", force=True)
    assert (tmp_path / "link").is_symlink()


def test_replace_file_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"folder does not exist\. Make that first"):
        replace_file(tmp_path / "no" / "out.png", b"")


# What a path is when it is no bundle


def test_a_missing_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    with pytest.raises(BundleNotFoundError, match=r"nowhere does not exist\. Check the path"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleNotFoundError, match=r"is a file; .* Give the folder that holds"):
        Bundle.open(tmp_path / "manifest.json")
    with pytest.raises(FileNotFoundError):
        Bundle.open(tmp_path / "nowhere")


def test_a_checkpoint_and_any_other_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"no bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(BundleNotFoundError, match=f"is a checkpoint.*foveate export {tmp_path}"):
        Bundle.open(tmp_path)


def test_another_version_is_told_by_version_alone(tmp_path: Path) -> None:
    data = b'{"format": "foveate-bundle", "version": 3, "colour": "blue"}'
    with pytest.raises(BundleError) as caught:
        decode(data, HERE)
    assert str(caught.value) == (
        f"manifest.json has version 3 of the format; Foveate {__version__} reads version 5. "
        "Export the checkpoint again, or upgrade foveate."
    )
