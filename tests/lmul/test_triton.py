"""The Triton kernels of lmul against the reference: on a GPU, or under Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

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

WIDE = (torch.float32, torch.bfloat16, torch.float16)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def words(values: list[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of these bit patterns."""
    bits = 8 * dtype.itemsize
    signed = [v if v < 1 << (bits - 1) or bits == 8 else v - (1 << bits) for v in values]
    return torch.tensor(signed, dtype=INTEGERS[dtype.itemsize], device=DEVICE).view(dtype)


def random_words(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bit patterns, every second one a number within a few powers of two of 1."""
    generator = torch.Generator().manual_seed(seed)
    size = (*shape, dtype.itemsize)
    any_bits = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).view(dtype)
    near_one = torch.randn(shape, generator=generator).to(dtype)
    chosen = torch.randint(0, 2, shape, dtype=torch.bool, generator=generator)
    chosen_words = torch.where(chosen, any_bits.squeeze(-1).float(), near_one.float())
    return chosen_words.to(dtype).to(DEVICE)


def check(x: torch.Tensor, y: torch.Tensor, **options):
    """The kernel's result has the reference's dtype, shape and bits; any NaN equals any NaN."""
    out = kernels.mul(x, y, **options)
    expected = reference.mul(x.cpu(), y.cpu(), **options)
    assert out.dtype == expected.dtype
    assert out.shape == expected.shape
    assert out.is_contiguous()
    integers = INTEGERS[out.dtype.itemsize]
    out = out.cpu()
    both_nan = out.float().isnan() & expected.float().isnan()
    different = (out.view(integers) != expected.view(integers)) & ~both_nan
    assert not different.any(), f"{different.sum()} wrong: {out[different]}, {expected[different]}"


@pytest.mark.parametrize("rounding", ["trunc", "rne"])
@pytest.mark.parametrize("mode", ["bits", "formula"])
@pytest.mark.parametrize("dtype", WIDE + FLOAT8, ids=str)
def test_random_words(dtype, mode, rounding):
    x, y = random_words((1100,), dtype, 1), random_words((1100,), dtype, 2)
    for m in (None, 1, 4, 7):
        check(x, y, mantissa_bits=m, mode=mode, round=rounding)


@pytest.mark.parametrize("mode", ["bits", "formula"])
def test_special_pairs(mode):
    magnitudes = (0, 1, 0x7FFFFF, 0x800000, 0x1FFFFFFF, 0x20000000, 0x3F780000, 0x3F800000)
    magnitudes += (0x3FFFFFFF, 0x5F000000, 0x5FFFFFFF, 0x7F000000, 0x7F7FFFFF, 0x7F800000)
    magnitudes += (0x7F800001, 0x7FC00000, 0x7FFFFFFF)
    values = words([m | s for m in magnitudes for s in (0, 1 << 31)], torch.float32)
    for m in (1, 23):
        for rounding in ("trunc", "rne"):
            check(values[:, None], values, mantissa_bits=m, mode=mode, round=rounding)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_every_pair_of_float8(dtype):
    values = words(list(range(256)), dtype)
    check(values[:, None], values)


@pytest.mark.parametrize("m", range(1, 24))
def test_one_times_one_is_one_plus_the_offset(m):
    one = torch.ones(1, device=DEVICE)
    assert kernels.mul(one, one, mantissa_bits=m).item() == 1 + reference.default_offset(m)
    assert kernels.mul(one, one, mantissa_bits=m, offset=0.75).item() == 1.75


def test_broadcast_and_strides():
    x = random_words((5, 1, 7), torch.bfloat16, 3)
    y = random_words((4, 9, 14), torch.float32, 4)[:, 1:8, ::2].transpose(1, 2)
    check(x[:, None], y)
    check(y, y.transpose(1, 2))
    check(x.expand(5, 3, 7), x)
    check(y[0, 0, 0], y[1, 1, 1])
    check(y[:, :0], y[:, :1])


def test_mixed_dtypes():
    for i, x_dtype in enumerate(WIDE + FLOAT8):
        for y_dtype in (WIDE + FLOAT8)[i + 1 :]:
            check(random_words((70,), x_dtype, 5), random_words((70,), y_dtype, 6))


@pytest.mark.parametrize("out_dtype", WIDE + FLOAT8, ids=str)
def test_out_dtype(out_dtype):
    x, y = random_words((500,), torch.float32, 7), random_words((500,), torch.float32, 8)
    check(x, y, out_dtype=out_dtype)


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


def run_python(code: str, **environment: str):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_compile_for_sm_80_and_sm_90(tmp_path):
    """Needs no GPU. A process of its own, since kernels defined for the interpreter cannot."""
    run = run_python(COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert run.returncode == 0, run.stderr[-2000:]


def test_kernels_are_imported_only_on_demand():
    code = "import sys, nnkernels; assert 'nnkernels.triton_kernels.lmul' not in sys.modules"
    run = run_python(code)
    assert run.returncode == 0, run.stderr[-2000:]
