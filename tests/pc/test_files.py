"""Reading .npy and idx files in parts, writing .npy, replacing files whole."""

import gzip
import io
import struct

import numpy as np
import pc_models
import pytest

from nnkernels.pc import (
    ArgumentError,
    FormatError,
    ShapeError,
    SymbolRangeError,
    TruncatedError,
    files,
)


def values(*shape, dtype="u1"):
    return pc_models.random_integers(9, *shape).astype(np.uint8).astype(dtype)


def idx(array, code):
    head = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return head + array.tobytes()


def read_in_parts(path, part=3):
    with files.open_samples(path) as samples:
        steps = range(0, samples.count, part)
        parts = [samples.read(min(part, samples.count - start)) for start in steps]
        return samples, parts


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2"])
@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 4), (4,), (0, 6), (1, 1)], ids=str)
def test_npy(tmp_path, shape, dtype, order):
    array = values(*shape, dtype=dtype)
    np.save(tmp_path / "x.npy", np.asarray(array, order=order))
    samples, parts = read_in_parts(tmp_path / "x.npy")
    assert (samples.count, samples.shape) == (shape[0], shape[1:])
    assert samples.dtype == np.dtype(dtype).newbyteorder("=")
    assert all(part.dtype == samples.dtype and part.flags.writeable for part in parts)
    found = np.concatenate([np.empty((0, *shape[1:]), samples.dtype), *parts])
    assert np.array_equal(found, array)
    assert np.array_equal(files.read_samples(tmp_path / "x.npy"), array)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("dtype", "code"), [("u1", 0x08), (">i2", 0x0B)])
def test_idx(tmp_path, dtype, code, zipped):
    array = values(7, 3, 4, dtype=dtype)
    data = idx(array, code)
    path = tmp_path / "x-idx3"
    path.write_bytes(gzip.compress(data) if zipped else data)
    samples, parts = read_in_parts(path)
    assert (samples.count, samples.shape) == (7, (3, 4))
    assert np.array_equal(np.concatenate(parts), array)


def saved(array, **keywords):
    def save(path):
        with open(path, "wb") as file:
            np.save(file, array, **keywords)

    return save


def holding(data):
    return lambda path: path.write_bytes(data)


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


BAD = {
    "float": (saved(np.ones((2, 3), "f4")), SymbolRangeError, "sample 0, variable 0"),
    "nan": (saved(np.full((2, 3), np.nan)), SymbolRangeError, "float64"),
    "int64": (saved(np.ones((2, 3), "i8")), ShapeError, "int64, expected uint8 or int16"),
    "scalar": (saved(np.array(3, "u1")), ShapeError, "single value"),
    "pickled": (saved(np.array([{}, 1], object)), FormatError, "object"),
    "fields": (saved(np.zeros(3, [("a", "u1")])), FormatError, "'a'"),
    "text": (holding(b"hello, world"), FormatError, "starts with b'hello,'"),
    "empty": (holding(b""), FormatError, "starts with b''"),
    "short npy": (holding(npy_bytes(values(4, 5))[:-1]), TruncatedError, "promises 20 bytes"),
    "npy header": (holding(npy_bytes(values(4, 5))[:40]), FormatError, "header"),
    "npy version": (holding(b"\x93NUMPY\x09\x00" + bytes(99)), FormatError, "version"),
    "short idx": (holding(idx(values(4, 5), 8)[:-1]), TruncatedError, "promises 20 bytes"),
    "idx header": (holding(idx(values(4, 5), 8)[:9]), TruncatedError, "header"),
    "idx type": (holding(idx(values(4, 5), 0x55)), FormatError, "000055"),
    "idx float": (holding(idx(values(4, 5, dtype=">f4"), 0x0D)), SymbolRangeError, "float32"),
    "gzip of text": (holding(gzip.compress(b"hello, world")), FormatError, "idx magic"),
    "no gzip": (holding(b"\x1f\x8b" + bytes(40)), FormatError, "gzip"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(tmp_path, case):
    write, error, message = BAD[case]
    write(tmp_path / "bad")
    with pytest.raises(error, match=message) as caught:
        files.open_samples(tmp_path / "bad")
    assert str(tmp_path / "bad") in str(caught.value)


SHORT = {
    "early": gzip.compress(idx(values(4, 50), 8))[:120],
    "without checksum": gzip.compress(idx(values(4, 50), 8))[:-9],
    "of a short file": gzip.compress(idx(values(4, 50), 8)[:-1]),
}


@pytest.mark.parametrize("case", SHORT)
def test_a_short_gzip_stream_names_the_sample(tmp_path, case):
    (tmp_path / "bad").write_bytes(SHORT[case])
    with files.open_samples(tmp_path / "bad") as samples:
        samples.read(1)
        with pytest.raises(TruncatedError, match=r"samples? 1"):
            samples.read(3)


def test_npy_writer(tmp_path):
    array = values(7, 3, 4)
    with files.replacing(tmp_path / "x.npy") as file:
        writer = files.NpyWriter(file, (3, 4), np.dtype("u1"))
        writer.write(array[:3])
        writer.write(array[3:])
        writer.finish()
    found = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert found.dtype == np.uint8
    assert np.array_equal(found, array)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_what_was_there(tmp_path, failure):
    (tmp_path / "x").write_bytes(b"before")

    def fail():
        with files.replacing(tmp_path / "x") as file:
            file.write(b"half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert (tmp_path / "x").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_only_regular_files_are_replaced(tmp_path):
    with pytest.raises(ArgumentError, match="not a regular file"), files.replacing("/dev/null"):
        pass
    with pytest.raises(ArgumentError, match="not a regular file"), files.replacing(tmp_path):
        pass
