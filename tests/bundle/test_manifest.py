"""manifest.json: its version, and the fields that its types alone do not check.

`manifest-5.json` is the manifest of a bundle that was written before format 6.
"""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foveate import __version__
from foveate.bundle.manifest import VERSION, AxisRange, Manifest, Rope
from foveate.bundle.manifest_json import decode, encode
from foveate.bundle.problems import DEEPEST
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError
from tests.attacks.harness import resealed
from tests.bundle.example import GOLDEN, contents, write

HERE = Path("manifest.json")
ROOT = Path(__file__).parents[2]
OLD = Path(__file__).parent / "manifest-5.json"


def nested(levels: int) -> dict[str, Any]:
    """Objects in each other, `levels` deep."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize("version", range(1, 8))
def test_an_old_version_is_to_be_exported_again(tmp_path: Path, version: int) -> None:
    data = OLD.read_bytes().replace(b'"version": 5', b'"version": %d' % version)
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/manifest.json has version {version} of the bundle format, and Foveate "
        f"{__version__} reads version {VERSION}. Older bundles are not converted: export the checkpoint "
        "again (foveate export CHECKPOINT BUNDLE), and if the bundle had engines, build them again "
        "(foveate build)."
    )
    write(tmp_path, force=True)
    assert contents(tmp_path) == contents(GOLDEN)


def test_the_fields_of_version_5_are_not_those_of_today() -> None:
    data = OLD.read_bytes().replace(b'"version": 5', b'"version": %d' % VERSION)
    with pytest.raises(BundleError, match=r"manifest\.json has no checksum of itself"):
        decode(data, HERE)


def test_another_version_is_told_by_version_alone() -> None:
    data = b'{"format": "foveate-bundle", "version": 3, "colour": "blue"}'
    with pytest.raises(BundleError) as caught:
        decode(data, HERE)
    assert str(caught.value).startswith(
        f"manifest.json has version 3 of the bundle format, and Foveate {__version__} reads version "
        f"{VERSION}. Older bundles are not converted: export the checkpoint again"
    )


def test_a_later_version_needs_another_foveate() -> None:
    with pytest.raises(BundleError) as caught:
        decode(b'{"format": "foveate-bundle", "version": 9, "colour": "blue"}', HERE)
    assert str(caught.value) == (
        f"manifest.json has version 9 of the bundle format, and Foveate {__version__} reads version "
        f"{VERSION}. To read it, upgrade foveate; or export the checkpoint again."
    )


def test_a_manifest_without_engines_has_none() -> None:
    document = msgspec.json.decode((GOLDEN / "manifest.json").read_bytes())
    del document["engines"]
    assert decode(resealed(json.dumps(document).encode()), HERE).engines == []


def test_encode_refuses_what_decode_would() -> None:
    manifest = decode((GOLDEN / "manifest.json").read_bytes(), HERE)
    changes: list[dict[str, Any]] = [
        {"parity": {"vision": float("nan")}},
        {"tokens": {"image": -1}},
        {"files": {}},
        {"family": ""},
        {"operators": "contrib"},
        {"vision_axes": {"borders": AxisRange()}},
        {"preprocessing": nested(DEEPEST + 1)},
        {"preprocessing": nested(100_000)},
    ]
    for change in changes:
        with pytest.raises(BundleError, match=r"manifest\.json is not a valid manifest"):
            encode(msgspec.structs.replace(manifest, **change))


def test_preprocessing_is_any_json_of_the_familys() -> None:
    manifest = decode((GOLDEN / "manifest.json").read_bytes(), HERE)
    for value in (
        {},
        {"images": {"size": {"height": 224}, "mean": [[0.5]], "std": None, "crop": False}},
        nested(DEEPEST),
    ):
        changed = msgspec.structs.replace(manifest, preprocessing=value)
        assert decode(encode(changed), HERE).preprocessing == value


def test_an_axis_left_out_of_a_range_adds_nothing() -> None:
    document = msgspec.json.decode((GOLDEN / "manifest.json").read_bytes())
    document["vision_axes"] = {"patches": {"per_picture": 1, "plus": 1}}
    axes = decode(resealed(json.dumps(document).encode()), HERE).vision_axes
    assert axes == {"patches": AxisRange(per_token=0, per_picture=1, plus=1)}


def test_without_a_vision_graph_axes_have_any_name() -> None:
    document = msgspec.json.decode((GOLDEN / "manifest.json").read_bytes())
    document.update(vision_axes={"anything": {}}, graphs={}, engines=[])
    assert list(decode(resealed(json.dumps(document).encode()), HERE).vision_axes) == ["anything"]


def test_a_bundle_of_contrib_operators_says_so_by_its_files(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    name = "vision.contrib.onnx"
    path = bundle.file("vision").rename(bundle.root / name)
    entry = msgspec.structs.replace(bundle.manifest.files["vision"], path=name)
    manifest = msgspec.structs.replace(
        bundle.manifest, operators="contrib", files={**bundle.manifest.files, "vision": entry}
    )
    (bundle.root / "manifest.json").write_bytes(encode(manifest))
    assert Bundle.open(bundle.root).file("vision") == path


def test_positions_have_an_axis_for_each_section() -> None:
    assert [Rope(theta=1.0, sections=sections).axes for sections in ((), (4,), (2, 3, 3))] == [
        1, 1, 3,
    ]  # fmt: skip


def test_the_specification_lists_the_fields_in_their_order() -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    table = text.split("## manifest.json")[1].split("A **role**")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.M)) == (
        *Manifest.__struct_fields__,
        "checksum",
    )
    assert text.startswith(f"# The bundle format, version {VERSION}\n")
