"""Containers of coded samples (`.npc`): the compiled format behind Python's errors.

The layout is described in docs/pc.md and implemented once, in csrc/pc/container.h.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from nnkernels import _host
from nnkernels.pc.errors import (
    ChecksumError,
    CorruptError,
    FormatError,
    LimitError,
    PCError,
    TruncatedError,
)

_KINDS = {
    "format": FormatError,
    "truncated": TruncatedError,
    "checksum": ChecksumError,
    "limit": LimitError,
    "corrupt": CorruptError,
}


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of the compiled format as those of this package, with the name of the data."""
    try:
        yield
    except _host.ContainerError as error:
        raise _KINDS.get(error.kind, PCError)(f"{name}: {error}") from None


class Writer:
    """Appends blocks to an open file; `finish` writes the trailer that finds them again."""

    def __init__(self, file: BinaryIO, header: _host.ContainerHeader):
        self._file, self._header = file, header
        self._offsets: list[int] = []
        self.size = file.write(header.pack())

    def block(self, samples: np.ndarray, words: Tensor, counts: Tensor) -> None:
        """The next block: samples [n, D] in the header's dtype, and their lanes."""
        data = _host.container_block(
            self._header, len(self._offsets), words.numpy(), counts.numpy(), samples
        )
        self._offsets.append(self.size)
        self.size += self._file.write(data)

    def finish(self) -> None:
        self.size += self._file.write(_host.container_trailer(self._offsets))


class Reader:
    """The header and the blocks of a container in a buffer, which may be a mapped file.

    name: what errors call the data. limit: most values N * D. repair: finds the blocks by walking
    through them where the trailer is damaged.

    Raises FormatError, TruncatedError, ChecksumError, LimitError.
    """

    def __init__(self, name: str, data, limit: int, *, repair: bool = False):
        self.name, self._data = name, data
        with _named(name):
            self.header = _host.ContainerHeader.parse(data, limit)
            try:
                self._offsets = _host.container_offsets(self.header, data)
            except _host.ContainerError:
                if not repair:
                    raise
                self._offsets = _host.container_scan(self.header, data)

    def end_of(self, index: int) -> int:
        """The byte after block `index`."""
        return int(self._offsets[min(index + 1, len(self._offsets) - 1)])

    def block(self, index: int) -> tuple[Tensor, Tensor, int]:
        """words int32 [l, W], counts int32 [l] and the checksum of the samples they code."""
        if index + 1 >= len(self._offsets):
            raise TruncatedError(f"{self.name}: block {index} was not found")
        start, end = (int(offset) for offset in self._offsets[index : index + 2])
        with _named(self.name):
            words, counts, crc, _ = _host.container_read_block(
                self.header, self._data, index, start, end
            )
        return torch.from_numpy(words), torch.from_numpy(counts), crc

    def check(self, index: int, samples: np.ndarray, crc: int) -> None:
        """CorruptError unless the samples [n, D] are those that were coded."""
        with _named(self.name):
            _host.container_check_data(self.header, index, samples, crc)


@contextlib.contextmanager
def mapped(path: str | os.PathLike) -> Iterator[mmap.mmap | bytes]:
    """A file's bytes, read as they are needed."""
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):
            # Nothing to map: an empty file, or no file but a stream.
            yield file.read()
            return
        with data:
            yield data
