"""The Triton kernels of lmul against the reference: on a GPU, or under Triton's interpreter."""

import house
import pytest
import torch
from lmul_cases import (
    DTYPES,
    FLOAT8,
    MODES,
    ROUNDS,
    SPECIAL,
    any_words,
    assert_same_bits,
    name,
    normals,
)

from nnkernels.lmul import reference

pytest.importorskip("triton", reason="Triton is not installed")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
with pytest.MonkeyPatch.context() as patch:
    # Read when kernels are defined, and only then.
    if not ON_GPU:
        patch.setenv("TRITON_INTERPRET", "1")
    from nnkernels.triton_kernels import lmul as kernels

# The interpreter's casts of values that overflow fp16 warn, and give the infinity they should.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


def check(x: torch.Tensor, y: torch.Tensor, **options):
    """The kernel's result is the reference's, to the bit."""
    got = kernels.mul(x.to(DEVICE), y.to(DEVICE), **options)
    assert_same_bits(got.cpu(), reference.mul(x, y, **options))
    assert got.is_contiguous()


def mixture(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Bit patterns of every kind, then numbers whose products are in range; two blocks."""
    return torch.cat([any_words(550, dtype=dtype, seed=seed), normals(550, dtype=dtype, seed=seed)])


@pytest.mark.parametrize("rounding", ROUNDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_bits_of_every_dtype(dtype, mode, rounding):
    for m in (None, 1, 4, 7):
        options = {"mantissa_bits": m, "mode": mode, "round": rounding}
        check(mixture(dtype, 1), mixture(dtype, 2), **options)


@pytest.mark.parametrize("rounding", ROUNDS)
@pytest.mark.parametrize("mode", MODES)
def test_special_pairs(mode, rounding):
    for m in (1, 7, 23):
        check(SPECIAL[:, None], SPECIAL, mantissa_bits=m, mode=mode, round=rounding)


@pytest.mark.parametrize("dtype", FLOAT8, ids=name)
def test_every_pair_of_float8(dtype):
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    check(values[:, None], values)


@pytest.mark.parametrize("m", range(1, 24))
def test_one_times_one_is_one_plus_the_offset(m):
    one = torch.ones(1, device=DEVICE)
    assert kernels.mul(one, one, mantissa_bits=m).item() == 1 + reference.default_offset(m)
    assert kernels.mul(one, one, mantissa_bits=m, offset=0.75).item() == 1.75


def test_broadcast_and_strides(canaries):
    x = normals(5, 1, 7, dtype=torch.bfloat16)
    y = canaries.embed(normals(4, 7, 7), step=2)
    check(x[:, None], y)
    check(y, y.transpose(1, 2))
    check(x.expand(5, 3, 7), x)
    check(y[0, 0, 0], y[1, 1, 1])
    check(y[:, :0], y[:, :1])


def test_mixed_dtypes():
    for i, x_dtype in enumerate(DTYPES):
        for y_dtype in DTYPES[i + 1 :]:
            check(normals(70, dtype=x_dtype, seed=3), normals(70, dtype=y_dtype, seed=4))


@pytest.mark.parametrize("out_dtype", DTYPES, ids=name)
def test_out_dtype(out_dtype):
    check(mixture(torch.float32, 5), mixture(torch.float32, 6), out_dtype=out_dtype)


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nnkernels.triton_kernels.lmul import _mul_kernel as kernel

names = kernel.arg_names
pointers = {"float32": "*i32", "bfloat16": "*i16", "float16": "*i16"}
for formats in (("bfloat16",) * 3, ("float8_e4m3fn", "float8_e5m2", "float32"), ("float16",) * 3):
    for mode in ("bits", "formula"):
        # Two dimensions, the inner one contiguous.
        signature = dict.fromkeys(names, "constexpr")
        signature.update(zip(names, (pointers.get(name, "*u8") for name in formats)))
        signature.update(size="i64", offset="i32", sizes=("i64", "i64"))
        signature.update(x_strides=("constexpr", "i64"), y_strides=("constexpr", "i64"))
        values = {"MANTISSA_BITS": 7, "MODE": mode, "ROUND": "rne", "BLOCK": 1024}
        values.update(zip(("X_FORMAT", "Y_FORMAT", "OUT_FORMAT"), formats))
        constants = {(names.index(name),): value for name, value in values.items()}
        constants.update({(names.index(name), 0): 1 for name in ("x_strides", "y_strides")})
        for capability in (80, 90):
            target = GPUTarget("cuda", capability, 32)
            assert compile(ASTSource(kernel, signature, constants), target=target).asm["cubin"]
"""


def test_kernels_compile_for_sm_80_and_sm_90(tmp_path):
    """Needs no GPU. A process of its own, since kernels defined for the interpreter cannot."""
    run = house.run_python(COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert run.returncode == 0, run.stderr[-2000:]


def test_kernels_are_imported_only_on_demand():
    code = "import sys, nnkernels; assert 'nnkernels.triton_kernels.lmul' not in sys.modules"
    run = house.run_python(code)
    assert run.returncode == 0, run.stderr[-2000:]
