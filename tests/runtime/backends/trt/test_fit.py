"""Engines that do not fit a machine are told before they are loaded."""

import ctypes
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foveate import machine
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, BundleError
from foveate.runtime.backends.trt.fit import fits
from tests.bundle.example import write

FITTING: tuple[Any, ...] = ("8.7", "tensorrt", "10.3.0")


def test_an_engine_that_fits(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    (engine,) = bundle.manifest.engines
    fits(bundle, engine, *FITTING)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (("8.6", "tensorrt", "10.3.0"), "is for compute capability 8.7, and this GPU has 8.6"),
        ((None, "tensorrt", "10.3.0"), "needs a GPU"),
        (("8.7", "tensorrt", "10.3.1"), "was built by TensorRT 10.3.0, and 10.3.1 is installed"),
        (("8.7", "tensorrt_rtx", "10.3.0"), "is for TensorRT, not for TensorRT for RTX"),
    ],
)
def test_another_machine(tmp_path: Path, machine: tuple[Any, ...], words: str) -> None:
    bundle = write(tmp_path / "bundle")
    (engine,) = bundle.manifest.engines
    with pytest.raises(BackendError) as caught:
        fits(bundle, engine, *machine)
    assert words in str(caught.value)
    assert "foveate " in str(caught.value)


@pytest.mark.parametrize("role", ["vision", "vision.weights"])
def test_another_bundle(tmp_path: Path, role: str) -> None:
    bundle = write(tmp_path / "bundle")
    (engine,) = bundle.manifest.engines
    other = msgspec.structs.replace(engine, built_from={**engine.built_from, role: "0" * 64})
    with pytest.raises(BackendError, match=rf"not built from this bundle's {role}\. Build it"):
        fits(bundle, other, *FITTING)


def test_a_truncated_engine(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    (engine,) = bundle.manifest.engines
    os.truncate(bundle.file(engine.file), 3)
    with pytest.raises(BackendError, match="3 of its 6 bytes: it was cut short"):
        fits(bundle, engine, *FITTING)
    with pytest.raises(BundleError, match="3 bytes where"):
        Bundle.open(bundle.root, checksums=False)
    bundle.file(engine.file).unlink()
    with pytest.raises(BackendError, match="0 of its 6 bytes"):
        fits(bundle, engine, *FITTING)


class Driver:
    """A CUDA driver whose GPU has a compute capability, or that fails at a call."""

    def __init__(self, capability: tuple[int, int], broken: str = "") -> None:
        self.capability, self.broken = capability, broken

    def cuInit(self, flags: int) -> int:
        return 100 * (self.broken == "cuInit")

    def cuDeviceGet(self, handle: Any, device: int) -> int:
        return 101 * (self.broken == "cuDeviceGet")

    def cuDeviceGetAttribute(self, found: Any, which: int, handle: Any) -> int:
        found._obj.value = self.capability[which - machine.MAJOR]
        return 0


def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver((8, 7)))
    assert machine.capability() == "8.7"
    for call in ("cuInit", "cuDeviceGet"):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, call=call: Driver((8, 7), call))
        assert machine.capability() is None
    monkeypatch.setattr(machine, "DRIVER", "libof-no-machine.so.9")
    monkeypatch.undo()
    monkeypatch.setattr(machine, "DRIVER", "libof-no-machine.so.9")
    assert machine.capability() is None
