"""Hostile manifests: each is refused with one typed error that names file and fix."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from foveate.bundle.manifest import MANIFEST_LIMIT
from foveate.bundle.manifest_json import decode
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError
from foveate.families.qwen2_vl_settings import read_preprocessing
from foveate.runtime import Pipeline
from tests.attacks.harness import AGAIN, Attack, check_refused, drop, edit, put, refused, text

PIXELS = {"name": "pixels", "dtype": "int64", "shape": []}


def number_instead(number: str) -> Attack:
    """An attack that writes another number where JSON's own tools would not."""
    return text(lambda old: old.replace(b"2.1e-7", number.encode()))


def preprocessing(value: bytes) -> Attack:
    """An attack that gives the preprocessing another field of any JSON, two levels down."""
    return text(lambda old: old.replace(b'"patch_size": 14', b'"odd": ' + value))


def absolute(bundle: Path) -> None:
    """A path from the root, to a file with the right checksum."""
    put("files/vision/path", str(bundle.parent / "outside" / "vision.onnx"))(bundle)


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
    "model/kv_heads": 3,
    "model/head_dim": 18,
    "model/vocabulary": 2**26 + 1,
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
    "vision_axes": ["patches"],
    "vision_axes/patches": 4,
    "vision_axes/patches/per_token": -1,
    "vision_axes/patches/per_picture": 0.5,
    "vision_axes/patches/plus": None,
    "preprocessing": None,
    "preprocessing/images/merge_size": 2**63,
    "preprocessing/videos/seconds/0": -(10**400),
    "preprocessing/": float("nan"),
    "image_backend/name": "opencv",
    "tokens/image": 2**32,
    "tokens/vision_end": -1,
    "tokens/vision_start": 8,
    "tokens/video": "<|video|>",
    "generation/eos": [],
    "generation/repetition_penalty": 0,
    "generation/max_new_tokens": 0,
    "limits/visual_tokens": 32769,
    "generation/max_length": 4096,
    "generation/do_sample": 1,
    "generation/temperature": 0,
    "generation/top_p": 1.5,
    "generation/top_k": -1,
    "generation/eos/0": 8,
    "generation/bad_words_ids": [[]],
    "generation/bad_words_ids/0": [8],
    "generation/sequence_bias/0": [[1], "low"],
    "generation/sequence_bias/0/1": float("inf"),
    "generation/suppress_tokens": [10**6],
    "generation/exponential_decay_length_penalty": [1],
    "limits/prompt_tokens": 10**400,
    "compressor/kind": "random",
    "compressor/words": "some",
    "compressor/keep": 0,
    "compressor/auto/share": 0,
    "compressor/auto/least": 1.5,
    "compressor/auto": [0.9, 0.02, 0.5],
    "compressor/figures": None,
    "parity/vision": "small",
    "tools/torch": 2,
}

# Settings that are any JSON to the reader, and that the family refuses.
SETTINGS = {
    "size": {"height": 224},
    "image_mean": [[0.5]],
    "image_std": None,
    "patch_size": [[[[[14]]]]],
    "resample": {"kernel": "bicubic"},
    "merge_size": 10**6,
    "temporal_patch_size": 0,
    "max_pixels": 2**31,
}
OLD_VERSIONS = (1, 2, 3, 4, 5, 6, 7)
VERSIONS: tuple[object, ...] = (0, -1, 9, 10**400, True, "2", None, [], 1.5, 5.0, "\x1b" * 999)

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
    # Another format
    **{
        f"old version: {version}": (put("version", version), "manifest.json has version", AGAIN)
        for version in OLD_VERSIONS
    },
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
            "precision",
            "weights",
            "operators",
            "model",
            "files",
            "graphs",
            "vision_axes",
            "preprocessing",
            "image_backend",
            "tokens",
            "generation",
            "limits",
            "compressor",
            "parity",
            "tools",
            "model/rope",
            "files/vision/bytes",
            "compressor/keep",
            "compressor/auto",
            "compressor/auto/most",
            "generation/no_repeat_ngram_size",
        )
    },
    "auto that keeps nothing known": (
        edit(lambda manifest: manifest["compressor"].update(keep="auto", auto=None)),
        "'keep' is 'auto', and 'auto' does not say what that keeps",
        AGAIN,
    ),
    "auto with bounds the wrong way round": (
        put("compressor/auto/least", 0.75),
        "'least' 0.75 is over 'most' 0.5",
        AGAIN,
    ),
    "graph without a file": (drop("files/vision"), "the graph 'vision' is not among", AGAIN),
    "graph of another kind": (
        put("files/vision/path", "vision.ort"),
        "the graph 'vision' is no .onnx file",
        AGAIN,
    ),
    "graph of standard operators in a file of contrib operators": (
        put("files/vision/path", "vision.contrib.onnx"),
        "the graph 'vision' is in 'vision.contrib.onnx', and 'operators' is 'standard'",
        AGAIN,
    ),
    "graph of contrib operators in a file of standard operators": (
        put("operators", "contrib"),
        "the graph 'vision' is in 'vision.onnx', and 'operators' is 'contrib'",
        AGAIN,
    ),
    "contrib in capitals": (
        put("files/vision/path", "vision.CONTRIB.onnx", operators="contrib"),
        "the graph 'vision' is in 'vision.CONTRIB.onnx', and 'operators' is 'contrib'",
        AGAIN,
    ),
    "embeddings: missing": (
        drop("files/embeddings"),
        "no file has the role 'embeddings'",
        AGAIN,
    ),
    **{
        f"embeddings: {path}": (
            put("files/embeddings/path", path),
            "the file of 'embeddings' is a graph",
            AGAIN,
        )
        for path in ("embeddings.onnx", "embeddings.ONNX", "embeddings.contrib.onnx")
    },
    "embeddings: a graph too": (
        edit(lambda document: document["graphs"].update(embeddings=document["graphs"]["vision"])),
        "the graph 'embeddings' is no .onnx file",
        AGAIN,
    ),
    **{
        f"vision axis: {axis!r:.9}": (
            put(f"vision_axes/{axis}", {"per_token": 4}),
            "'vision_axes' names '",
            AGAIN,
        )
        for axis in ("borders", "Patches", "4", "\x1b[2J" * 99)
    },
    "vision axis without a name": (put("vision_axes/", {}), "manifest.json", AGAIN),
    "vision axis with an unknown field": (
        put("vision_axes/patches/per_pixel", 1),
        "manifest.json",
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
        text(
            lambda old: old.replace(
                b": 14,", b": " + b"[" * 100_000 + b"14" + b"]" * 100_000 + b","
            )
        ),
        "manifest.json",
        AGAIN,
    ),
    **{
        f"deep preprocessing: {name}, {levels}": (
            preprocessing(opening * levels + b"1" + closing * levels),
            "manifest.json is not a valid manifest: ",
            AGAIN,
        )
        for levels in (15, 100, 500, 900, 1_000, 5_000, 200_000)
        for name, opening, closing in (("lists", b"[", b"]"), ("objects", b'{"a":', b"}"))
    },
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
    **{
        f"number in preprocessing: {number[:10]}": (
            preprocessing(number.encode()),
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
    check_refused(bundle, *ATTACKS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_the_family_does_not_have(bundle: Path, name: str) -> None:
    put(f"preprocessing/images/{name}", SETTINGS[name])(bundle)
    images = Bundle.open(bundle).manifest.preprocessing["images"]
    named = "preprocessing settings are wrong"
    refused(lambda: read_preprocessing({"images": images}), BundleError, named, "export it again")


def test_the_golden_settings_are_the_familys(bundle: Path) -> None:
    images = Bundle.open(bundle).manifest.preprocessing["images"]
    assert read_preprocessing({"images": images}).patch_size == 14


def test_every_flipped_bit_is_found(bundle: Path) -> None:
    data, source = (bundle / "manifest.json").read_bytes(), bundle / "manifest.json"
    for bit in range(0, 8 * len(data), 7):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BundleError) as caught:
            decode(bytes(flipped), source)
        assert str(caught.value).startswith(str(source))


@pytest.mark.parametrize(
    "change",
    [
        lambda digits: b"",
        lambda digits: b"0" * 64,
        lambda digits: digits.upper(),
        lambda digits: digits[:-1],
        lambda digits: digits[::-1],
        lambda digits: b"\\u00" + digits[4:],
        lambda digits: digits + b'", "again": "' + digits,
    ],
)
def test_a_checksum_that_is_none(bundle: Path, change: Callable[[bytes], bytes]) -> None:
    path = bundle / "manifest.json"
    digits = json.loads(path.read_bytes())["checksum"].encode()
    path.write_bytes(path.read_bytes().replace(digits, change(digits)))
    refused(lambda: Bundle.open(bundle), BundleError, "manifest.json", AGAIN)


def test_a_checksum_that_is_missing(bundle: Path) -> None:
    drop("checksum")(bundle)
    refused(lambda: Bundle.open(bundle), BundleError, "has no checksum of itself", AGAIN)


# Of a whole bundle: where the manifest contradicts its graphs, its table or its tokenizer.
CONTRADICTIONS = {
    "model/layers": 3,
    "model/layers ": 4294967295,
    "model/hidden_size": 128,
    "model/vocabulary": 10,
    "model/heads": 1,
    "model/kv_heads": 4,
    "model/head_dim": 32,
    "model/rope/sections": [],
    "precision": "fp16",
    "graphs/decoder/opset": 17,
    "graphs/decoder/inputs/0/dtype": "float16",
    "graphs/decoder/inputs/0/name": "embeds",
    "graphs/decoder/inputs/1/shape/0": 1,
    "graphs/decoder/inputs/3/shape/1": 1,
    "graphs/decoder/outputs/0/shape/0": 1,
    "graphs/compressor/outputs/1/dtype": "int32",
    "graphs/vision/inputs/0/shape/1": 588,
    "tokens/image": 2**20,
    "limits/visual_tokens": 2**31 - 1,
    "preprocessing/images/patch_size": 2**31,
    "preprocessing/images/merge_size": 10**6,
}


@pytest.mark.parametrize("keys", CONTRADICTIONS)
def test_numbers_that_contradict_the_files(tiny_bundle: Bundle, tmp_path: Path, keys: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.root, copy, copy_function=os.link)
    (copy / "manifest.json").unlink()
    shutil.copyfile(tiny_bundle.root / "manifest.json", copy / "manifest.json")
    put(keys.strip(), CONTRADICTIONS[keys])(copy)
    refused(lambda: Pipeline.load(copy, checksums=False), BundleError, str(copy), "xport")
