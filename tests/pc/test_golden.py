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
GOLDEN = {
    (1, 1, 1, 3, 1, 12, 4096): (
        "cb7241e9ba76e8ac52f544980954a611fff09179ee3515be435499f7d088832b",
        "709e80c88487a2411e1ee4dfb9f22a861492d20c4765150c0c794abd70f8147c",
        "67ed6164835d32e828224b25fba1dd9b0757993e7e867bee87355ca84e9e7ad0",
    ),
    (1, 3, 4, 20, 2, 12, 8): (
        "1eeabf9f5c7470409da48b1b792ef397431da539997b0abb75963c64de9cb293",
        "0e5d205c0591ae3342440fd2131b9856f5e8649a4fde3ca248a0eafc019a0530",
        "d4806e64a364768c9ff30036e31ec885142f8e028f7f0452c2caefc59e1829c1",
    ),
    (5, 2, 3, 12, None, 20, 4096): (
        "b1049e3d10ae1041723ce09c9037fce6ee9131597873faeb978caf5e7ad34ca6",
        "3fa1bf6d5da0e167c0063c1fdeb30cd40aca9b646bde8f2864d3fc84d43fde23",
        "3e2fdbdd3248e1558505ec6ab7e8d940a71f6517a4e7027d709b560c153b9582",
    ),
    (6, 5, 300, 10, 3, 16, 4): (
        "bc0d10b97f1daa38eba240850df2b73adf21052d5f62b823d1a7fe1010d32552",
        "f7e2edd9bb66db2260b44610651c0f65b7b389936a4a6ac3a53defd4af91582e",
        "dfc4f51a15a72b56d39b3b58253984098e97a0388850d025f57d260a74f2505f",
    ),
    (3, 17, 5, 9, 4, 24, 4): (
        "b0a2f96251b9dd47beb4db56d9c2fb47191669e8eb5d003099f688b264d4486c",
        "12fff83da9e03587737ea9c29bc4a6b8df64b77845058cc676f8fa4f88b7e918",
        "74f7ff6297365d8f033e65002b6c1ef728cf5bb69e65dae381de0d5760047a07",
    ),
    (40, 16, 60, 150, 7, 20, 64): (
        "44fe7b024835c073ae87fc82d4da41bf3e2b540a28a8ea8f0a26e6450f7c9e5f",
        "2a0d8f49ec924ff0241d176eb6cd3e1be610a9e8280efc9ea17f896ad002cb1a",
        "a7e057bef46d567589a6f598431ef634e52d7791d6270b0787ff803f714326a2",
    ),
    (100, 32, 256, 200, None, 20, 4096): (
        "0b16b8376ba26d33321bfc5c09c7badcb88de51194e0bbaa3ad8e541c47ec9c2",
        "b1403484d9a6cc8c9bf854ac6ce22d9ef604fcfcfeb732107ba8c97b41f24a7c",
        "be418eef8c8434dd8458538db988ec6a7b5865f062fec88849c4cacf89b72547",
    ),
    (33, 64, 16, 90, 64, 16, 4096): (
        "e4f5a034bd9140b8e36d5b6821e63da6359edd116c89dfe8095942164fb983c9",
        "a0f6a0df5f3579d8faf7271d4db6caf650027bdcb49767ff245f73843ebdb015",
        "21123c75f2c3ea25d960cbcca823f5d220e3b1eb060c8cad3e8a0d24036a4611",
    ),
    (12, 8, 4096, 50, 5, 14, 20): (
        "aa9bbee13dbe08536d2dc6ad4457df9a1e30bbf65a1a7c4fa290e7fc084e1bc3",
        "165ead2b06fcb6901ff6b653087012ce838b8a0c64eff63a4440172d8547b988",
        "ae3367e7aaba0d091119e2ec966584fb35d42b1d79bd656241f3548dd2fc9087",
    ),
}

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
