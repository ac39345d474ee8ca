"""What the CUDA driver says of the GPU, asked without any package."""

import ctypes
import os

DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
MAJOR, MINOR = 75, 76


def capability(device: int = 0) -> str | None:
    """A GPU's compute capability, for instance "8.7"; None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(handle), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, handle)
    ):
        return None
    return f"{major.value}.{minor.value}"
