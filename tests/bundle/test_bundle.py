"""The bundle as its reader takes it; tests/attacks is about hostile and damaged ones.

`attacks/bundle` is the golden bundle: the writer must reproduce it byte for byte.
"""

import os
import tempfile
from pathlib import Path

import msgspec
import pytest

from foveate.bundle.manifest import GraphSpec, TensorSpec
from foveate.bundle.manifest_json import decode, encode
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError, BundleNotFoundError
from tests.bundle.example import GOLDEN, contents, example, run, tensor, unprivileged, write

HERE = Path("manifest.json")


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
