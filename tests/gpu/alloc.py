"""Hold memory of the first visible GPU through the CUDA driver API: `alloc.py BYTES`. Needs no framework.

Prints `allocated` once it is there, and holds it until its stdin ends. With `--seconds N` it holds it that long.
"""

from __future__ import annotations

import ctypes
import sys
import time


def check(code: int, call: str) -> None:
    if code:
        sys.exit(f"{call} returned {code}")


def allocate(size: int) -> None:
    """Signatures are those of cuda.h: CUdevice is an int, CUcontext a pointer, CUdeviceptr 64 bits."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    check(cuda.cuInit(0), "cuInit")
    check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    check(cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(size)), "cuMemAlloc")
    check(cuda.cuMemsetD8_v2(memory, ctypes.c_ubyte(1), ctypes.c_size_t(size)), "cuMemsetD8")
    check(cuda.cuCtxSynchronize(), "cuCtxSynchronize")


def main() -> None:
    allocate(int(sys.argv[1]))
    print("allocated", flush=True)
    if sys.argv[2:3] == ["--seconds"]:
        time.sleep(float(sys.argv[3]))
    else:
        sys.stdin.read()


if __name__ == "__main__":
    main()
