"""2,000 mutations of containers: an error or the right data, never a crash or a wrong sample.

A C++ test runs 100,000 of them under sanitizers.
"""

import random

import pc_models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnkernels.pc import CorruptError, PCError, PCModel

# In values: what an attacker may make us allocate.
LIMIT = 1 << 20


@pytest.fixture(scope="module", params=[(6, 3, 9), (3, 2, 300), (5, 2, 1)], ids=str)
def coded(request):
    tables = pc_models.tables(*request.param, seed=2)
    x = pc_models.samples(11, tables, seed=2)
    model = PCModel(*tables)
    return model, x, model.compress(x, block=4, lanes=2)


def mutated(data, rng):
    """One to three changes: bits, bytes, words, cuts, insertions, moved and doubled parts."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if not out:
            break
        at = rng.randrange(len(out))
        size = min(rng.choice((1, 1, 2, 4, 8, 30)), len(out) - at)
        other = rng.randrange(len(out))
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                out[at : at + size] = rng.choice((b"\0", b"\xff")) * size
            case 3:
                del out[at:]
            case 4:
                del out[at : at + size]
            case 5:
                out[at:at] = rng.randbytes(size)
            case 6:
                out[at : at + size] = out[other : other + size]
            case 7:
                out[at:at] = out[other : other + size]
    return bytes(out)


def decoded(model, data, **options):
    """The samples, or None for an error that may be."""
    try:
        return model.decompress(data, limit=LIMIT, **options)
    except CorruptError:
        # The checksums would fit by chance once in 2^32.
        raise
    except PCError:
        return None


def test_mutated_containers(coded):
    model, x, data = coded
    rng = random.Random(len(data))
    refused = 0
    for _ in range(667):
        found = decoded(model, mutated(data, rng))
        if found is None:
            refused += 1
        else:
            assert torch.equal(found, x)
    # Some mutations change nothing.
    assert refused > 600


@pytest.mark.filterwarnings("ignore:samples .* are left out")
def test_mutated_containers_with_blocks_left_out(coded):
    model, x, data = coded
    rng = random.Random(len(data) + 1)
    parts = {tuple(map(tuple, part.tolist())) for part in x.split(4)}
    for _ in range(200):
        found = decoded(model, mutated(data, rng), on_error="skip")
        rows = [] if found is None else found.tolist()
        # What is left is made of whole blocks.
        while rows:
            size = next(n for n in (4, 3) if tuple(map(tuple, rows[:n])) in parts)
            rows = rows[size:]


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data):
    model = PCModel(*pc_models.tables(3, 2, 4))
    assert decoded(model, data) is None
    assert decoded(model, b"NNPC\x01\x00\x01\x14" + data) is None
