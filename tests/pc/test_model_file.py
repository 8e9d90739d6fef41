"""The frozen model and its file: checks, identity, every damaged byte."""

import struct

import pc_models
import pytest
import torch
from nnkernels._host import crc32c

from nnkernels.pc import (
    ArgumentError,
    ChecksumError,
    FormatError,
    ModelError,
    PCError,
    PCModel,
    ShapeError,
    StructureError,
    TruncatedError,
)


def model(D=5, h=3, K=7, seed=1):
    return PCModel(*pc_models.tables(D, h, K, seed=seed))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 4, 3), (5, 1, 2), (9, 3, 300), (17, 8, 256)], ids=str
)
def test_a_saved_model_is_the_same(tmp_path, shape):
    ours = model(*shape)
    ours.save(tmp_path / "m.nnpm")
    again = PCModel.load(tmp_path / "m.nnpm")
    for one, other in zip(ours.tables, again.tables, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert again.model_id == ours.model_id == PCModel(*ours.tables).model_id
    assert (again.D, again.h, again.K) == shape
    again.save(tmp_path / "again.nnpm")
    assert (tmp_path / "again.nnpm").read_bytes() == (tmp_path / "m.nnpm").read_bytes()
    assert f"D={shape[0]}, h={shape[1]}, K={shape[2]}" in repr(again)


def test_the_identity_is_that_of_what_codes():
    ours = model()
    pi, A, B, C, parent, order = ours.tables
    root = int(order[0])
    # Never read.
    A = A.clone()
    A[root] = A[root].roll(1, -1)
    assert PCModel(pi, A, B, C, parent, order).model_id == ours.model_id
    other = B.clone()
    other[0, 0] = other[0, 0].roll(1)
    assert PCModel(pi, A, other, C, parent, order).model_id != ours.model_id
    assert len(ours.model_id) == 32


def test_tables_are_not_the_callers(tmp_path):
    tables = pc_models.tables(3, 2, 4)
    before = tables[1].clone()
    PCModel(*tables)
    assert torch.equal(tables[1], before)


# ---- tables that are no frozen model ----


def changed(index, value):
    def change(tables):
        tables[index] = tables[index].clone()
        tables[index][(0,) * tables[index].dim()] = value

    return change


def replaced(index, function):
    def change(tables):
        tables[index] = function(tables[index])

    return change


CHAIN = [-1, 0, 1, 2, 3]
BAD = {
    "NaN": (changed(2, torch.nan), ModelError, "not finite"),
    "negative": (changed(2, -0.5), ModelError, "-0.5"),
    "sum": (changed(0, 0.9), ModelError, "sums to"),
    "sum of A": (lambda t: t[1].__setitem__((2, 0), 0.9), ModelError, "A, variable=2, state=0"),
    "zero": (lambda t: t[2][1, 2].copy_(torch.eye(7)[0]), ModelError, "freeze"),
    "C start": (lambda t: t[3][2, 0, 0].fill_(0.1), ModelError, "running sums"),
    "C end": (lambda t: t[3][2, 0, -1].fill_(0.9), ModelError, "running sums"),
    "C falls": (lambda t: t[3][2, 1, 3].fill_(1.0), ModelError, "running sums"),
    "C NaN": (lambda t: t[3][2, 1, 3].fill_(torch.nan), ModelError, "running sums"),
    "shape": (replaced(1, lambda A: A[:, :2]), ShapeError, "A is"),
    "K": (replaced(3, lambda C: C[..., 1:]), ShapeError, "C is"),
    "D": (replaced(4, lambda p: p[:-1]), ShapeError, "parent is"),
    "h=0": (replaced(0, lambda pi: pi[:0]), ArgumentError, "h is 0"),
    "two roots": (changed(4, -1), StructureError, "node"),
    "order": (replaced(5, lambda o: o.flip(0)), StructureError, "node"),
    "twice": (replaced(5, lambda o: o[[0, 1, 2, 3, 3]]), StructureError, "twice"),
    "float64": (replaced(0, torch.Tensor.double), TypeError, "float64"),
    "int32": (replaced(4, torch.Tensor.int), TypeError, "int32"),
    "a list": (replaced(0, torch.Tensor.tolist), TypeError, "must be a tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused(case):
    change, error, message = BAD[case]
    tables = pc_models.tables(5, 3, 7, parent=[1, -1, 1, 2, 2])
    change(tables)
    with pytest.raises(error, match=message):
        PCModel(*tables)


# ---- files that are no model ----


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "m.nnpm"
    model(3, 2, 4).save(path)
    return path


def test_every_truncation_is_noticed(stored):
    whole = stored.read_bytes()
    for length in range(len(whole)):
        stored.write_bytes(whole[:length])
        with pytest.raises(TruncatedError, match=f"ends at byte {length}") as caught:
            PCModel.load(stored)
        assert str(stored) in str(caught.value)


def test_every_changed_byte_is_noticed(stored):
    whole = stored.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        stored.write_bytes(damaged)
        with pytest.raises(PCError, match=r"byte|version|arith|starts with"):
            PCModel.load(stored)


def test_trailing_bytes_are_refused(stored):
    stored.write_bytes(stored.read_bytes() + b"x")
    with pytest.raises(FormatError, match="1 bytes follow"):
        PCModel.load(stored)


def with_header(whole, **fields):
    """The file with other header fields and a checksum that fits."""
    names = ("magic", "version", "arith", "zero", "nodes", "variables", "K", "id")
    header = dict(zip(names, struct.unpack_from("<4sHBBIII16s", whole), strict=True)) | fields
    packed = struct.pack("<4sHBBIII16s", *header.values())
    return packed + struct.pack("<I", crc32c(packed)) + whole[len(packed) + 4 :]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"magic": b"NNPC"}, FormatError, "b'NNPC', expected b'NNPM'"),
        ({"version": 2}, FormatError, "version 2, supported is 1"),
        ({"arith": 3}, FormatError, "arith 3, supported is 1"),
        ({"nodes": 9}, FormatError, "9 nodes, 3 variables"),
        ({"nodes": 0, "variables": 0}, FormatError, "0 nodes"),
        ({"K": 0}, FormatError, "K=0"),
        ({"K": 1 << 31}, FormatError, "expected b'LEAF' of"),
        ({"nodes": 1 << 31, "variables": 1 << 31}, FormatError, "expected b'NODE' of"),
        ({"id": bytes(16)}, ChecksumError, "model_id is 00000000"),
    ],
)
def test_a_header_that_lies_is_refused(stored, fields, error, message):
    stored.write_bytes(with_header(stored.read_bytes(), **fields))
    with pytest.raises(error, match=message):
        PCModel.load(stored)


def test_a_checksum_names_section_and_byte(stored):
    damaged = bytearray(stored.read_bytes())
    damaged[-5] ^= 1
    stored.write_bytes(damaged)
    with pytest.raises(ChecksumError, match=f"section CUMU at byte {len(damaged) - 4} "):
        PCModel.load(stored)


def test_values_of_a_stored_model_are_checked(stored):
    whole = bytearray(stored.read_bytes())
    at = whole.index(b"SUMS") + 12
    struct.pack_into("<f", whole, at, float("nan"))
    size = 4 * (2 + 2 * 4)
    struct.pack_into("<I", whole, at + size, crc32c(bytes(whole[at - 12 : at + size])))
    stored.write_bytes(whole)
    # The id of other tables is the first thing to differ.
    with pytest.raises(ChecksumError, match="model_id"):
        PCModel.load(stored)


def node_table(rows):
    return b"".join(struct.pack("<iIII", *row) for row in rows)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([(-1, 0, 1, 2), (0, 1, 2, 3), (1, 2, 2, 2)], FormatError, "differ in h"),
        ([(-1, 0, 2, 2), (0, 1, 2, 2), (1, 2, 2, 2)], FormatError, "differ in h"),
        ([(-1, 0, 1, 0), (0, 1, 0, 0), (1, 2, 0, 0)], FormatError, "differ in h"),
        ([(-1, 0, 1, 2), (0, 1, 2, 2), (1, 1, 2, 2)], ModelError, "every variable once"),
        ([(-1, 0, 1, 2), (0, 7, 2, 2), (1, 2, 2, 2)], ModelError, "every variable once"),
        ([(-1, 0, 1, 2), (2, 1, 2, 2), (1, 2, 2, 2)], ModelError, "not in coding order"),
        ([(0, 0, 2, 2), (0, 1, 2, 2), (1, 2, 2, 2)], ModelError, "not in coding order"),
    ],
)
def test_node_tables_are_checked(stored, rows, error, message):
    whole = bytearray(stored.read_bytes())
    at = whole.index(b"NODE")
    whole[at + 12 : at + 60] = node_table(rows)
    struct.pack_into("<I", whole, at + 60, crc32c(bytes(whole[at : at + 60])))
    stored.write_bytes(whole)
    with pytest.raises(error, match=message):
        PCModel.load(stored)
