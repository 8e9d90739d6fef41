"""Files of samples, read and written in parts: NumPy's .npy and the idx format of MNIST.

`open_samples` tells the two apart by their first bytes; idx files may be gzipped. Only uint8 and
int16 hold symbols; nothing is ever unpickled.
"""

import contextlib
import gzip
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from nnkernels.pc.errors import (
    ArgumentError,
    FormatError,
    ShapeError,
    SymbolRangeError,
    TruncatedError,
)

DTYPES = (np.dtype(np.uint8), np.dtype(np.int16))
_NPY = b"\x93NUMPY"
_GZIP = b"\x1f\x8b"
# Type codes of the idx format; its numbers are big-endian.
_IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class Samples:
    """N samples of one shape in an open file, read forwards.

    count: N. shape: that of one sample. dtype: uint8 or int16, as `read` returns it.
    """

    def __init__(self, name: str, file: BinaryIO, dtype: np.dtype, dims: tuple[int, ...]):
        if not dims:
            raise ShapeError(f"{name}: holds a single value; expected samples along dimension 0")
        self.name = name
        self.count, self.shape = dims[0], dims[1:]
        self._file, self._stored = file, dtype
        self._position = 0
        self.dtype = dtype.newbyteorder("=")
        if self.dtype.kind not in "iu":
            raise SymbolRangeError(
                f"{name}: sample 0, variable 0: {self.dtype} is no integer; symbols are uint8 or "
                "int16, convert with array.astype(numpy.uint8)"
            )
        if self.dtype not in DTYPES:
            raise ShapeError(
                f"{name}: has dtype {self.dtype}, expected uint8 or int16; convert with "
                "array.astype(numpy.uint8)"
            )

    def read(self, count: int) -> np.ndarray:
        """The next `count` samples [count, *shape]; TruncatedError where the file ends first."""
        values = count * math.prod(self.shape)
        size = values * self._stored.itemsize
        try:
            data = self._file.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TruncatedError(
                f"{self.name}: the gzip stream is damaged after sample {self._position}: {error}"
            ) from None
        if len(data) < size:
            raise TruncatedError(
                f"{self.name}: ends inside samples {self._position} to {self._position + count - 1}"
                f" of the {self.count} that its header promises"
            )
        self._position += count
        array = np.frombuffer(data, self._stored, values).astype(self.dtype)
        return array.reshape(count, *self.shape)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Samples":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Mapped(Samples):
    """An array that is not stored sample after sample."""

    def __init__(self, name: str, array: np.memmap):
        super().__init__(name, contextlib.closing(array), array.dtype, array.shape)
        self._array = array

    def read(self, count: int) -> np.ndarray:
        part = self._array[self._position : self._position + count]
        self._position += count
        return np.ascontiguousarray(part, dtype=self.dtype)

    def close(self) -> None:
        del self._array


def open_samples(path: str | os.PathLike) -> Samples:
    """Opens a .npy, idx or idx.gz file of samples along its first dimension.

    Raises FormatError (neither of the two), TruncatedError (shorter than its header says),
    ShapeError (a scalar, or integers that are not uint8 or int16), SymbolRangeError (no integers).
    """
    name = str(path)
    # Kept open in what is returned.
    file = open(path, "rb")  # noqa: SIM115
    try:
        start = file.read(len(_NPY))
        file.seek(0)
        if start == _NPY:
            return _open_npy(name, file)
        if start[:2] == _GZIP:
            return _open_idx(name, gzip.GzipFile(fileobj=file), None)
        if start[:2] == b"\0\0":
            return _open_idx(name, file, os.fstat(file.fileno()).st_size)
    except BaseException:
        file.close()
        raise
    file.close()
    raise FormatError(
        f"{name}: starts with {start!r}; expected a .npy file, or an idx file, gzipped or not"
    )


def _open_npy(name: str, file: BinaryIO) -> Samples:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            dims, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            dims, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise FormatError(f"{name}: .npy version {version}, supported are (1, 0) and (2, 0)")
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"{name}: its .npy header cannot be read: {error}") from None
    if dtype.hasobject or dtype.names:
        raise FormatError(f"{name}: holds {dtype}, which is not read; expected uint8 or int16")
    _check_size(name, file.tell(), math.prod(dims) * dtype.itemsize, os.fstat(file.fileno()))
    if fortran and len(dims) > 1:
        file.close()
        return _Mapped(name, np.load(name, mmap_mode="r", allow_pickle=False))
    return Samples(name, file, dtype, dims)


def _check_size(name: str, header: int, promised: int, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode) and found.st_size < header + promised:
        raise TruncatedError(
            f"{name}: ends at byte {found.st_size}; its header promises {promised} bytes of data "
            f"after byte {header}"
        )


def _open_idx(name: str, file: BinaryIO, size: int | None) -> Samples:
    def take(count: int) -> bytes:
        try:
            data = file.read(count)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FormatError(f"{name}: is no gzipped idx file: {error}") from None
        if len(data) < count:
            raise TruncatedError(f"{name}: ends inside its idx header")
        return data

    zero, code, ndim = struct.unpack(">HBB", take(4))
    if zero or code not in _IDX:
        raise FormatError(
            f"{name}: idx magic {zero:04x}{code:02x}; expected 0000 and a type of "
            f"{', '.join(f'{known:02x}' for known in _IDX)}"
        )
    dims = struct.unpack(f">{ndim}I", take(4 * ndim))
    dtype = np.dtype(_IDX[code])
    promised = math.prod(dims) * dtype.itemsize
    if size is not None and size < 4 + 4 * ndim + promised:
        raise TruncatedError(
            f"{name}: ends at byte {size}; its header promises {promised} bytes of data after "
            f"byte {4 + 4 * ndim}"
        )
    return Samples(name, file, dtype, dims)


def read_samples(path: str | os.PathLike) -> np.ndarray:
    """All samples of a file, [N, *shape] of uint8 or int16."""
    with open_samples(path) as samples:
        return samples.read(samples.count)


_HEADER = 256


class NpyWriter:
    """Writes samples to an open file as .npy; their number is known when it is finished."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype):
        self._file, self._shape, self._dtype = file, shape, dtype.newbyteorder("<")
        self.count = 0
        self._start = file.tell()
        file.write(bytes(_HEADER))

    def write(self, samples: np.ndarray) -> None:
        """Appends samples [n, *shape]."""
        self._file.write(np.ascontiguousarray(samples, self._dtype).data)
        self.count += len(samples)

    def finish(self) -> None:
        text = repr(
            {
                "descr": self._dtype.str,
                "fortran_order": False,
                "shape": (self.count, *self._shape),
            }
        )
        room = _HEADER - len(_NPY) - 4
        header = _NPY + struct.pack("<BBH", 1, 0, room) + text.encode().ljust(room - 1) + b"\n"
        self._file.seek(self._start)
        self._file.write(header)
        self._file.seek(0, os.SEEK_END)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """An open file that becomes `path` when the block ends, and vanishes when it raises."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{path}: is not a regular file; name one to write")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w+b") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
