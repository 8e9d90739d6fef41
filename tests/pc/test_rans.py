"""rANS and CRC-32C without torch: round trips, bounds, refusals."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnkernels import _host


def frequencies(random, *shape, K, precision):
    """Cumulative frequencies int32 [*shape, K + 1]; every symbol has at least 1."""
    weights = random.exponential(size=(*shape, K)) ** 3
    running = np.cumsum(weights / weights.sum(-1, keepdims=True), -1).clip(0, 1)
    cdf = np.zeros((*shape, K + 1), np.int32)
    cdf[..., 1:] = (running * (2**precision - K)).astype(np.int32) + np.arange(1, K + 1)
    cdf[..., K] = 2**precision
    return cdf


def intervals(cdf, symbols):
    """low, width int32 [N, D] of symbols [N, D]; cdf [D, K + 1] or [N, D, K + 1]."""
    rows = np.broadcast_to(cdf, (*symbols.shape, cdf.shape[-1]))
    low = np.take_along_axis(rows, symbols[..., None], -1)[..., 0]
    high = np.take_along_axis(rows, symbols[..., None] + 1, -1)[..., 0]
    return low, high - low


def case(seed, N=40, D=5, K=30, precision=16, own=False):
    random = np.random.default_rng(seed)
    cdf = frequencies(random, *((N, D) if own else (D,)), K=K, precision=precision)
    symbols = random.integers(0, K, (N, D)).astype(np.int32)
    return cdf, symbols, *intervals(cdf, symbols)


@given(
    seed=st.integers(0, 2**31),
    N=st.integers(0, 40),
    D=st.integers(1, 4),
    K=st.sampled_from([1, 2, 3, 16, 17, 255, 256, 1000]),
    lanes=st.integers(1, 70),
    precision=st.integers(12, 24),
    own=st.booleans(),
)
def test_round_trip(seed, N, D, K, lanes, precision, own):
    cdf, symbols, low, width = case(seed, N, D, K, precision, own)
    words, counts = _host.rans_encode(low, width, lanes, precision)
    assert words.shape == (lanes, -(-N // lanes) * D + 2)
    np.testing.assert_array_equal(_host.rans_decode(words, counts, cdf, N, precision), symbols)
    for lane, count in enumerate(counts):
        assert not words[lane, count:].any()


def test_size_is_the_information():
    _, _, low, width = case(1, N=3000, D=4, K=256, precision=20)
    _, counts = _host.rans_encode(low, width, 3, 20)
    bits = (20 - np.log2(width)).sum()
    assert bits <= 32 * counts.sum() <= 1.0001 * bits + 3 * 96


def plain_encode(low, width, precision):
    """One lane in Python's integers."""
    state, words = 2**32, []
    for start, size in zip(low[::-1].tolist(), width[::-1].tolist(), strict=True):
        if state >= size << (64 - precision):
            words.insert(0, state & 0xFFFFFFFF)
            state >>= 32
        state = (state // size << precision) + state % size + start
    return [state & 0xFFFFFFFF, state >> 32, *words]


@pytest.mark.parametrize("precision", [12, 20, 24])
def test_words_of_the_definition(precision):
    _, _, low, width = case(2, N=7, D=9, K=100, precision=precision)
    words, counts = _host.rans_encode(low, width, 2, precision)
    for lane in range(2):
        expected = plain_encode(low[lane::2].ravel(), width[lane::2].ravel(), precision)
        assert words[lane, : counts[lane]].view(np.uint32).tolist() == expected


def test_crc_of_known_texts():
    assert _host.crc32c(b"123456789") == 0xE3069283
    assert _host.crc32c(bytes(32)) == 0x8A9136AA
    assert _host.crc32c(b"6789", _host.crc32c(b"12345")) == 0xE3069283
    assert _host.crc32c(np.zeros((4, 8), np.uint8)) == 0x8A9136AA


BAD_INTERVALS = [(0, 0), (1, 65536), (65535, 2), (-1, 1), (0, -1), (-(2**31), 2**31 - 1)]


@pytest.mark.parametrize(("low", "width"), BAD_INTERVALS)
def test_bad_intervals(low, width):
    low, width = (np.array([[value]], np.int32) for value in (low, width))
    with pytest.raises(ValueError, match="no interval within"):
        _host.rans_encode(low, width, 1, 16)


def test_bad_arguments():
    cdf, _, low, width = case(3)
    words, counts = _host.rans_encode(low, width, 4, 16)
    with pytest.raises(ValueError, match=r"low is \[40, 5\] and width is \[40, 4\]"):
        _host.rans_encode(low, width[:, :4], 4)
    with pytest.raises(ValueError, match=r"12\.\.24, got 25"):
        _host.rans_encode(low, width, 4, 25)
    with pytest.raises(ValueError, match="lanes must be at least 1"):
        _host.rans_encode(low, width, 0)
    with pytest.raises(ValueError, match=r"cdf is \[5\]"):
        _host.rans_decode(words, counts, cdf[:, 0], 40, 16)
    with pytest.raises(ValueError, match="cdf has 1 columns"):
        _host.rans_decode(words, counts, cdf[:, :1], 40, 16)
    with pytest.raises(ValueError, match=r"counts\[0\] is 1000, expected 2"):
        _host.rans_decode(words, np.full(4, 1000, np.int32), cdf, 40, 16)
    with pytest.raises(TypeError):
        _host.rans_encode(low.astype(np.float32), width, 4)


@given(seed=st.integers(0, 2**31), data=st.data())
def test_damaged_words_never_crash(seed, data):
    cdf, symbols, low, width = case(seed, N=9, D=4, K=50, precision=14)
    words, counts = _host.rans_encode(low, width, 2, 14)
    lane = data.draw(st.integers(0, 1))
    place = data.draw(st.integers(0, int(counts[lane]) - 1))
    words[lane, place] ^= data.draw(st.integers(1, 2**31 - 1))
    # Decoding is undone by encoding: other words are other symbols or no encoder's at all.
    with contextlib.suppress(_host.CorruptStream):
        assert (_host.rans_decode(words, counts, cdf, 9, 14) != symbols).any()


@given(
    words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=12),
    cdf=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=9),
    N=st.integers(0, 5),
)
def test_arbitrary_words_never_crash(words, cdf, N):
    words = np.array([words], np.int32)
    counts = np.array([words.size], np.int32)
    with contextlib.suppress(_host.CorruptStream):
        _host.rans_decode(words, counts, np.array([cdf], np.int32), N, 12)


def test_precision_of_another_coder_is_noticed():
    cdf, _, low, width = case(4, N=200)
    words, counts = _host.rans_encode(low, width, 4, 16)
    with pytest.raises(_host.CorruptStream, match="corrupt"):
        _host.rans_decode(words, counts, cdf, 200, 17)
