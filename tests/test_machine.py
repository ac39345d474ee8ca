"""What a machine says of itself: as it is, and through drivers that are not there."""

import subprocess
import sys
from pathlib import Path
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


def test_jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release, board = tmp_path / "nv_tegra_release", tmp_path / "model"
    monkeypatch.setattr(machine, "TEGRA", release)
    monkeypatch.setattr(machine, "BOARD", board)
    assert machine.find_jetson() is None
    board.write_bytes(b"Raspberry Pi 5\0")
    assert machine.find_jetson() is None
    board.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert machine.find_jetson() == "NVIDIA Jetson AGX Orin Developer Kit"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n")
    assert machine.find_jetson() == "NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            "NVIDIA H100 80GB HBM3, 81559 MiB, 580.95, 9.0\n",
            [{"name": "NVIDIA H100 80GB HBM3", "memory": "81559 MiB", "driver": "580.95",
              "compute_capability": "9.0"}],
        ),
        ("", []),
        ("No devices were found\n", []),
    ],
)  # fmt: skip
def test_gpus(monkeypatch: pytest.MonkeyPatch, answer: str, expected: list[Any]) -> None:
    done = subprocess.CompletedProcess([], 0, answer, "")
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    assert machine.find_gpus() == expected


@pytest.mark.parametrize("error", [OSError("x"), subprocess.TimeoutExpired("x", 1)])
def test_nvidia_smi_that_hangs_or_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", fail)
    assert machine.find_gpus() == []


def group(folder: Path, limit: str, used: int, cached: int, names: tuple[str, str]) -> None:
    """A control group's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


V1, V2 = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("memory.max", "memory.current"),
)


@pytest.mark.parametrize(
    ("lines", "folder", "names"),
    [
        ("0::/a/b", "a", V2),
        ("0::/a/b", "a/b", V2),
        ("0::/elsewhere", "", V2),
        ("4:cpu:/\n3:memory:/a", "memory/a", V1),
    ],
)
def test_a_containers_limit_is_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, folder: str, names: tuple[str, str]
) -> None:
    group(tmp_path / folder, "5000", 3000, 500, names)
    group(tmp_path / "a/c", "10", 10, 0, names)
    if folder:
        group(tmp_path, "max", 1, 0, V2)
    (tmp_path / "groups").write_text(lines)
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "GROUP_ROOT", tmp_path)
    assert machine.available_memory() == 2500


def test_a_limit_on_the_address_space_counts() -> None:
    code = (
        "import resource\n"
        "from foveate.machine import available_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "print(available_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**29 < int(done.stdout) < 2**30
