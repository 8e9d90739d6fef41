"""Packing and unpacking: exact bits for every dtype, layout and instruction set."""

import house
import pytest
import torch
from binary_cases import EDGES, FLOATS, KS, bits, integers, name, normals, pad_bits_are_zero, signs
from hypothesis import given
from hypothesis import strategies as st

from nnkernels import binary
from nnkernels.binary import reference

VALUES = (*FLOATS, torch.int8)
dtypes = pytest.mark.parametrize("dtype", VALUES, ids=name)


def values(*shape, dtype, seed=0):
    if dtype == torch.int8:
        return integers(-128, 128, *shape, seed=seed)
    return normals(*shape, seed=seed, dtype=dtype)


def check(got, expected, K):
    assert house.same_bits(got, expected)
    assert got.is_contiguous()
    assert pad_bits_are_zero(got, K)


@dtypes
@pytest.mark.parametrize("K", KS)
def test_pack(isa, K, dtype):
    for shape in ((K,), (1, K), (65, K), (3, 0, K), (2, 3, K)):
        x = values(*shape, dtype=dtype)
        expected, rowpop = reference.pack_rowpop(x)
        check(binary.pack(x), expected, K)
        both = binary.pack_rowpop(x)
        check(both[0], expected, K)
        assert house.same_bits(both[1], rowpop)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_special_values(isa, dtype):
    x = torch.tensor(EDGES * 30, dtype=dtype)
    check(binary.pack(x), reference.pack(x), x.numel())
    bytes_of = integers(-128, 128, 300, dtype.itemsize, seed=1).view(dtype).squeeze(-1)
    check(binary.pack(bytes_of), reference.pack(bytes_of), 300)


@dtypes
def test_layouts(isa, dtype, canaries):
    x = values(6, 40, 70, dtype=dtype)
    expected = reference.pack(x)
    for other in (
        canaries.embed(x),
        canaries.embed(x, step=2),
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        # Channels of NCHW images as rows of channels-last ones.
        x.mT.contiguous().mT,
    ):
        check(binary.pack(other), expected, 70)
    check(binary.pack(x[:1].expand(6, 40, 70)), expected[:1].expand(6, 40, -1).contiguous(), 70)
    check(
        binary.pack(x[..., :1].expand(6, 40, 33)), reference.pack(x[..., :1].expand(6, 40, 33)), 33
    )


@dtypes
def test_groups_of_channels(isa, dtype):
    images = values(2, 12, 5, 7, dtype=dtype)
    for groups in (1, 2, 4):
        grouped = images.unflatten(1, (groups, -1)).permute(0, 3, 4, 1, 2)
        check(binary.pack(grouped), reference.pack(grouped), 12 // groups)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("omega", [0.5, 20.0, 1000.0])
@pytest.mark.parametrize("K", [1, 33, 257, 1000])
def test_biper(isa, K, omega, dtype):
    w = normals(5, K, dtype=dtype)
    check(binary.pack_biper(w, omega), reference.pack_biper(w, omega), K)


def test_biper_near_the_zeros_of_the_sine(isa):
    # The float32 numbers beside every multiple of pi up to the end of the domain.
    k = torch.cat([torch.arange(-2000, 2000), integers(0, 333_000, 4000, dtype=torch.int64)])
    near = (k.double() * torch.pi).float()
    steps = torch.tensor([-2, -1, 0, 1, 2])[:, None]
    p = (near.view(torch.int32) + steps).view(torch.float32)
    p = p[:, p.abs().amax(0) <= 2.0**20]
    check(binary.pack_biper(p, 1.0), reference.pack_biper(p, 1.0), p.shape[1])
    zeros = torch.tensor([0.0, -0.0])
    assert binary.pack_biper(zeros, 20.0).count_nonzero() == 0


@pytest.mark.parametrize("dtype", VALUES, ids=name)
@pytest.mark.parametrize("K", [1, 32, 257])
def test_ternary(isa, K, dtype):
    t = integers(-1, 2, 7, K).to(dtype)
    for got, expected in zip(binary.pack_ternary(t), reference.pack_ternary(t), strict=True):
        check(got, expected, K)


@pytest.mark.parametrize("dtype", [*VALUES, torch.int16, torch.int32], ids=name)
@pytest.mark.parametrize("K", KS)
def test_unpack(isa, K, dtype):
    x = signs(3, 5, K)
    out = binary.unpack(reference.pack(x), K, dtype)
    assert house.same_bits(out, x.to(dtype))
    assert out.is_contiguous()


def test_unpack_of_views(canaries):
    words = bits(6, 8, 300)
    expected = reference.unpack(words, 300, torch.float32)
    strided = canaries.embed(words, step=2)
    assert torch.equal(binary.unpack(strided, 300), expected)
    assert torch.equal(binary.unpack(words.transpose(0, 1), 300), expected.transpose(0, 1))
    assert binary.unpack(words[:0], 300).shape == (0, 8, 300)


def test_popcount(isa):
    t = integers(-(2**31), 2**31, 7, 1001, dtype=torch.int64).to(torch.int32)
    expected = reference.popcount(t)
    assert house.same_bits(binary.popcount(t), expected)
    assert house.same_bits(binary.popcount(t.mT), expected.mT.contiguous())
    assert binary.popcount(torch.tensor(-1, dtype=torch.int32)).item() == 32


@given(
    rows=st.integers(0, 5),
    K=st.integers(1, 600),
    dtype=st.sampled_from(VALUES),
    seed=st.integers(0, 2**31),
)
def test_unpack_gives_back_what_was_packed(rows, K, dtype, seed):
    x = values(rows, K, dtype=dtype, seed=seed)
    out = binary.unpack(binary.pack(x), K, torch.int8)
    assert torch.equal(out, 1 - 2 * (x < 0).to(torch.int8))


def test_threads_do_not_change_bits():
    x = normals(333, 1025)
    expected = reference.pack(x)
    for count in (1, 2, 3):
        with house.threads(count):
            assert house.same_bits(binary.pack(x), expected)
            assert house.same_bits(binary.pack(x.mT.contiguous().mT), expected)
            assert house.same_bits(binary.pack_biper(x, 20.0), reference.pack_biper(x, 20.0))


# ---- BinaryTensor ----


def test_binary_tensor():
    x = normals(3, 4, 300)
    packed = binary.BinaryTensor.pack(x)
    assert packed.shape == x.shape
    assert packed.scale is None
    assert torch.equal(packed.rowpop, (x < 0).sum(-1))
    assert torch.equal(packed.unpack(), reference.unpack(reference.pack(x), 300, torch.float32))
    scaled = binary.BinaryTensor.pack(x, scaled=True)
    torch.testing.assert_close(scaled.unpack().abs()[..., 0], x.abs().mean(-1))


def test_binary_tensor_refuses_parts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^BinaryTensor: bits has 8 words a row, expected W"):
        binary.BinaryTensor(bits(3, 100), 300)
    with pytest.raises(ValueError, match=r"^BinaryTensor: scale is \[4\], expected \[3\]"):
        binary.BinaryTensor(bits(3, 100), 100, scale=torch.ones(4))
