"""TensorRT engines as far as no GPU is needed: which are chosen, what they take, what is refused."""

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from foveate import Pipeline, machine
from foveate.bundle.manifest import Library
from foveate.bundle.manifest_json import encode
from foveate.bundle.reader import Bundle
from foveate.errors import (
    BackendError,
    BundleError,
    FoveateError,
    LimitError,
    MissingDependencyError,
)
from foveate.runtime.backends.trt import cuda
from foveate.runtime.backends.trt.backend import consecutive
from foveate.runtime.backends.trt.choose import choose_engines, fitting_engines
from foveate.runtime.backends.trt.fit import rebuild
from foveate.runtime.backends.trt.ranges import largest, pick_profile
from foveate.runtime.backends.trt.tensor_specs import WRITE_INDICES, engine_spec
from tests.command import invoke, refused
from tests.runtime.backends.trt.engines import ROLES, copy_of, with_engines

HERE: tuple[Any, ...] = ("9.0", lambda library: "10.3.0")


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """The tiny bundle with engines for an H100."""
    return with_engines(copy_of(tiny_bundle, tmp_path / "bundle"), "h100")


# Which engines run here


def test_the_one_target_that_fits_is_chosen(bundle: Bundle) -> None:
    both = with_engines(bundle, "jetson-orin", capability="8.7")
    for target in (None, "h100"):
        chosen = choose_engines(both, target, *HERE)
        assert [engine.role for engine in chosen.values()] == list(ROLES)
        assert {engine.target for engine in chosen.values()} == {"h100"}


def test_several_targets_that_fit_must_be_told_apart(bundle: Bundle) -> None:
    both = with_engines(bundle, "h100-small")
    with pytest.raises(BackendError, match=r"several targets run here: h100, h100-small\. Name"):
        choose_engines(both, None, *HERE)
    assert choose_engines(both, "h100-small", *HERE)["vision"].target == "h100-small"


def missing(library: Library) -> str:
    raise MissingDependencyError("TensorRT cannot be imported: pip install 'foveate[tensorrt]'")


@pytest.mark.parametrize(
    ("target", "capability", "versions", "error", "words"),
    [
        ("a100", "9.0", HERE[1], BackendError, "no engines for the target 'a100'; it has them for"),
        (None, "8.0", HERE[1], BackendError, "is for compute capability 9.0, and this GPU has 8.0"),
        ("h100", None, HERE[1], BackendError, "needs a GPU"),
        ("h100", "9.0", lambda _: "10.4.0", BackendError, "10.4.0 is installed"),
        (None, "9.0", missing, MissingDependencyError, r"foveate\[tensorrt\]"),
    ],
)
def test_engines_that_do_not_fit(
    bundle: Bundle,
    target: str | None,
    capability: str | None,
    versions: Callable[[Library], str],
    error: type[FoveateError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        choose_engines(bundle, target, capability, versions)


def test_every_target_that_does_not_fit_is_told_why(bundle: Bundle) -> None:
    both = with_engines(bundle, "jetson-orin", capability="8.7")
    with pytest.raises(BackendError) as caught:
        choose_engines(both, None, "8.0", HERE[1])
    for word in ("h100", "jetson-orin", "9.0", "8.7", "foveate build"):
        assert word in str(caught.value)
    fitting, reasons = fitting_engines(both, "8.7", HERE[1])
    assert (list(fitting), list(reasons)) == (["jetson-orin"], ["h100"])


def test_a_bundle_without_engines_and_a_target_without_one(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=r"has no TensorRT engines\. Build them: foveate build"):
        choose_engines(tiny_bundle, None, *HERE)
    part = with_engines(copy_of(tiny_bundle, tmp_path / "part"), "h100", roles=ROLES[:2])
    with pytest.raises(BackendError, match="no engine of decoder for h100"):
        choose_engines(part, None, *HERE)


def test_engines_of_another_export_and_truncated_ones(bundle: Bundle) -> None:
    engines = [
        msgspec.structs.replace(one, built_from={one.role: "0" * 64})
        for one in bundle.manifest.engines
    ]
    other = Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, engines=engines))
    with pytest.raises(BackendError, match="not built from this bundle's vision"):
        choose_engines(other, "h100", *HERE)
    os.truncate(bundle.file("engine.h100.decoder"), 3)
    with pytest.raises(BackendError, match="it was cut short"):
        choose_engines(bundle, "h100", *HERE)


def test_a_static_decoder_is_told_by_its_variant_and_has_one_cache_length(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = with_engines(copy_of(tiny_bundle, tmp_path / "bundle"), "thor", decoder="static")
    assert [one.decoder for one in bundle.manifest.engines] == [None, None, "static"]
    assert choose_engines(bundle, None, *HERE)["decoder"].decoder == "static"
    with pytest.raises(BackendError, match="--target thor --decoder static --force"):
        choose_engines(bundle, "thor", "9.0", lambda _: "10.16.0")
    half = [msgspec.structs.replace(one, precision="fp16") for one in bundle.manifest.engines]
    other = Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, engines=half))
    assert rebuild(other, "thor").endswith("--decoder static --precision fp16 --force")
    (*others, decoder) = bundle.manifest.engines
    spec = engine_spec(bundle.graph("decoder"), decoder)
    assert spec.inputs[2].name == WRITE_INDICES
    capacity = largest(decoder, "past.0.key", 2)
    model = bundle.manifest.model
    cache = ["batch", model.kv_heads, capacity, model.head_dim]
    assert spec.inputs[3].shape == spec.outputs[1].shape == cache
    assert engine_spec(bundle.graph("vision"), others[0]) == bundle.graph("vision")
    first, last = decoder.profiles.values()
    low, best, most = last.shapes["past.0.key"]
    for span in ((low, best, [*most[:2], most[2] + 1, most[3]]), ([1], [1], [1])):
        shapes = {**last.shapes, "past.0.key": span}
        profiles = {"decode": first, "prefill": msgspec.structs.replace(last, shapes=shapes)}
        odd = msgspec.structs.replace(decoder, profiles=profiles)
        with pytest.raises(BundleError, match="do not give its cache one length"):
            encode(msgspec.structs.replace(bundle.manifest, engines=[*others, odd]))


# What a machine without a GPU says


@pytest.mark.skipif(machine.capability() is not None, reason="there is a GPU here")
def test_without_a_gpu_the_pipeline_and_the_verbs_say_so(bundle: Bundle, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is None:
        with pytest.raises(MissingDependencyError, match=r"foveate\[tensorrt\]"):
            Pipeline.load(bundle.root, backend="tensorrt")
    rtx = importlib.import_module("tensorrt_rtx")
    both = with_engines(bundle, "rtx", library="tensorrt_rtx", version=str(rtx.__version__))
    with pytest.raises(BackendError, match="needs a GPU, and none is to be seen"):
        Pipeline.load(both.root, backend="tensorrt", target="rtx", device="cuda")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (56, 56)).save(picture)
    asked = ("run", both.root, "What?", "--image", picture, "--target", "rtx")
    refused(invoke(*asked), "names TensorRT engines", "--backend tensorrt")
    refused(invoke(*asked, "--backend", "tensorrt"), "needs a GPU", "foveate doctor")
    verified = invoke("verify", both.root)
    assert verified.exit_code == 0, verified.stderr
    assert "rtx decoder      built from this graph by TensorRT for RTX" in verified.stdout
    assert verified.stdout.count("not run: ") == 6
    assert "needs a GPU, and none is to be seen" in verified.stdout


def test_options_that_do_not_go_together(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="cannot run TensorRT engines"):
        Pipeline.load(bundle.root, backend="tensorrt", device="cpu")
    with pytest.raises(BackendError, match="threads are onnxruntime's"):
        Pipeline.load(bundle.root, backend="tensorrt", threads=2)
    with pytest.raises(BackendError, match="names TensorRT engines, and auto runs none"):
        Pipeline.load(bundle.root, target="h100")


def test_without_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cuda.MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"foveate\[tensorrt\]"):
        cuda.load_cuda()


def test_importing_the_runtime_pulls_in_no_library_that_runs_graphs() -> None:
    code = (
        "import sys; import foveate.runtime, foveate.cli\n"
        "taken = {'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda', 'onnx', 'torch'}\n"
        "assert not taken & set(sys.modules), taken & set(sys.modules)\n"
        "import foveate.runtime.backends.trt.backend\n"
        "assert not taken & set(sys.modules), taken & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Shapes and memory


def shapes_of(bundle: Bundle) -> Callable[[int, int], dict[str, tuple[int, ...]]]:
    """The shapes of some inputs of a bundle's decoder, by tokens in the cache and tokens taken in."""
    model = bundle.manifest.model
    return lambda past, count: {
        "inputs_embeds": (1, count, model.hidden_size),
        "attention_mask": (1, past + count),
        "past.0.key": (1, model.kv_heads, past, model.head_dim),
    }


def test_profiles_are_picked_by_what_they_take(bundle: Bundle) -> None:
    inputs, width = shapes_of(bundle), bundle.manifest.model.hidden_size
    (decoder,) = (engine for engine in bundle.manifest.engines if engine.role == "decoder")
    assert list(decoder.profiles) == ["prefill", "decode"]
    assert pick_profile(decoder, inputs(0, 300), {}) == 0
    assert pick_profile(decoder, inputs(0, 1), {}) == 0
    assert pick_profile(decoder, inputs(300, 1), {}) == 1
    limit = largest(decoder, "past.0.key", 2)
    assert pick_profile(decoder, inputs(limit, 1), {}) == 1
    for shapes, name in (
        (inputs(limit + 1, 1), "attention_mask"),
        (inputs(0, 99999), "inputs_embeds"),
    ):
        with pytest.raises(LimitError) as caught:
            pick_profile(decoder, shapes, {})
        for word in (name, str(list(shapes[name])), "--targets"):
            assert word in str(caught.value)
    with pytest.raises(
        LimitError, match=rf"'inputs_embeds' is \[1, 2, {width}\], outside the \[1, 1, {width}\]"
    ):
        pick_profile(decoder, inputs(5, 2), {})


def test_sizes_that_are_values_are_held_to_their_range(bundle: Bundle) -> None:
    (compressor,) = (engine for engine in bundle.manifest.engines if engine.role == "compressor")
    assert pick_profile(compressor, {"keep": (1,)}, {"keep": (64,)}) == 0
    with pytest.raises(LimitError, match=r"'keep' holds \[9999\], outside the \[1\] to \[4096\]"):
        pick_profile(compressor, {"keep": (1,)}, {"keep": (9999,)})


@pytest.mark.parametrize(
    ("size", "block"),
    [(0, 512), (1, 512), (512, 512), (513, 768), (769, 1024), (1025, 1536), (1537, 2048),
     (10**9, 3 * 2**28 + 2**28), (800_000_000, 3 * 2**28)],
)  # fmt: skip
def test_blocks_come_in_few_sizes(size: int, block: int) -> None:
    assert cuda.block_size(size) == block
    assert size <= block <= max(512, 1.5 * size + 512)


def test_memory_that_nobody_uses_is_used_again_lowest_address_first() -> None:
    device = SimpleNamespace(idle={}, lock=threading.RLock(), check_open=lambda: None)
    blocks = [cuda.Block(device, address, 512) for address in (300, 100, 200)]  # type: ignore[arg-type]
    assert device.idle == {}
    del blocks
    taken = [cuda.Gpu.block(device, 10) for _ in range(3)]  # type: ignore[arg-type]
    assert [block.address for block in taken] == [100, 200, 300]


@pytest.mark.parametrize("dropped", [0, 1, 3])
def test_gathering_by_copies_is_what_gathering_by_index_is(dropped: int) -> None:
    generator = np.random.default_rng(0)
    for visual_count in (0, 1, 7, 20):
        chosen = generator.permutation(20)
        text_index, visual_index = np.sort(chosen[visual_count:]), np.sort(chosen[:visual_count])
        indices = np.sort(generator.permutation(visual_count)[dropped:])
        text = generator.standard_normal((len(text_index), 64)).astype(np.float32)
        visual = generator.standard_normal((visual_count, 64)).astype(np.float32)
        plain = np.empty((20, 64), np.float32)
        plain[text_index], plain[visual_index] = text, visual
        places = np.concatenate([text_index, visual_index[indices]])
        order = np.concatenate([np.arange(len(text)), len(text) + indices])[np.argsort(places)]
        wanted = plain[np.sort(places)]
        assert np.array_equal(np.concatenate([text, visual])[order], wanted)
        found = np.full_like(wanted, np.nan)
        copies = 0
        for begin, row, count in consecutive(order, len(text)):
            source, start = (text, row) if row < len(text) else (visual, row - len(text))
            found[begin : begin + count] = source[start : start + count]
            copies += 1
        assert np.array_equal(found, wanted)
        if not dropped:
            assert copies <= 2 * min(visual_count, 20 - visual_count) + 1
