"""Whether this machine has a GPU that runs code for an architecture: asked of NVIDIA's driver, nothing else needed."""

from __future__ import annotations

import ctypes
import functools

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*"""


def why_not(arch: str) -> str | None:
    """Why code for `arch` (`sm_90`) does not run on the first GPU here; None when it does.

    Newer GPUs run it by translating its PTX.
    """
    found = first_gpu()
    if isinstance(found, str):
        return f"{found}; copy the artifact to a machine that has one"
    number = found[0] * 10 + found[1]
    wanted = int(arch.removeprefix("sm_"))
    return None if number >= wanted else f"the GPU of this machine is sm_{number}, older than {arch}"


@functools.cache
def first_gpu() -> tuple[int, int] | str:
    """The compute capability of the first GPU, or why there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver (libcuda.so.1)"
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "this machine has an NVIDIA driver, but no GPU that it can use"
    parts = (ctypes.c_int(), ctypes.c_int())
    driver.cuDeviceGet(ctypes.byref(device), 0)
    for part, attribute in zip(parts, (_MAJOR, _MINOR), strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
    return parts[0].value, parts[1].value
