"""The few functions of the CUDA runtime that a runner needs (Python 3.8, standard library)."""

from __future__ import annotations

import ctypes
import glob
from typing import Any, NamedTuple

_NAMES = ("libcudart.so", *(f"libcudart.so.{v}" for v in ("14", "13", "12", "11.0", "10.2")))
_PLACES = ("/usr/local/cuda/lib64/libcudart.so*", "/usr/local/cuda-*/lib64/libcudart.so*")
_TO_DEVICE, _TO_HOST = 1, 2
_MAJOR, _MINOR = 75, 76  # cudaDeviceGetAttribute's words for the compute capability
_PROPERTIES_BYTES = 1 << 14  # more than any version's struct has; it begins with the name


class CudaError(RuntimeError):
    """A function of CUDA's failed."""


class Gpu(NamedTuple):
    """The first GPU."""

    name: str
    capability: str


class Cuda:
    """The loaded library.

    Raises:
        CudaError: it is nowhere.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def gpu(self) -> Gpu:
        """Raises `CudaError` where there is none."""
        count = ctypes.c_int()
        self._do("cudaGetDeviceCount", ctypes.byref(count))
        if count.value < 1:
            raise CudaError("CUDA finds no GPU")
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._do("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            numbers.append(value.value)
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        word = "cudaGetDeviceProperties"
        self._do(word if hasattr(self._library, word) else f"{word}_v2", properties, 0)
        return Gpu(properties.value.decode(errors="replace"), "{}.{}".format(*numbers))

    def allocate(self, size: int) -> int:
        """The address of so many bytes on the GPU."""
        pointer = ctypes.c_void_p()
        self._do("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
        return int(pointer.value or 0)

    def free(self, address: int) -> None:
        """Give back what was allocated."""
        self._do("cudaFree", ctypes.c_void_p(address))

    def stream(self) -> int:
        """A new stream."""
        pointer = ctypes.c_void_p()
        self._do("cudaStreamCreate", ctypes.byref(pointer))
        return int(pointer.value or 0)

    def synchronise(self, stream: int) -> None:
        """Wait until all that was put into a stream is done."""
        self._do("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def destroy(self, stream: int) -> None:
        """End a stream."""
        self._do("cudaStreamDestroy", ctypes.c_void_p(stream))

    def to_device(self, address: int, array: Any, stream: int) -> None:
        """Copy an array to the GPU; it has to live until the stream is synchronised."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def to_host(self, array: Any, address: int, stream: int) -> None:
        """Copy into an array."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST, stream)

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self._do(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            kind,
            ctypes.c_void_p(stream),
        )

    def _do(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            words = self._library.cudaGetErrorString(status) or b"?"
            raise CudaError(f"{name} failed: {words.decode(errors='replace')} ({status})")


def _load() -> ctypes.CDLL:
    found = [path for place in _PLACES for path in sorted(glob.glob(place))]  # noqa: PTH207 -- a pattern over the root
    for name in (*_NAMES, *found):
        try:
            return ctypes.CDLL(name)
        except OSError:  # the next place
            continue
    raise CudaError("the CUDA runtime, libcudart.so, is not on this board")
