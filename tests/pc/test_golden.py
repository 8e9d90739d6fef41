"""Bytes that must never change: a file written once is read by every later build.

Models and data are made of integers alone. The hashes were taken from the exact reference
(`nnkernels.pc.reference_codec`, for the small cases) and from the scalar build; a change of any of
them needs a new `arith` number, and the old one must stay decodable.
"""

import hashlib

import numpy as np
import pc_models
import pytest
import torch

from nnkernels import _host, pc
from nnkernels.pc import PCModel, reference_codec

# D, h, K, N, lanes, precision, block: SHA-256 of the model's file, of the data, of the container.
GOLDEN = {}

# The words of D=3, h=2, K=5, seed 7: three samples in two lanes.
WORDS = [[2577727511, 128195, 991133205], [948874335, 86385]]


def ids(key):
    return "D{}-h{}-K{}-N{}-L{}-P{}-block{}".format(*key)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def case(key):
    D, h, K, N, lanes, precision, block = key
    tables = pc_models.tables(D, h, K, seed=7)
    x = pc_models.samples(N, tables, seed=7)
    model = PCModel(*tables)
    return model, x, lambda: model.compress(x, lanes=lanes, precision=precision, block=block)


@pytest.mark.parametrize("key", GOLDEN, ids=ids)
def test_bytes_are_those_of_the_first_release(key, isa, tmp_path):
    model, x, compress = case(key)
    model_hash, data_hash, container_hash = GOLDEN[key]
    model.save(tmp_path / "m.nnpm")
    # What the codec is given.
    assert digest((tmp_path / "m.nnpm").read_bytes()) == model_hash
    assert digest(x.numpy().tobytes()) == data_hash
    data = compress()
    assert digest(data) == container_hash
    assert torch.equal(model.decompress(data), x)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key[0] * key[3] < 200], ids=ids)
def test_small_cases_are_those_of_exact_arithmetic(key):
    """The container, built from the exact reference's words."""
    model, x, compress = case(key)
    D, _, K, N, lanes, precision, block = key
    lanes = lanes or _host.ContainerHeader.parse(compress()).lanes
    header = _host.ContainerHeader(
        precision=precision,
        D=D,
        K=K,
        N=N,
        dtype=str(x.numpy().dtype),
        dims=[D],
        block=block,
        lanes=lanes,
        model_id=bytes.fromhex(model.model_id),
    )
    data, offsets = header.pack(), []
    for index, part in enumerate(x.split(block)):
        words = reference_codec.encode(part, model.tables, min(lanes, len(part)), precision)
        counts = np.array([len(lane) for lane in words], dtype=np.int32)
        table = np.zeros((len(words), counts.max()), dtype=np.uint32)
        for row, lane in zip(table, words, strict=True):
            row[: len(lane)] = lane
        offsets.append(len(data))
        data += _host.container_block(header, index, table, counts, part.numpy())
    data += _host.container_trailer(offsets)
    assert digest(data) == GOLDEN[key][2]


def test_words(isa):
    tables = pc_models.tables(3, 2, 5, seed=7)
    x = torch.tensor([[0, 1, 2], [4, 4, 4], [3, 0, 1]], dtype=torch.uint8)
    words, counts = pc.encode(x, tables, 2, 16)
    assert [
        [word % (1 << 32) for word in lane[:count]]
        for lane, count in zip(words.tolist(), counts.tolist(), strict=True)
    ] == WORDS


def test_golden_cases_cover_what_is_stored():
    keys = list(GOLDEN)
    assert {key[2] > 256 for key in keys} == {True, False}
    assert {key[4] is None for key in keys} == {True, False}
    assert len({key[5] for key in keys}) > 2
