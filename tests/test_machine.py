"""What a machine says of itself: as it is, and through drivers that are not there."""

from types import SimpleNamespace
from typing import Any

import pytest

from foveate import machine


def driver(shared: int) -> SimpleNamespace:
    """A CUDA driver with one GPU of 1000 bytes, 300 of them free."""

    def put(place: Any, value: int) -> int:
        place._obj.value = value
        return 0

    def text(place: Any, value: bytes) -> int:
        place.value = value
        return 0

    def memory(free: Any, total: Any) -> int:
        return put(free, 300) or put(total, 1000)

    return SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDeviceGet=lambda place, number: put(place, 0),
        cuDeviceGetName=lambda place, size, device: text(place, b"Test GPU"),
        cuDeviceTotalMem_v2=lambda place, device: put(place, 1000),
        cuDeviceGetPCIBusId=lambda place, size, device: text(place, b"0000:01:00.0"),
        cuDeviceGetAttribute=lambda place, which, device: put(place, shared),
        cuDevicePrimaryCtxRetain=lambda place, device: put(place, 1),
        cuCtxSetCurrent=lambda context: 0,
        cuMemGetInfo_v2=memory,
        nvmlInit_v2=lambda: 0,
        nvmlShutdown=lambda: 0,
        nvmlSystemGetDriverVersion=lambda place, size: text(place, b"580.1"),
        nvmlDeviceGetHandleByPciBusId_v2=lambda bus, place: put(place, 1),
        nvmlDeviceGetClockInfo=lambda handle, kind, place: (
            3 if kind == 2 else put(place, 1000 + kind)
        ),
    )


def test_a_gpu_tells_its_name_clocks_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_library", lambda name: driver(0))
    facts = machine.gpu_facts()
    assert (facts["name"], facts["memory"], facts["driver"]) == ("Test GPU", 1000, "580.1")
    assert facts["clocks"] == {"graphics": 1000, "sm": 1001, "memory": None}
    assert machine.memory_reader("cuda")() == 700


def test_a_gpu_that_shares_memory_is_read_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_library", lambda name: driver(1))
    assert machine.memory_reader("cuda") is machine.system_used


def test_what_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> Any:
        return None if name == machine.NVML else driver(0)

    monkeypatch.setattr(machine, "_library", lacking)
    facts = machine.gpu_facts()
    assert (facts["name"], facts["driver"], facts["clocks"]) == ("Test GPU", None, None)
    monkeypatch.setattr(machine, "_library", lambda name: None)
    facts = machine.gpu_facts()
    assert {facts[key] for key in ("name", "memory", "driver", "clocks")} == {None}
    assert machine.memory_reader("cuda")() is None
    assert machine._library("libnothing.so.99") is None


def test_the_process_is_watched() -> None:
    with machine.Peak(lambda: 5) as peak:
        pass
    assert peak.most == 5
    with machine.Peak(lambda: None) as peak:
        pass
    assert peak.most is None
    read = machine.memory_reader("cpu")
    assert (read() or 0) > 10e6
    assert (machine.resident_peak() or 0) >= 10e6
    assert machine.machine_facts("cpu")["gpu"] is None
