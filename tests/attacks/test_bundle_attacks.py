"""Hostile and damaged bundles: each is refused with one typed error that names file and fix.

Every attack starts from a fresh copy of the golden bundle in `bundle/`, which opens.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx
import onnxruntime
import pytest

from foveate.bundle.manifest import MANIFEST_LIMIT, TensorSpec
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError, BundleNotFoundError

GOLDEN = Path(__file__).parent / "bundle"
AGAIN = "export the checkpoint again"
PIXELS = {"name": "pixels", "dtype": "int64", "shape": []}
DELETE = "Delete it and export again"
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}

Attack = Callable[[Path], None]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A good bundle, with good files beside it that an attack may reach for."""
    path = tmp_path / "bundle"
    shutil.copytree(GOLDEN, path)
    shutil.copytree(GOLDEN, tmp_path / "outside")
    Bundle.open(path)
    return path


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """End a test that hangs, as one that opens a FIFO would."""

    def stop(*_: object) -> None:
        """Break off whatever is waiting."""
        raise TimeoutError("hung")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)


def refused(call: Callable[[], object], kind: type[BundleError], name: str, fix: str) -> None:
    """The harness: one typed error, soon, fit to print, that names the file and the fix."""
    start = time.perf_counter()
    with pytest.raises(Exception) as caught:
        call()
    seconds = time.perf_counter() - start
    message = str(caught.value)
    assert type(caught.value) is kind, repr(caught.value)
    assert name in message
    assert fix in message
    assert message.isprintable()
    assert len(message) < 1000
    assert seconds < 1


def edit(change: Callable[[dict[str, Any]], object]) -> Attack:
    """An attack that changes the manifest as a JSON document."""

    def attack(bundle: Path) -> None:
        """Read, change, write."""
        document = json.loads((bundle / "manifest.json").read_bytes())
        change(document)
        (bundle / "manifest.json").write_text(json.dumps(document))

    return attack


def find(document: Any, keys: str) -> tuple[Any, Any]:
    """The object or list that holds a field, and its key there, by keys with '/' between."""
    *way, last = keys.split("/")
    for key in way:
        document = document[int(key) if isinstance(document, list) else key]
    return document, int(last) if isinstance(document, list) else last


def put(keys: str, value: object) -> Attack:
    """An attack that sets one field of the manifest."""

    def change(document: dict[str, Any]) -> None:
        """Find the field and set it."""
        holder, key = find(document, keys)
        holder[key] = value

    return edit(change)


def drop(keys: str) -> Attack:
    """An attack that takes one field away."""

    def change(document: dict[str, Any]) -> None:
        """Find the field and delete it."""
        holder, key = find(document, keys)
        del holder[key]

    return edit(change)


def text(change: Callable[[bytes], bytes]) -> Attack:
    """An attack on the bytes of the manifest."""

    def attack(bundle: Path) -> None:
        """Read, change, write; the change must change something."""
        path = bundle / "manifest.json"
        before = path.read_bytes()
        path.write_bytes(change(before))
        assert path.read_bytes() != before

    return attack


def data(name: str, change: Callable[[bytes], bytes]) -> Attack:
    """An attack on the bytes of a file."""

    def attack(bundle: Path) -> None:
        """Read, change, write."""
        (bundle / name).write_bytes(change((bundle / name).read_bytes()))

    return attack


def instead(name: str, make: Callable[[Path], object]) -> Attack:
    """An attack that puts something else in the place of a file or folder."""

    def attack(bundle: Path) -> None:
        """Take away, put in place."""
        path = bundle / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return attack


def link(target: str) -> Callable[[Path], object]:
    """A maker of symbolic links."""
    return lambda path: path.symlink_to(target)


def listen(path: Path) -> None:
    """A socket in the file system."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.fchdir(here)
    os.close(here)


def number_instead(number: str) -> Attack:
    """An attack that writes another number where JSON's own tools would not."""
    return text(lambda old: old.replace(b"2.1e-7", number.encode()))


def absolute(bundle: Path) -> None:
    """A path from the root, to a file with the right checksum."""
    put("files/vision/path", str(bundle.parent / "outside" / "vision.onnx"))(bundle)


def checkpoint(bundle: Path) -> None:
    """A checkpoint as Hugging Face has them, with a graph beside."""
    (bundle / "manifest.json").unlink()
    (bundle / "config.json").touch()
    (bundle / "model-00001-of-00002.safetensors").touch()


BAD_PATHS = {
    "traversal": "../outside/vision.onnx",
    "traversal inside": "text/../vision.onnx",
    "traversal by backslash": "..\\outside\\vision.onnx",
    "drive": "C:/vision.onnx",
    "drive-relative": "C:vision.onnx",
    "share": "//server/vision.onnx",
    "home": "~/vision.onnx",
    "dot": "./vision.onnx",
    "empty part": "text//tokenizer.json",
    "empty": "",
    "folder": "text/",
    "NUL": "vision.onnx\0.txt",
    "newline": "vision.onnx\n",
    "escape sequence": "\x1b[2Jvision.onnx",
    "stream": "vision.onnx:stream",
    "trailing dot": "vision.onnx.",
    "trailing space": "vision.onnx ",
    "hidden": ".vision.onnx",
    "not ASCII": "visi\u00f6n.onnx",
    "the manifest": "manifest.json",
    "the manifest in capitals": "MANIFEST.json",
    "another's": "vision.onnx.data",
    "another's in capitals": "Vision.ONNX.data",
    "endless": "a/" * 1_000_000,
    "long": "a" * 256,
    "huge": "a" * 3_000_000,
}
OUT_OF_RANGE = {
    "family": "",
    "precision": "fp64",
    "weights": "pruned",
    "operators": "com.microsoft",
    "model/layers": 0,
    "model/heads": 2.5,
    "model/hidden_size": "64",
    "model/tied_embeddings": 1,
    "model/rope/theta": 0,
    "model/rope/sections": [0],
    "files": [],
    "files/vision": "vision.onnx",
    "files/vision/bytes": -1,
    "files/vision/sha256": "6c556e",
    "files/Vision": {"path": "x", "sha256": "0" * 64, "bytes": 0},
    "graphs/vision/opset": True,
    "graphs/vision/inputs": {},
    "graphs/vision/inputs/0": None,
    "graphs/vision/inputs/0/name": "",
    "graphs/vision/inputs/0/dtype": "float31",
    "graphs/vision/inputs/0/shape/0": -1,
    "graphs/vision/inputs/0/shape/1": "",
    "engines": [{}],
    "engines/0/target": "../vision",
    "engines/0/library": "openvino",
    "engines/0/version": "10.3; rm",
    "engines/0/decoder": "growing",
    "engines/0/compute_capabilities": [],
    "engines/0/compute_capabilities/0": "sm_87",
    "engines/0/built_from/vision": "6c556e",
    "engines/0/profiles/default/shapes/pixels": [[1, 4], [2, 4]],
    "engines/0/profiles/default/shapes/pixels/0": ["patches", 4],
    "preprocessing/size": {"height": 224},
    "preprocessing/mean": [[0.5]],
    "preprocessing/std": None,
    "image_backend/name": "opencv",
    "tokens/image": -1,
    "tokens/video": "<|video|>",
    "generation/eos": [],
    "generation/repetition_penalty": 0,
    "generation/max_new_tokens": 0,
    "limits/visual_tokens": 0,
    "limits/prompt_tokens": 10**400,
    "compressor/kind": "random",
    "compressor/keep": 0,
    "compressor/figures": None,
    "parity/vision": "small",
    "tools/torch": 2,
}

VERSIONS: tuple[object, ...] = (0, 1, 2, 3, 6, True, "2", None, [], 1.5, "\x1b" * 999)

ATTACKS: dict[str, tuple[Attack, str, str]] = {
    **{
        f"path: {name}": (put("files/vision/path", path), "a valid manifest: the path", AGAIN)
        for name, path in BAD_PATHS.items()
    },
    "path: absolute": (absolute, "a valid manifest: the path", AGAIN),
    **{
        f"out of range: {keys}": (put(keys, value), "manifest.json", AGAIN)
        for keys, value in OUT_OF_RANGE.items()
    },
    # Links and things that are no plain files
    "link out of the folder": (
        instead("vision.onnx", link("../outside/vision.onnx")),
        "vision.onnx is a symbolic link",
        "Put the file itself in its place",
    ),
    "linked folder out of the folder": (
        instead("text", link("../outside/text")),
        "text is a symbolic link",
        "Put the file itself in its place",
    ),
    "link inside": (instead("vision.onnx", link("vision.onnx.data")), "vision.onnx", AGAIN),
    "dangling link": (instead("vision.onnx", link("nowhere")), "vision.onnx", AGAIN),
    "link to itself": (instead("vision.onnx", link("vision.onnx")), "vision.onnx", AGAIN),
    "FIFO": (instead("vision.onnx", os.mkfifo), "vision.onnx is not a plain file", AGAIN),
    "socket": (instead("vision.onnx", listen), "vision.onnx is not a plain file", AGAIN),
    "folder for a file": (instead("vision.onnx", Path.mkdir), "vision.onnx is not a plain", AGAIN),
    "file for a folder": (instead("text", Path.touch), "text/tokenizer.json", "Check its perm"),
    "manifest: link": (
        instead("manifest.json", link("../outside/manifest.json")),
        "manifest.json is a symbolic link",
        "Put the file itself in its place",
    ),
    "manifest: dangling link": (instead("manifest.json", link("no")), "manifest.json", AGAIN),
    "manifest: FIFO": (instead("manifest.json", os.mkfifo), "manifest.json is not a", AGAIN),
    "manifest: folder": (instead("manifest.json", Path.mkdir), "manifest.json is not a", AGAIN),
    # Damage
    "checksum: wrong": (
        put("files/vision/sha256", "0" * 64),
        "vision.onnx does not match its checksum",
        AGAIN,
    ),
    "checksum: missing": (drop("files/vision/sha256"), "manifest.json", AGAIN),
    "checksum: capitals": (put("files/vision/sha256", "A" * 64), "manifest.json", AGAIN),
    "graph: truncated": (data("vision.onnx", lambda old: old[:-1]), "vision.onnx has 191", AGAIN),
    "graph: emptied": (data("vision.onnx", lambda old: b""), "vision.onnx has 0 bytes", AGAIN),
    "graph: longer": (data("vision.onnx", lambda old: old + b"\0"), "vision.onnx has 193", AGAIN),
    "weights: truncated": (
        data("vision.onnx.data", lambda old: old[:8]),
        "vision.onnx.data has 8 bytes",
        AGAIN,
    ),
    "weights: a bit flipped": (
        data("vision.onnx.data", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
        "vision.onnx.data does not match its checksum",
        AGAIN,
    ),
    "file: missing": (instead("text/tokenizer.json", str), "tokenizer.json is missing", AGAIN),
    "folder: missing": (instead("text", str), "text is missing", AGAIN),
    # Another format
    **{
        f"version: {version!r:.9}": (put("version", version), "manifest.json", "upgrade foveate")
        for version in VERSIONS
    },
    "version: missing": (drop("version"), "manifest.json", "upgrade foveate"),
    "format: another": (put("format", "onnx"), 'does not say "format": "foveate-bundle"', AGAIN),
    "format: missing": (drop("format"), "manifest.json", AGAIN),
    # Fields
    "unknown field": (put("colour", "blue"), "manifest.json", AGAIN),
    "unknown field inside": (put("model/rope/colour", "blue"), "manifest.json", AGAIN),
    "unknown field, unprintable": (put("\x1b[31m\n" * 999, 1), "manifest.json", AGAIN),
    **{
        f"missing field: {keys}": (drop(keys), "manifest.json", AGAIN)
        for keys in (
            "family",
            "weights",
            "operators",
            "limits",
            "model/rope",
            "files/vision/bytes",
            "compressor/keep",
        )
    },
    "graph without a file": (drop("files/vision"), "the graph 'vision' is not among", AGAIN),
    "graph of another kind": (
        put("files/vision/path", "vision.ort"),
        "the graph 'vision' is no .onnx file",
        AGAIN,
    ),
    "engine without a file": (
        put("engines/0/file", "vision.trt"),
        "the engine 'vision.trt' is not among the files",
        AGAIN,
    ),
    "engine of no graph": (
        put("engines/0/role", "tokenizer"),
        "plays 'tokenizer', which is no graph",
        AGAIN,
    ),
    "two engines of a graph for a target": (
        edit(lambda document: document["engines"].append(document["engines"][0])),
        "is not the only one of 'vision' for 'jetson-orin'",
        AGAIN,
    ),
    "decoder engine of another graph": (
        put("engines/0/decoder", "static"),
        "of 'vision' has the decoder 'static'",
        AGAIN,
    ),
    "engine with a range that falls": (
        put("engines/0/profiles/default/shapes/pixels/0", [999, 4]),
        "an impossible range for 'pixels' in 'default'",
        AGAIN,
    ),
    "engine with a range of several ranks": (
        put("engines/0/profiles/default/shapes/pixels/0", [1]),
        "an impossible range for 'pixels' in 'default'",
        AGAIN,
    ),
    "tensor twice": (
        edit(lambda document: document["graphs"]["vision"]["inputs"].append(PIXELS)),
        "names a tensor twice",
        AGAIN,
    ),
    # JSON
    "key twice": (
        text(lambda old: old.replace(b"{", b'{"family": "llava",', 1)),
        "manifest.json is not a valid manifest: the key 'family' stands twice",
        AGAIN,
    ),
    "key twice inside": (
        text(lambda old: old.replace(b'"path"', b'"path": "x", "path"', 1)),
        "the key 'path' stands twice",
        AGAIN,
    ),
    "key twice by escape": (
        text(lambda old: old.replace(b"{", b'{"famil\\u0079": "llava",', 1)),
        "the key 'family' stands twice",
        AGAIN,
    ),
    "enormous": (
        text(lambda old: old + b" " * MANIFEST_LIMIT),
        "manifest.json is over 4194304 bytes",
        AGAIN,
    ),
    "enormous and sparse": (
        lambda bundle: os.truncate(bundle / "manifest.json", 1 << 34),
        "manifest.json is over 4194304 bytes",
        AGAIN,
    ),
    "deep": (
        text(lambda old: old.replace(b"14", b"[" * 100_000 + b"14" + b"]" * 100_000)),
        "manifest.json",
        AGAIN,
    ),
    "deep from the start": (text(lambda old: b"[" * 4_000_000), "manifest.json", AGAIN),
    "deep objects": (text(lambda old: b'{"a":' * 400_000), "manifest.json", AGAIN),
    **{
        f"number: {number[:10]}": (
            number_instead(number),
            "manifest.json",
            AGAIN,
        )
        for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "0x1", "1_0", "01")
    },
    "not UTF-8": (text(lambda old: old.replace(b"qwen2", b"qwen\xff")), "manifest.json", AGAIN),
    "UTF-16": (text(lambda old: old.decode().encode("utf-16")), "manifest.json", AGAIN),
    "byte-order mark": (text(lambda old: b"\xef\xbb\xbf" + old), "manifest.json", AGAIN),
    "lone surrogate": (
        text(lambda old: old.replace(b"qwen2", b"\\ud800")),
        "manifest.json",
        AGAIN,
    ),
    "empty": (text(lambda old: b""), "manifest.json", AGAIN),
    "cut short": (text(lambda old: old[:-3]), "manifest.json", AGAIN),
    "two documents": (text(lambda old: old + old), "manifest.json", AGAIN),
    "a list": (text(lambda old: b"[1]"), "manifest.json", AGAIN),
    "a word": (text(lambda old: b'"foveate-bundle"'), "manifest.json", AGAIN),
    "comment": (text(lambda old: b"// bundle\n" + old), "manifest.json", AGAIN),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(bundle: Path, name: str) -> None:
    attack, named, fix = ATTACKS[name]
    attack(bundle)
    refused(lambda: Bundle.open(bundle), BundleError, named, fix)
    if not named.endswith("checksum"):
        refused(lambda: Bundle.open(bundle, checksums=False), BundleError, named, fix)


NO_BUNDLES: dict[str, tuple[Attack, str, str]] = {
    "killed export": (
        lambda bundle: (bundle / "manifest.json").unlink(),
        "bundle has graphs but no manifest.json",
        DELETE,
    ),
    "checkpoint": (checkpoint, "bundle is a checkpoint", "Make one of it: foveate export"),
    "empty folder": (instead("", Path.mkdir), "bundle is no bundle", "Check the path"),
    "no folder": (instead("", str), "bundle does not exist", "Check the path"),
    "file": (instead("", Path.touch), "bundle is a file", "Give the folder"),
    "FIFO": (instead("", os.mkfifo), "bundle is a file", "Give the folder"),
}


@pytest.mark.parametrize("name", NO_BUNDLES)
def test_no_bundle(bundle: Path, name: str) -> None:
    attack, named, fix = NO_BUNDLES[name]
    attack(bundle)
    refused(lambda: Bundle.open(bundle), BundleNotFoundError, named, fix)


def test_partial_folder_with_everything_in_it(bundle: Path) -> None:
    partial = bundle.rename(bundle.with_name(".bundle.partial-00c0ffee"))
    refused(lambda: Bundle.open(partial), BundleNotFoundError, partial.name, DELETE)


# Graphs that are not what the manifest says


def describe(session: onnxruntime.InferenceSession) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs as onnxruntime sees them."""

    def specs(nodes: Any) -> list[TensorSpec]:
        """One side of the graph."""
        return [TensorSpec(name=n.name, dtype=TYPES[n.type], shape=n.shape) for n in nodes]  # type: ignore[arg-type]

    return specs(session.get_inputs()), specs(session.get_outputs())


def open_graph(bundle: Path) -> onnxruntime.InferenceSession:
    """The bundle's vision graph in onnxruntime, which is to say nothing on its own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    path = str(Bundle.open(bundle).file("vision"))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_the_golden_graph_is_what_its_manifest_says(bundle: Path) -> None:
    Bundle.open(bundle).check_graph("vision", *describe(open_graph(bundle)))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"shape": ["patches", 8]}, "is float32 [free, 4] in the graph and float32 [free, 8]"),
        ({"shape": [1, 4]}, "is float32 [free, 4] in the graph and float32 [1, 4]"),
        ({"shape": ["patches", 4, 1]}, "in the graph and float32 [free, 4, 1]"),
        ({"dtype": "float16"}, "is float32 [free, 4] in the graph and float16 [free, 4]"),
        ({"name": "image"}, "the input 'image' is absent in the graph"),
    ],
)
def test_promises_that_the_graph_does_not_keep(
    bundle: Path, change: dict[str, object], difference: str
) -> None:
    edit(lambda document: document["graphs"]["vision"]["inputs"][0].update(change))(bundle)
    opened = Bundle.open(bundle)
    loaded = describe(open_graph(bundle))
    name = f"{bundle / 'vision.onnx'}: the input"
    for part in (name, difference):
        refused(lambda: opened.check_graph("vision", *loaded), BundleError, part, "Export the")


def vouch(bundle: Path, content: bytes) -> None:
    """Another vision graph, with a manifest that agrees to it."""
    (bundle / "vision.onnx").write_bytes(content)
    put("files/vision/bytes", len(content))(bundle)
    put("files/vision/sha256", hashlib.sha256(content).hexdigest())(bundle)


def external(location: str) -> onnx.TensorProto:
    """A tensor that lies elsewhere."""
    tensor = onnx.TensorProto(name="t", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def initializer(model: onnx.ModelProto, location: str) -> None:
    """The place where exporters put weights."""
    model.graph.initializer.append(external(location))


def sparse(model: onnx.ModelProto, location: str) -> None:
    """A sparse weight's values."""
    model.graph.sparse_initializer.add().values.CopyFrom(external(location))


def constant(model: onnx.ModelProto, location: str) -> None:
    """A Constant node's value."""
    node = onnx.helper.make_node("Constant", [], ["c"], value=external(location))
    model.graph.node.append(node)


def branch(model: onnx.ModelProto, location: str) -> None:
    """A weight of a graph within a graph within the graph."""
    inner = onnx.helper.make_graph([], "inner", [], [], [external(location)])
    middle = onnx.helper.make_node("If", ["c"], ["d"], then_branch=inner)
    outer = onnx.helper.make_graph([middle], "outer", [], [])
    model.graph.node.append(onnx.helper.make_node("Many", [], ["e"], graphs=[outer]))


def listed(model: onnx.ModelProto, location: str) -> None:
    """An attribute with several tensors."""
    node = onnx.helper.make_node("Many", [], ["c"], tensors=[external(location)])
    model.graph.node.append(node)


def sparse_constant(model: onnx.ModelProto, location: str) -> None:
    """The indices of a Constant node's sparse value."""
    attribute = model.graph.node.add(op_type="Constant", output=["c"]).attribute.add()
    attribute.sparse_tensor.indices.CopyFrom(external(location))


def sparse_listed(model: onnx.ModelProto, location: str) -> None:
    """An attribute with several sparse tensors."""
    attribute = model.graph.node.add(op_type="Many", output=["c"]).attribute.add()
    attribute.sparse_tensors.add().values.CopyFrom(external(location))


def training(model: onnx.ModelProto, location: str) -> None:
    """A weight of a graph that is for training."""
    model.training_info.add().algorithm.initializer.append(external(location))


def default(model: onnx.ModelProto, location: str) -> None:
    """What a function's attribute is when it is not given."""
    model.functions.add(name="f", domain="d").attribute_proto.add().t.CopyFrom(external(location))


def function(model: onnx.ModelProto, location: str) -> None:
    """A Constant of a function that the model brings."""
    node = onnx.helper.make_node("Constant", [], ["c"], value=external(location))
    model.functions.add(name="f", domain="d").node.append(node)


PLACES = [
    initializer, sparse, constant, listed, sparse_constant, sparse_listed, branch, training,
    default, function,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_weights_that_the_manifest_does_not_list(
    bundle: Path, place: Callable[[onnx.ModelProto, str], None]
) -> None:
    """onnxruntime 1.23 follows such a path wherever it leads, so the reader must not let it."""
    for location in (
        "../outside/vision.onnx.data",
        "../../../../../etc/passwd",
        "/etc/passwd",
        "text/../vision.onnx.data",
        "unlisted",
        "link",
        "folder/vision.onnx.data",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "\x1b[2J" * 99,
    ):
        model = onnx.load(GOLDEN / "vision.onnx", load_external_data=False)
        place(model, location)
        vouch(bundle, model.SerializeToString())
        (bundle / "unlisted").write_bytes(bytes(16))
        if not (bundle / "link").is_symlink():
            (bundle / "link").symlink_to("../outside/vision.onnx.data")
            (bundle / "folder").symlink_to("../outside")
        named = "vision.onnx takes weights from '"
        refused(lambda: Bundle.open(bundle), BundleError, named, AGAIN)
        refused(lambda: Bundle.open(bundle, checksums=False), BundleError, named, AGAIN)

    model = onnx.load(GOLDEN / "vision.onnx", load_external_data=False)
    place(model, "vision.onnx.data")
    vouch(bundle, model.SerializeToString())
    Bundle.open(bundle)


def test_a_graph_that_the_manifest_does_not_describe_is_checked_too(bundle: Path) -> None:
    model = onnx.load(GOLDEN / "vision.onnx", load_external_data=False)
    initializer(model, "/etc/passwd")
    vouch(bundle, model.SerializeToString())
    drop("graphs/vision")(bundle)
    drop("engines")(bundle)
    named = "vision.onnx takes weights from '/etc/passwd'"
    refused(lambda: Bundle.open(bundle), BundleError, named, AGAIN)


def test_weights_are_sought_beside_their_graph(bundle: Path) -> None:
    (bundle / "vision.onnx").rename(bundle / "text" / "vision.onnx")
    put("files/vision/path", "text/vision.onnx")(bundle)
    named = "text/vision.onnx takes weights from 'vision.onnx.data'"
    refused(lambda: Bundle.open(bundle), BundleError, named, AGAIN)
    (bundle / "vision.onnx.data").rename(bundle / "text" / "vision.onnx.data")
    put("files/vision.weights/path", "text/vision.onnx.data")(bundle)
    open_graph(bundle)


def test_fields_that_nobody_knows_do_no_harm(bundle: Path) -> None:
    """Fields of each kind: an integer, a text, 64 bits, 32 bits."""
    unknown = b"\xf8\x3e\x80\x01\xfa\x3e\x01x\xf9\x3e" + b"\xff" * 8 + b"\xfd\x3e" + b"\xff" * 4
    vouch(bundle, (GOLDEN / "vision.onnx").read_bytes() + unknown)
    open_graph(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x3a",
        b"\x3a\x05\x00",
        b"\x3a\x03\x2a\x7f\x00",
        b"\x09\x00",
        b"\x0d\x00",
        b"\x08" + b"\xff" * 11,
        b"\x08\xff",
        b"\x3b\x3c",
        b"\x04",
        b"\xba\x80\x80\x80\x10\x00",
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_what_is_no_graph(bundle: Path, content: bytes) -> None:
    vouch(bundle, content)
    named = "vision.onnx is not a readable ONNX graph"
    refused(lambda: Bundle.open(bundle), BundleError, named, AGAIN)


def test_a_tag_too_wide_hides_nothing(bundle: Path) -> None:
    """A parser that keeps 32 bits of a tag sees the graph field where one of 64 bits would not."""
    model = onnx.load(GOLDEN / "vision.onnx", load_external_data=False)
    initializer(model, "/etc/passwd")
    body = model.graph.SerializeToString()
    size = bytes([len(body) & 127 | 128, len(body) >> 7])
    vouch(bundle, b"\xba\x80\x80\x80\x10" + size + body)
    refused(lambda: Bundle.open(bundle), BundleError, "vision.onnx is not a readable", AGAIN)
