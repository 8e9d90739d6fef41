"""The model file: frozen tables, checked on the way in and never unpickled.

Little-endian throughout.

    header    "NNPM", u16 version = 1, u8 arith = 1, u8 zero, u32 nodes, u32 variables, u32 K,
              u8[16] model_id, u32 CRC32C of the bytes before
    sections  u8[4] name, u64 bytes, payload, u32 CRC32C of name, length and payload; in this order:
              NODE  node table in coding order: i32 parent (a row before this one, -1: none),
                    u32 variable, u32 h_in, u32 h_out
              SUMS  float32 [h_in, h_out] of every node in turn; of the root pi, its h_in is 1
              LEAF  float32 [h_out, K] of every node in turn
              CUMU  float32 [h_out, K + 1] of every node in turn: the running sums that are coded

`model_id` is the start of the SHA-256 of variables, K and the payloads, so two files with one id
code alike.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from nnkernels._host import crc32c
from nnkernels.pc.errors import ChecksumError, FormatError, ModelError, TruncatedError

MAGIC = b"NNPM"
VERSION = 1
ARITH = 1
_HEADER = struct.Struct("<4sHBBIII16s")
_SECTION = struct.Struct("<4sQ")
_CRC = struct.Struct("<I")
_NODE = np.dtype(
    [("parent", "<i4"), ("variable", "<u4"), ("h_in", "<u4"), ("h_out", "<u4")], align=False
)
_NAMES = (b"NODE", b"SUMS", b"LEAF", b"CUMU")


class Tables(NamedTuple):
    """Frozen tables as NumPy arrays: pi [h], A [D, h, h], B [D, h, K], C [D, h, K + 1] of float32,
    parent and order [D] of int64."""

    pi: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    parent: np.ndarray
    order: np.ndarray


def _payloads(tables: Tables) -> Iterator[tuple[bytes, np.ndarray]]:
    """Every section's name and bytes."""
    D, h, _ = tables.B.shape
    order = tables.order
    row = np.empty(D, dtype=np.int64)
    row[order] = np.arange(D)
    nodes = np.empty(D, dtype=_NODE)
    nodes["parent"] = [row[tables.parent[i]] if tables.parent[i] >= 0 else -1 for i in order]
    nodes["variable"] = order
    nodes["h_in"] = np.where(nodes["parent"] < 0, 1, h)
    nodes["h_out"] = h
    yield b"NODE", nodes
    # The root comes first in coding order; its matrix in A is not used.
    yield b"SUMS", np.concatenate([tables.pi, tables.A[order[1:]].ravel()]).astype("<f4")
    yield b"LEAF", tables.B[order].astype("<f4")
    yield b"CUMU", tables.C[order].astype("<f4")


def model_id(tables: Tables) -> bytes:
    """The 16 bytes that name the frozen tables."""
    D, _, K = tables.B.shape
    digest = hashlib.sha256(struct.pack("<II", D, K))
    for _, payload in _payloads(tables):
        digest.update(payload.data)
    return digest.digest()[:16]


def write(file: BinaryIO, tables: Tables, identity: bytes) -> None:
    """Writes header and sections to an open file."""
    D, _, K = tables.B.shape
    header = _HEADER.pack(MAGIC, VERSION, ARITH, 0, D, D, K, identity)
    file.write(header + _CRC.pack(crc32c(header)))
    for name, payload in _payloads(tables):
        head = _SECTION.pack(name, payload.nbytes)
        file.write(head)
        file.write(payload.data)
        file.write(_CRC.pack(crc32c(payload, crc32c(head))))


class _Reader:
    """Takes bytes off a file that says where it ended and what was damaged."""

    def __init__(self, name: str, file: BinaryIO):
        self.name, self._file = name, file
        self.offset = 0
        self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        data = self._file.read(count)
        self.offset += count
        return data

    def need(self, count: int, what: str) -> None:
        if self.offset + count > self.size:
            raise TruncatedError(
                f"{self.name}: ends at byte {self.size}, inside {what}, which starts at byte "
                f"{self.offset} and takes {count}"
            )

    def check(self, crc: int, what: str) -> None:
        start = self.offset
        (stored,) = _CRC.unpack(self.take(4, f"the checksum of {what}"))
        if stored != crc:
            raise ChecksumError(
                f"{self.name}: the checksum of {what} at byte {start} is {stored:08x}, its bytes "
                f"have {crc:08x}; the file was damaged"
            )

    def section(self, name: bytes, size: int) -> np.ndarray:
        """The payload as bytes [size]."""
        what = f"section {name.decode()}"
        start = self.offset
        head = self.take(_SECTION.size, what)
        found, promised = _SECTION.unpack(head)
        if (found, promised) != (name, size):
            raise FormatError(
                f"{self.name}: section {found!r} of {promised} bytes at byte {start}, expected "
                f"{name!r} of {size}"
            )
        self.need(size, what)
        payload = np.empty(size, dtype=np.uint8)
        self._file.readinto(payload.data)
        self.offset += size
        self.check(crc32c(payload, crc32c(head)), what)
        return payload


def read(name: str, file: BinaryIO) -> tuple[Tables, bytes]:
    """Tables and model_id of an open file; `name` stands in the texts of errors.

    Raises FormatError, TruncatedError, ChecksumError (with the byte) or ModelError. Sizes are held
    against the file before memory is taken.
    """
    reader = _Reader(name, file)
    header = reader.take(_HEADER.size, "the header")
    magic, version, arith, _, nodes, variables, K, identity = _HEADER.unpack(header)
    if magic != MAGIC:
        raise FormatError(f"{name}: starts with {magic!r}, expected {MAGIC!r} of a model file")
    for what, found, known in (("version", version, VERSION), ("arith", arith, ARITH)):
        if found != known:
            raise FormatError(f"{name}: has {what} {found}, supported is {known}")
    reader.check(crc32c(header), "the header")
    if nodes != variables or nodes == 0 or K == 0:
        raise FormatError(
            f"{name}: {nodes} nodes, {variables} variables, K={K}; version {VERSION} has one node "
            "per variable, and at least one value"
        )
    table = reader.section(b"NODE", nodes * _NODE.itemsize).view(_NODE)
    parent, order, h = _tree(name, table)
    floats = {}
    sizes = {b"SUMS": h + (nodes - 1) * h * h, b"LEAF": nodes * h * K}
    for section, count in (sizes | {b"CUMU": nodes * h * (K + 1)}).items():
        floats[section] = reader.section(section, 4 * count).view("<f4").astype(np.float32)
    if reader.offset != reader.size:
        raise FormatError(
            f"{name}: {reader.size - reader.offset} bytes follow the last section at byte "
            f"{reader.offset}"
        )
    A = np.zeros((nodes, h, h), dtype=np.float32)
    B = np.empty((nodes, h, K), dtype=np.float32)
    C = np.empty((nodes, h, K + 1), dtype=np.float32)
    A[order[1:]] = floats[b"SUMS"][h:].reshape(-1, h, h)
    B[order] = floats[b"LEAF"].reshape(B.shape)
    C[order] = floats[b"CUMU"].reshape(C.shape)
    tables = Tables(floats[b"SUMS"][:h], A, B, C, parent, order)
    if model_id(tables) != identity:
        raise ChecksumError(
            f"{name}: its model_id is {identity.hex()}, its tables have {model_id(tables).hex()}"
        )
    return tables, identity


def _tree(name: str, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """parent, order and h of a node table."""
    D, h = len(table), int(table["h_out"][0])
    above, order = table["parent"].astype(np.int64), table["variable"].astype(np.int64)
    widths = np.where(above < 0, 1, h)
    if h == 0 or (table["h_out"] != h).any() or (table["h_in"] != widths).any():
        raise FormatError(f"{name}: its nodes differ in h, which version {VERSION} has not")
    if not np.array_equal(np.sort(order), np.arange(D)):
        raise ModelError(f"{name}: its nodes do not hold every variable once")
    if above[0] != -1 or (above[1:] < 0).any() or (above >= np.arange(D)).any():
        raise ModelError(f"{name}: its nodes are not in coding order")
    parent = np.empty(D, dtype=np.int64)
    parent[order] = np.where(above < 0, -1, order[above])
    return parent, order, h
