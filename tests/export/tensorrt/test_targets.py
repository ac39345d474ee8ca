"""Targets and the sizes they give: no TensorRT needed."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from foveate.bundle.manifest import AxisRange, GraphSpec, TensorSpec
from foveate.bundle.reader import Bundle
from foveate.errors import ExportError, TargetError
from foveate.export.tensorrt.axes import axis_size
from foveate.export.tensorrt.profiles import Plan, plan_profiles, vision_ranges
from foveate.export.tensorrt.targets import BUILTIN, choose_target, read_targets
from tests.command import invoke, refused

NAMES = ["a100", "h100", "jetson-orin", "jetson-thor", "rtx", "rtx-40"]


def test_the_targets_that_are_known() -> None:
    targets = read_targets()
    assert list(targets) == NAMES
    assert targets["jetson-orin"].compute_capabilities == ["8.7"]
    assert targets["rtx"].library == "tensorrt_rtx"
    for target in targets.values():
        assert target.ranges.keep[1] <= target.ranges.visual[1]
    help_text = invoke("build", "--help").output
    assert all(name in help_text for name in NAMES)


def test_a_file_changes_targets_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    file.write_text(
        "[rtx]\nworkspace_mib = 512\ndecoder = 'static'\n[rtx.ranges]\nkeep = [8, 16]\n"
    )
    targets, builtin = read_targets(file), read_targets()
    assert targets["rtx"].workspace_mib == 512
    assert (targets["rtx"].decoder, builtin["rtx"].decoder) == ("static", "concat")
    assert targets["rtx"].ranges.keep == (8, 16)
    assert targets["rtx"].ranges.text == builtin["rtx"].ranges.text
    assert targets["a100"] == builtin["a100"]


def test_a_file_adds_targets(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    text = BUILTIN.read_text(encoding="utf-8")
    table = text[text.index("[rtx]") : text.index("[rtx-40]")].replace("[rtx", "[my-card")
    file.write_text(table, encoding="utf-8")
    targets = read_targets(file)
    assert list(targets) == [*NAMES, "my-card"]
    assert targets["my-card"] == targets["rtx"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[new]\nworkspace_mib = 1\n", "missing required field"),
        ("[rtx]\ncolour = 'blue'\n", "unknown field `colour`"),
        ("[rtx]\nlibrary = 'openvino'\n", "Invalid enum value"),
        ("[rtx]\ndecoder = 'paged'\n", "Invalid enum value"),
        ("[rtx]\ncompute_capabilities = ['sm_86']\n", "matching regex"),
        ("[rtx]\ncompute_capabilities = []\n", "length >= 1"),
        ("[rtx]\nversions = ['2', '1.7']\n", "versions 2 to before 1.7 are none"),
        ("[rtx]\nprecisions = ['fp8']\n", "capability 8.6 has no fp8, which came with 8.9"),
        ("[rtx.ranges]\nkeep = [64, 8]\n", "ranges.keep is tuned for 64, more than the 8"),
        ("[rtx.ranges]\nkeep = [0, 8]\n", ">= 1"),
        ("['../rtx']\nworkspace_mib = 1\n", "matching regex"),
        ("[rtx\n", "is not valid TOML"),
        ("rtx = 1\n", "a table for each target"),
    ],
)
def test_files_that_describe_no_target(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "targets.toml"
    file.write_text(text)
    with pytest.raises(TargetError) as caught:
        read_targets(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_files_that_are_not_there_and_unknown_targets(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(TargetError, match="No such file"):
        read_targets(tmp_path / "none.toml")
    with pytest.raises(TargetError, match="choose from a100"):
        choose_target(read_targets(), "orin")
    refused(invoke("build", tiny_bundle.root, "--target", "orin"), "'orin' is unknown", "--targets")


def test_axes() -> None:
    sizes = {"text": 3, "u0": 4, "patches": 9}
    assert axis_size(7, sizes) == 7
    assert axis_size("text", sizes) == 3
    assert axis_size("text + u0", sizes) == 7
    assert axis_size("(patches//4)", sizes) == 2
    for odd in ("u1", "text + u1", "text.real", "f(text)", "text +", "text/2", "text//0", ""):
        with pytest.raises(ValueError, match="no known size"):
            axis_size(odd, sizes)


def test_profiles_stay_within_the_bundle(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    for target in read_targets().values():
        plans = plan_profiles(manifest, target)
        assert list(plans) == ["vision", "compressor", "decoder"]
        limits = {"visual": manifest.limits.visual_tokens, "past": manifest.limits.prompt_tokens}
        for role, several in plans.items():
            for plan in several:
                for low, best, most in (*plan.axes.values(), *plan.values.values()):
                    assert low <= best <= most
                for axis, most in limits.items():
                    assert plan.axes.get(axis, (0, 0, 0))[2] <= most
                profile = plan.ranges(manifest.graphs[role], role)
                assert list(profile.shapes) == [one.name for one in manifest.graphs[role].inputs]
        assert len(plans["decoder"]) == target.decoder_profiles
    (vision,) = plans["vision"]
    assert vision.axes["patches"][1] == 4 * target.ranges.visual[0]


def test_the_vision_graphs_axes_follow_tokens_and_pictures() -> None:
    axes = {
        "patches": AxisRange(per_token=4),
        "borders": AxisRange(per_picture=1, plus=1),
        "tiles": AxisRange(per_token=1 / 3),
        "both": AxisRange(per_token=2.0, per_picture=3, plus=5),
        "fixed": AxisRange(plus=7),
    }
    assert vision_ranges(axes, (1, 100, 1000), (1, 2, 16)) == {
        "patches": (4, 400, 4000),
        "borders": (2, 3, 17),
        "tiles": (1, 34, 334),
        "both": (10, 211, 2053),
        "fixed": (7, 7, 7),
    }


def test_profiles_of_the_vision_graph(tiny_bundle: Bundle) -> None:
    """A run takes one picture, of at most as many tokens as a request's pictures have together."""
    target = read_targets()["a100"]
    most = tiny_bundle.manifest.limits.visual_tokens
    for picture, largest in ((target.ranges.picture, 4096), (None, 9216), ((8, 99_999), 9216)):
        ranges = replace(target.ranges, picture=picture)
        (vision,) = plan_profiles(tiny_bundle.manifest, replace(target, ranges=ranges))["vision"]
        tuned = 8 if picture == (8, 99_999) else 1024
        assert vision.axes == {
            "pictures": (1, 1, 1), "patches": (4, 4 * tuned, 4 * min(largest, most))
        }  # fmt: skip


def test_an_axis_that_no_profile_knows() -> None:
    spec = GraphSpec(
        opset=18, inputs=[TensorSpec(name="x", dtype="float32", shape=["b"])], outputs=[]
    )
    with pytest.raises(ExportError, match=r"vision: the axis 'b' .* Export the checkpoint again"):
        Plan("default", {"a": (1, 2, 3)}).ranges(spec, "vision")
