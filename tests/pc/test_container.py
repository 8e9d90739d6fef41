"""Containers: every kind of bad input, random access, damaged blocks, memory bounded by a block."""

import struct
import warnings

import house
import numpy as np
import pc_models
import pytest
import torch

from nnkernels import _host
from nnkernels.pc import (
    ArgumentError,
    ChecksumError,
    CorruptError,
    FormatError,
    LimitError,
    ModelMismatchError,
    PCError,
    PCModel,
    ShapeError,
    SymbolRangeError,
    TruncatedError,
)


@pytest.fixture(scope="module")
def coded():
    """A model, 40 samples, and their container in blocks of 16, 16 and 8."""
    tables = pc_models.tables(6, 3, 9, seed=2)
    x = pc_models.samples(40, tables, seed=2)
    model = PCModel(*tables)
    return model, x, model.compress(x, block=16, lanes=4)


def offsets(data):
    return _host.container_offsets(_host.ContainerHeader.parse(data), data).tolist()


def with_header(data, at, form, value):
    """The container with one field of its header changed, and a checksum that fits."""
    size = _host.ContainerHeader.parse(data).size
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    struct.pack_into("<I", changed, size - 4, _host.crc32c(bytes(changed[: size - 4])))
    return bytes(changed)


# ---- compress ----


def data_with(value, n, i, dtype=torch.int16):
    x = torch.zeros(40, 6, dtype=dtype)
    x[n, i] = value
    return x


BAD_DATA = {
    "symbol K": (data_with(9, 33, 4), SymbolRangeError, "sample 33, variable 4 is 9"),
    "symbol K in uint8": (
        data_with(9, 33, 4, torch.uint8),
        SymbolRangeError,
        "sample 33, variable 4 is 9, expected 0 to 8",
    ),
    "negative": (data_with(-1, 2, 0), SymbolRangeError, "sample 2, variable 0 is -1"),
    "float": (data_with(0.5, 7, 1, torch.float32), SymbolRangeError, "sample 7, variable 1"),
    "NaN": (data_with(torch.nan, 7, 1, torch.float64), SymbolRangeError, "sample 7, variable 1"),
    "int64": (data_with(1, 0, 0, torch.int64), ShapeError, "int64, expected uint8 or int16"),
    "D": (torch.zeros(40, 7, dtype=torch.uint8), ShapeError, "D=6"),
    "shape": (torch.zeros(40, 2, 2, dtype=torch.uint8), ShapeError, "6"),
    "scalar": (torch.tensor(3, dtype=torch.uint8), ShapeError, "expected"),
    "list": ([[0] * 6], TypeError, "must be a tensor, got list"),
    "masked": (np.ma.masked_equal(np.zeros((4, 6), np.uint8), 1), ArgumentError, "masked"),
    "sparse": (torch.zeros(40, 6, dtype=torch.uint8).to_sparse(), TypeError, "dense"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_coded(coded, case):
    x, error, message = BAD_DATA[case]
    with pytest.raises(error, match=message):
        coded[0].compress(x)


def test_data_on_another_device(coded):
    with pytest.raises((TypeError, ValueError)):
        coded[0].compress(torch.zeros(40, 6, dtype=torch.uint8, device="meta"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": 11}, ArgumentError, "precision is 11, expected 12 to 24"),
        ({"precision": 25}, ArgumentError, "precision is 25"),
        ({"precision": 16.0}, TypeError, "precision"),
        ({"lanes": 0}, ArgumentError, "lanes is 0"),
        ({"lanes": 5000}, ArgumentError, "lanes is 5000, expected at most block=4096"),
        ({"lanes": True}, TypeError, "lanes"),
        ({"block": 0}, ArgumentError, "block is 0"),
        ({"independent": 1}, TypeError, "independent"),
        ({"independent": True, "lanes": 3}, ArgumentError, "one of them"),
        ({"mask": torch.zeros(40, 6, dtype=torch.bool)}, ArgumentError, "cannot be coded"),
    ],
)
def test_options_that_cannot_work(coded, options, error, message):
    with pytest.raises(error, match=message):
        coded[0].compress(coded[1], **options)


def test_precision_must_hold_every_value():
    tables = pc_models.tables(2, 1, 1025)
    model, x = PCModel(*tables), pc_models.samples(3, tables)
    with pytest.raises(ArgumentError, match="precision is 12, expected at least 13 for K=1025"):
        model.compress(x, precision=12)
    assert torch.equal(model.decompress(model.compress(x, precision=13)), x)


# ---- decompress ----


@pytest.mark.parametrize("shape", [(0, 6), (0, 2, 3)])
def test_nothing_is_a_container_too(coded, shape):
    model = coded[0]
    for dtype in (torch.uint8, torch.int16):
        found = model.decompress(model.compress(torch.empty(shape, dtype=dtype)))
        assert (found.shape, found.dtype) == (shape, dtype)


def test_kinds_of_buffer(coded):
    model, x, data = coded
    for kind in (bytes, bytearray, memoryview, lambda d: np.frombuffer(d, np.uint8)):
        assert torch.equal(model.decompress(kind(data)), x)
    with pytest.raises(TypeError):
        model.decompress("text")


def test_any_span_of_samples(coded):
    model, x, data = coded
    for start in range(0, 41, 5):
        for stop in (*range(start, 41, 3), None):
            found = model.decompress(data, start=start, stop=stop)
            assert torch.equal(found, x[start:stop])
    for start, stop in ((-1, 3), (3, 2), (0, 41), (41, 41)):
        with pytest.raises(ArgumentError, match="expected 0 <= start <= stop <= 40"):
            model.decompress(data, start=start, stop=stop)


def test_a_span_reads_its_blocks_alone(coded):
    model, x, data = coded
    found = offsets(data)
    damaged = bytearray(data)
    damaged[found[0] + 20] ^= 1
    damaged[found[2] + 20] ^= 1
    assert torch.equal(model.decompress(bytes(damaged), start=16, stop=32), x[16:32])
    with pytest.raises(ChecksumError, match="block 2"):
        model.decompress(bytes(damaged), start=31, stop=33)


def test_blocks_come_one_after_the_other(coded):
    model, x, data = coded
    parts = list(model.blocks(data))
    assert [start for start, _ in parts] == [0, 16, 32]
    assert torch.equal(torch.cat([part for _, part in parts]), x)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_damaged_block_can_be_left_out(coded, bad):
    model, x, data = coded
    found = offsets(data)
    damaged = bytearray(data)
    damaged[found[bad] + 20] ^= 4
    damaged = bytes(damaged)
    with pytest.raises(ChecksumError, match=f"block {bad}"):
        model.decompress(damaged)
    first, last = 16 * bad, min(16 * bad + 15, 39)
    with pytest.warns(RuntimeWarning, match=f"samples {first} to {last} are left out"):
        rest = model.decompress(damaged, on_error="skip")
    assert torch.equal(rest, torch.cat([x[:first], x[last + 1 :]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model.decompress(data, on_error="skip"), x)


def test_without_a_trailer_the_blocks_are_walked(coded):
    model, x, data = coded
    broken = data[:-6]
    with pytest.raises(FormatError):
        model.decompress(broken)
    assert torch.equal(model.decompress(broken, on_error="skip"), x)
    lost = bytearray(broken)
    struct.pack_into("<I", lost, offsets(data)[2], 1 << 30)
    with pytest.warns(RuntimeWarning, match="samples 32 to 39 are left out"):
        rest = model.decompress(bytes(lost), on_error="skip")
    assert torch.equal(rest, x[:32])


def test_every_truncation_is_noticed(coded):
    model, _, data = coded
    for length in range(len(data)):
        with pytest.raises((FormatError, ChecksumError)) as caught:
            model.decompress(data[:length])
        assert "byte" in str(caught.value) or "offset" in str(caught.value)
    for length in range(62):
        with pytest.raises(TruncatedError):
            model.decompress(data[:length])


def test_every_flipped_bit_is_noticed(coded):
    model, _, data = coded
    kinds = {}
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(PCError) as caught:
            model.decompress(bytes(damaged))
        # Only a mistake of the coder would be a CorruptError.
        assert not isinstance(caught.value, CorruptError)
        kinds.setdefault(type(caught.value), []).append(place)
    assert len(kinds[ChecksumError]) > len(data) / 2


def test_a_flipped_bit_names_its_block(coded):
    model, _, data = coded
    found = offsets(data)
    for block in range(3):
        # Behind length and number of samples, which are held against the file first.
        for place in range(found[block] + 8, found[block + 1]):
            damaged = bytearray(data)
            damaged[place] ^= 0x40
            with pytest.raises((ChecksumError, FormatError), match=f"block {block}"):
                model.decompress(bytes(damaged))


def test_blocks_know_their_place(coded):
    """Two blocks of one size that changed places, and one of another file of the same model."""
    model, x, data = coded
    a, b, c, _ = offsets(data)
    assert b - a != c - b or data[a:b] != data[b:c]
    same = model.compress(x[:16].repeat(3, 1), block=16, lanes=4)
    other = model.compress(x[:16].repeat(2, 1), block=16, lanes=4)
    first, second, third, end = offsets(same)
    assert second - first == third - second
    swapped = same[:first] + same[second:third] + same[first:second] + same[third:]
    with pytest.raises(ChecksumError, match="block 0"):
        model.decompress(swapped)
    start = offsets(other)[0]
    foreign = same[:first] + other[start : start + second - first] + same[second:]
    with pytest.raises(ChecksumError, match="block 0"):
        model.decompress(foreign)
    assert end == len(same) - 32


@pytest.mark.parametrize("extra", [b"x", bytes(8)])
def test_trailing_bytes_are_refused(coded, extra):
    model, _, data = coded
    with pytest.raises(FormatError):
        model.decompress(data + extra)


@pytest.mark.parametrize(
    ("at", "form", "value", "error", "message"),
    [
        (0, "<4s", b"NNPM", FormatError, "NNPC"),
        (4, "<H", 2, FormatError, r"version.*2.*1"),
        (6, "<B", 7, FormatError, r"arith.*7.*1"),
        (7, "<B", 30, FormatError, "30"),
        (8, "<I", 7, FormatError, "D"),
        (16, "<Q", 1 << 50, LimitError, "limit"),
        (16, "<Q", 41, (FormatError, ChecksumError), "byte"),
        (16, "<Q", 30, (FormatError, ChecksumError), "byte"),
        (24, "<B", 9, FormatError, "dtype"),
    ],
    ids=["magic", "version", "arith", "precision", "D", "N", "N+1", "N-10", "dtype"],
)
def test_a_header_that_lies_is_refused(coded, at, form, value, error, message):
    model, _, data = coded
    with pytest.raises(error, match=message):
        model.decompress(with_header(data, at, form, value))


def test_foreign_bytes_are_refused(coded):
    model = coded[0]
    for data in (b"", b"NN", b"hello, world, this is no container at all", bytes(200)):
        with pytest.raises(FormatError):
            model.decompress(data)


def test_another_model_is_refused(coded):
    _, _, data = coded
    other = PCModel(*pc_models.tables(6, 3, 9, seed=3))
    with pytest.raises(ModelMismatchError) as caught:
        other.decompress(data)
    for identity in (coded[0].model_id, other.model_id):
        assert identity in str(caught.value)


@pytest.mark.parametrize("shape", [(5, 3, 9), (6, 3, 8)])
def test_a_model_of_another_shape_is_refused(coded, shape):
    """Even where the ids were made to agree."""
    other = PCModel(*pc_models.tables(*shape, seed=3))
    other._identity = bytes.fromhex(coded[0].model_id)
    with pytest.raises(ShapeError, match=rf"D=6, K=9; the model has D={shape[0]}, K={shape[2]}"):
        other.decompress(coded[2])


def test_data_of_another_model_with_its_id_is_corrupt(coded):
    """Decoding by other tables cannot end well, and does not end silently."""
    other = PCModel(*pc_models.tables(6, 3, 9, seed=3))
    other._identity = bytes.fromhex(coded[0].model_id)
    with pytest.raises(CorruptError, match="block 0"):
        other.decompress(coded[2])


def test_limits(coded):
    model, x, data = coded
    assert torch.equal(model.decompress(data, limit=240), x)
    with pytest.raises(LimitError, match="239"):
        model.decompress(data, limit=239)
    with pytest.raises(TypeError, match="limit"):
        model.decompress(data, limit=1e9)
    with pytest.raises(ValueError, match="on_error"):
        model.decompress(data, on_error="ignore")


# ---- files ----


def test_a_file_holds_the_same_container(coded, tmp_path):
    model, x, data = coded
    np.save(tmp_path / "x.npy", x.numpy())
    seen = []
    model.compress_file(
        tmp_path / "x.npy",
        tmp_path / "x.npc",
        lanes=4,
        block=16,
        progress=lambda *state: seen.append(state),
    )
    assert (tmp_path / "x.npc").read_bytes() == data
    found = offsets(data)
    assert seen == [(done, 40, end) for done, end in zip((16, 32, 40), found[1:], strict=True)]
    seen.clear()
    model.decompress_file(
        tmp_path / "x.npc", tmp_path / "y.npy", progress=lambda *state: seen.append(state)
    )
    assert [state[:2] for state in seen] == [(16, 40), (32, 40), (40, 40)]
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), x)
    model.decompress_file(tmp_path / "x.npc", tmp_path / "y.npy", start=15, stop=35)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), x[15:35])


def test_a_file_with_a_bad_symbol_names_it_and_leaves_nothing(coded, tmp_path):
    np.save(tmp_path / "x.npy", data_with(9, 33, 4).numpy())
    with pytest.raises(SymbolRangeError, match=r"x.npy: sample 33, variable 4 is 9"):
        coded[0].compress_file(tmp_path / "x.npy", tmp_path / "x.npc", block=16)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_an_empty_file_and_a_damaged_one(coded, tmp_path):
    model, x, data = coded
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(TruncatedError):
        model.decompress_file(tmp_path / "empty", tmp_path / "y.npy")
    damaged = bytearray(data)
    damaged[offsets(data)[1] + 20] ^= 1
    (tmp_path / "x.npc").write_bytes(damaged)
    with pytest.raises(ChecksumError, match="block 1"):
        model.decompress_file(tmp_path / "x.npc", tmp_path / "y.npy")
    assert not (tmp_path / "y.npy").exists()
    with pytest.warns(RuntimeWarning, match="samples 16 to 31"):
        model.decompress_file(tmp_path / "x.npc", tmp_path / "y.npy", on_error="skip")
    rest = torch.cat([x[:16], x[32:]])
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), rest)


MEMORY = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from nnkernels.pc import PCModel
model = PCModel.load("m.nnpm")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

# What one block needs, and what libraries take on first use.
model.compress_file("small.npy", "small.npc", block=512)
model.decompress_file("small.npc", "back.npy")
before = peak()
model.compress_file("large.npy", "large.npc", block=512)
model.decompress_file("large.npc", "back.npy")
print(peak() - before)
assert np.array_equal(np.load("back.npy", mmap_mode="r"), np.load("large.npy", mmap_mode="r"))
"""


def test_memory_is_that_of_a_block(tmp_path):
    tables = pc_models.tables(200, 1, 256, seed=1)
    x = pc_models.samples(1024, tables).numpy()
    np.save(tmp_path / "small.npy", x[:512])
    np.save(tmp_path / "large.npy", np.tile(x, (300, 1)))
    PCModel(*tables).save(tmp_path / "m.nnpm")
    code = f"import os\nos.chdir({str(tmp_path)!r})\n{MEMORY}"
    done = house.run_python(code)
    assert done.returncode == 0, done.stderr
    # The file has 61 MB of samples, a block 0.1 MB; mapped pages of the container count as well.
    size = (tmp_path / "large.npc").stat().st_size / 2**20
    assert float(done.stdout) < 12 + size
