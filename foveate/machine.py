"""What this machine is and how much memory is in use; what cannot be read is None, never an error."""

import contextlib
import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foveate._version import __version__
from foveate.ticking import ticking

DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
NVML = "nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1"
CLOCKS = {"graphics": 0, "sm": 1, "memory": 2}
MAJOR, MINOR = 75, 76
INTEGRATED = 18
LABEL = 96
TICK = 0.002
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "tokenizers")
TEGRA, BOARD = Path("/etc/nv_tegra_release"), Path("/proc/device-tree/model")
PROCESSOR, MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")
STATUS, GROUPS = Path("/proc/self/status"), Path("/proc/self/cgroup")
GROUP_ROOT = Path("/sys/fs/cgroup")
QUERY = "name,memory.total,driver_version,compute_cap"
TIMEOUT = 10


def machine_facts(device: str) -> dict[str, Any]:
    """System, processor, packages, and the GPU where `device` is "cuda"."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "board": find_jetson(),
        "processor": processor(),
        "cores": count_cores(),
        "gpu": gpu_facts() if device == "cuda" else None,
        "versions": {
            "foveate": __version__,
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := installed(name))},
        },
    }


def installed(name: str) -> str | None:
    """A package's version; None where it is not installed."""
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def find_gpus() -> list[dict[str, str]]:
    """The GPUs that nvidia-smi lists; none where there is no nvidia-smi."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        done = subprocess.run(
            [command, f"--query-gpu={QUERY}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=TIMEOUT, check=True,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    keys = ("name", "memory", "driver", "compute_capability")
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def find_jetson() -> str | None:
    """The Jetson's board and L4T release; None on another machine."""
    release = re.search(r"# R(\d+).*?REVISION: ([\d.]+)", _read_text(TEGRA))
    board = _read_text(BOARD).strip("\0 \n")
    if release is None and "jetson" not in board.lower():
        return None
    return (board or "Jetson") + (f", L4T {release[1]}.{release[2]}" if release else "")


def count_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_memory() -> int | None:
    """Bytes of memory; None where the system does not say."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def processor() -> str | None:
    """The processor's name."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read_text(PROCESSOR), re.MULTILINE)
    return (found[1].strip() if found else platform.processor()) or None


def gpu_facts() -> dict[str, Any]:
    """Name, compute capability and memory from the CUDA driver; driver and clocks (MHz) from NVML."""
    name, bus = ctypes.create_string_buffer(LABEL), ctypes.create_string_buffer(LABEL)
    total = ctypes.c_size_t()
    driver, handle = _open_gpu()
    known = (
        driver is not None
        and not driver.cuDeviceGetName(name, LABEL, handle)
        and not driver.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
        and not driver.cuDeviceGetPCIBusId(bus, LABEL, handle)
    )
    return {
        "name": name.value.decode(errors="replace") if known else None,
        "compute_capability": capability(),
        "memory": total.value if known else None,
        **_nvml_facts(bus.value if known else b""),
    }


def _nvml_facts(bus: bytes) -> dict[str, Any]:
    """Driver version and clocks of the GPU with this PCI bus id."""
    nothing: dict[str, Any] = {"driver": None, "clocks": None}
    nvml = _library(NVML)
    if nvml is None or nvml.nvmlInit_v2():
        return nothing
    try:
        text, handle, value = ctypes.create_string_buffer(LABEL), ctypes.c_void_p(), ctypes.c_uint()
        version = None if nvml.nvmlSystemGetDriverVersion(text, LABEL) else text.value.decode()
        if nvml.nvmlDeviceGetHandleByPciBusId_v2(bus, ctypes.byref(handle)):
            return {"driver": version, "clocks": None}
        clocks = {}
        for name, kind in CLOCKS.items():
            failed = nvml.nvmlDeviceGetClockInfo(handle, kind, ctypes.byref(value))
            clocks[name] = None if failed else value.value
        return {"driver": version, "clocks": clocks}
    except AttributeError:
        return nothing
    finally:
        nvml.nvmlShutdown()


def memory_reader(device: str) -> Callable[[], int | None]:
    """A function that reads the bytes in use: of the GPU as a whole, or of this process.

    A GPU without memory of its own shares the system's, of which its driver counts as used what the
    system could free at once; the system's own count is read then.
    """
    if device != "cuda":
        return resident
    driver, handle = _open_gpu()
    if driver is None:
        return lambda: None
    if _attribute(driver, INTEGRATED, handle):
        return system_used
    context = ctypes.c_void_p()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
        return lambda: None

    def used() -> int | None:
        """The whole GPU's; the driver needs the context to be current on the calling thread."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        failed = driver.cuCtxSetCurrent(context)
        failed = failed or driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return None if failed else total.value - free.value

    return used


def resident() -> int | None:
    """The memory that this process holds now."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def resident_peak() -> int | None:
    """The most memory that this process ever held."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def available_memory() -> int | None:
    """Bytes that this process may still take: the least of the system's, its container's and its own limits."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read_text(MEMORY), re.MULTILINE))
    rooms = [int(found["MemAvailable"]) * 1024] if "MemAvailable" in found else []
    rooms += [*_container_rooms(), *_own_rooms()]
    return max(0, min(rooms)) if rooms else None


def _container_rooms() -> Iterator[int]:
    """What each control group of this process has left; cached files count as free."""
    for line in _read_text(GROUPS).splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            root, limit, used = GROUP_ROOT, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = GROUP_ROOT / "memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Within a container the path may be the host's, and the root its own.
        folders = [root, *(root.joinpath(*part) for part in _beginnings(path))]
        for folder in folders:
            numbers = [_read_text(folder / name).strip() for name in (limit, used)]
            if all(one.isdigit() for one in numbers):
                cached = re.search(
                    r"^(?:total_)?inactive_file (\d+)$",
                    _read_text(folder / "memory.stat"),
                    re.MULTILINE,
                )
                yield int(numbers[0]) - int(numbers[1]) + (int(cached[1]) if cached else 0)


def _beginnings(path: str) -> Iterator[tuple[str, ...]]:
    """The folders on the way down a path."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(1, len(parts) + 1):
        yield tuple(parts[:count])


def _own_rooms() -> Iterator[int]:
    """What the process's limits on its address space and its data (ulimit -v, -d) leave."""
    try:
        import resource
    except ImportError:
        return
    used = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read_text(STATUS), re.MULTILINE))
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and name in used:
            yield most - int(used[name]) * 1024


def system_used() -> int | None:
    """The system's memory that is neither free nor could be freed at once."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read_text(MEMORY), re.MULTILINE))
    with contextlib.suppress(KeyError):
        return (int(found["MemTotal"]) - int(found["MemAvailable"])) * 1024
    return None


class Peak:
    """Watches how much memory is in use, from a thread of its own.

    Attributes:
        most: The largest number of bytes seen; None where the reader could not tell.
    """

    def __init__(self, read: Callable[[], int | None]) -> None:
        """Watch what `read` returns."""
        self.most: int | None = None
        self._read = read
        self._ticking = ticking(TICK, self._watch)

    def __enter__(self) -> "Peak":
        """Begin to watch."""
        self._ticking.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop watching."""
        self._ticking.__exit__(None, None, None)

    def _watch(self) -> None:
        """Read once."""
        seen = self._read()
        if seen is not None:
            self.most = max(seen, self.most or 0)


def _library(name: str) -> Any:
    """A shared library, or None where it is not installed."""
    with contextlib.suppress(OSError):
        return ctypes.CDLL(name)
    return None


def capability(device: int = 0) -> str | None:
    """A GPU's compute capability, for instance "8.7"; None where there is no driver or no GPU."""
    driver, handle = _open_gpu(device)
    numbers = [_attribute(driver, which, handle) for which in (MAJOR, MINOR)] if driver else [None]
    return None if None in numbers else ".".join(map(str, numbers))


def _open_gpu(device: int = 0) -> tuple[Any, ctypes.c_int]:
    """The CUDA driver and its handle of a GPU; no driver where either is not there."""
    driver, handle = _library(DRIVER), ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device):
        return None, handle
    return driver, handle


def _attribute(driver: Any, which: int, handle: ctypes.c_int) -> int | None:
    """A number that the CUDA driver has about a GPU; None where it does not say."""
    value = ctypes.c_int()
    failed = driver.cuDeviceGetAttribute(ctypes.byref(value), which, handle)
    return None if failed else value.value


def _read_text(path: Path) -> str:
    """A small file's text; nothing where it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
