"""Bad input: the Python functions raise the kind of error that fits, the raw operators and their
fake kernels a RuntimeError; all name the operator and the argument."""

import re
import warnings

import numpy as np
import pytest
import torch

from nnkernels import lmul

OPS = torch.ops.nnkernels


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape).to(dtype)


def inputs(op, dtype=torch.float32):
    """Valid tensors for an operator."""
    shapes = {
        "mul": ((2, 4), (4,)),
        "matmul": ((2, 4), (4, 3)),
        "bmm": ((2, 2, 4), (2, 4, 3)),
        "linear": ((2, 4), (3, 4), (3,)),
        "pack": ((3, 4),),
        "attention": ((1, 4, 3, 8), (1, 2, 5, 8), (1, 2, 5, 6)),
    }
    return [ones(*shape, dtype=dtype) for shape in shapes[op]]


ALL = ("mul", "matmul", "bmm", "linear", "pack", "attention")
WITH_GRAD = tuple(op for op in ALL if op != "pack")
SUMS = tuple(op for op in WITH_GRAD if op != "mul")


def case(op, error, message, *tensors, raw=True, **options):
    """`tensors` None stands for valid ones. raw=False: torch itself refuses before the operator."""
    shown = {k: list(v.shape) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    shapes = ["x".join(map(str, value.shape)) or "scalar" for value in tensors]
    dtypes = {str(value.dtype).removeprefix("torch.") for value in tensors} - {"float32"}
    words = [op, error.__name__, *shapes, *dtypes, *(f"{k}={v}" for k, v in shown.items())]
    return pytest.param(op, error, message, tensors or None, options, raw, id="-".join(words))


def each(ops, error, message, raw=True, **options):
    return [case(op, error, message, raw=raw, **options) for op in ops]


def dtype_cases():
    for dtype in (
        torch.float64,
        torch.int32,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
    ):
        for op in ALL:
            names = {"matmul": "a", "bmm": "a", "pack": "w", "attention": "q"}
            message = f"{names.get(op, 'x')} has dtype .*float32, bfloat16, float16, float8_e4m3fn"
            yield case(op, TypeError, message, *inputs(op, dtype))


OPTIONS = [
    *each(ALL, ValueError, "mantissa_bits must be between 1 and 23, got 0", mantissa_bits=0),
    *each(ALL, ValueError, "mantissa_bits must be between 1 and 23, got 24", mantissa_bits=24),
    *each(ALL, TypeError, "mantissa_bits must be an int, got float", raw=False, mantissa_bits=4.0),
    *each(ALL, TypeError, "mantissa_bits must be an int, got str", raw=False, mantissa_bits="4"),
    *each(ALL, ValueError, "mode must be one of 'bits', 'formula', got 'x'", mode="x"),
    *each(ALL, ValueError, "round must be one of 'trunc', 'rne', got 'up'", round="up"),
    *each(WITH_GRAD, ValueError, "grad must be one of 'ste', 'lmul', 'exact'", grad="none"),
    *each(("attention",), ValueError, "normalize must be one of 'before', 'after'", normalize="x"),
    *each(SUMS, ValueError, "algo must be one of 'auto', 'word', 'guarded', 'gemm2'", algo="fast"),
    *each(ALL, TypeError, "offset must be a number, got str", raw=False, offset="0.5"),
    *[
        entry
        for offset in (float("nan"), float("inf"), -0.25, 1.0, 2.0**-24, 0.1)
        for entry in each(ALL, ValueError, "offset must be a multiple of 2.-23", offset=offset)
    ],
    *each(SUMS, ValueError, "algo='gemm2' computes mode='formula' only", algo="gemm2"),
    *[
        entry
        for algo in ("word", "guarded")
        for entry in each(SUMS, ValueError, "computes mode='bits' only", algo=algo, mode="formula")
    ],
    *[
        entry
        for algo in ("onehot", "wordmma")
        for entry in (
            *each(SUMS, ValueError, f"algo='{algo}'", algo=algo, mode="formula"),
            *each(SUMS, ValueError, f"algo='{algo}'", algo=algo, mantissa_bits=8),
            # By default float32 keeps 23 bits.
            *each(SUMS, ValueError, f"algo='{algo}'", algo=algo),
            *each(SUMS, NotImplementedError, "CUDA tensors", algo=algo, mantissa_bits=3),
        )
    ],
    *each(WITH_GRAD, TypeError, "out_dtype is .*expected", out_dtype=torch.float64),
    *each(WITH_GRAD, TypeError, "out_dtype is .*expected", out_dtype=torch.int32),
    *each(WITH_GRAD, TypeError, "out_dtype is .*expected", raw=False, out_dtype=[1]),
]

SHAPES = [
    case("mul", ValueError, r"x \[2, 3\] and y \[4\] do not broadcast", ones(2, 3), ones(4)),
    case("mul", NotImplementedError, "up to 16 dimensions, got 17", ones(*[1] * 17), ones(1)),
    case("matmul", ValueError, r"a is \[2, 3\] and b is \[4, 5\].*inner", ones(2, 3), ones(4, 5)),
    case("matmul", ValueError, r"a is \[3\].*2 dimensions", ones(3), ones(3, 5)),
    case("matmul", ValueError, r"\[2, 3, 4\].*2 dimensions", ones(2, 3, 4), ones(2, 4, 5)),
    case("bmm", ValueError, r"\[2, 3, 4\].*\[2, 5, 6\].*inner", ones(2, 3, 4), ones(2, 5, 6)),
    case("bmm", ValueError, r"\[2, 3, 4\].*\[1, 4, 6\].*batch", ones(2, 3, 4), ones(1, 4, 6)),
    case("bmm", ValueError, r"\[3, 4\].*3 dimensions", ones(3, 4), ones(4, 6)),
    case("linear", ValueError, r"x is \[2, 3\] and w is \[5, 4\]", ones(2, 3), ones(5, 4)),
    case("linear", ValueError, r"x is \[\]", ones(), ones(5, 4)),
    case("linear", ValueError, r"w is \[4\]", ones(2, 4), ones(4)),
    case("linear", ValueError, r"bias is \[4\], expected \[5\]", ones(2, 3), ones(5, 3), ones(4)),
    case("linear", ValueError, r"bias is \[\]", ones(2, 3), ones(5, 3), ones()),
    case("linear", TypeError, "bias has dtype", ones(2, 3), ones(5, 3), ones(5).double()),
    case("linear", TypeError, "w_packed", w_packed=ones(5)),
    case("linear", ValueError, "w_packed", w_packed=ones(5, 4, dtype=torch.uint8)),
    case("pack", ValueError, r"w is \[4\], expected \[N, K\]", ones(4)),
    # The lengths exceed int64; the first wraps around to 0.9 GB.
    case("pack", ValueError, "too large to pack", ones(1, 1).expand(17173580032, 268435456)),
    case("pack", ValueError, "too large to pack", ones(1, 1).expand(2**31, 2**31)),
]


def attention_case(error, message, q=(2, 4, 3, 8), k=(2, 2, 5, 8), v=(2, 2, 5, 6), **options):
    return case("attention", error, message, ones(*q), ones(*k), ones(*v), **options)


ATTENTION = [
    attention_case(ValueError, "4 dimensions|expected q", q=(4, 3, 8)),
    attention_case(ValueError, "q has 3 heads and k has 2", q=(2, 3, 3, 8)),
    attention_case(ValueError, "q has 4 heads and k has 0", k=(2, 0, 5, 8), v=(2, 0, 5, 6)),
    attention_case(ValueError, r"k is \[2, 2, 5, 8\] and v is \[2, 2, 4, 6\]", v=(2, 2, 4, 6)),
    attention_case(ValueError, r"v is \[2, 1, 5, 6\]", v=(2, 1, 5, 6)),
    attention_case(ValueError, r"k is \[1, 2, 5, 8\]", k=(1, 2, 5, 8)),
    attention_case(ValueError, r"k is \[2, 2, 5, 7\]", k=(2, 2, 5, 7)),
    attention_case(ValueError, "up to 256", q=(2, 4, 3, 257), k=(2, 2, 5, 257)),
    attention_case(ValueError, "up to 256", v=(2, 2, 5, 257)),
    attention_case(
        ValueError, r"attn_mask \[4, 5\] does not broadcast to \[2, 4, 3, 5\]", attn_mask=ones(4, 5)
    ),
    attention_case(ValueError, "does not broadcast", attn_mask=ones(1, 2, 4, 3, 5)),
    attention_case(TypeError, "attn_mask", attn_mask=ones(3, 5, dtype=torch.int32)),
    attention_case(TypeError, "attn_mask", attn_mask=ones(3, 5, dtype=torch.float64)),
    attention_case(TypeError, "attn_mask", attn_mask=ones(3, 5, dtype=torch.float8_e5m2)),
    attention_case(
        ValueError, "attn_mask and is_causal exclude", attn_mask=ones(3, 5), is_causal=True
    ),
    attention_case(TypeError, "scale must be a number", raw=False, scale="1"),
    attention_case(TypeError, "is_causal must be a bool", raw=False, is_causal="yes"),
]

CASES = [*dtype_cases(), *OPTIONS, *SHAPES, *ATTENTION]
# Without the kinds that torch checks against the schema.
RAW_CASES = [entry for entry in CASES if entry.values[-1]]
# Without what depends on the device.
FAKE_CASES = [
    entry for entry in RAW_CASES if entry.values[4].get("algo") not in ("onehot", "wordmma")
]


def parametrized(cases):
    return pytest.mark.parametrize(("op", "error", "message", "tensors", "options", "raw"), cases)


@parametrized(CASES)
def test_function(op, error, message, tensors, options, raw):
    with pytest.raises(error, match=f"^lmul_{op}: .*{message}"):
        getattr(lmul, op)(*(tensors or inputs(op)), **options)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x: x.to_sparse(), "sparse_coo"),
        (lambda x: x.reshape(-1, x.shape[-1]).to_sparse_csr(), "sparse_csr"),
        (lambda x: x.to_mkldnn(), "mkldnn"),
        (lambda x: torch.nested.nested_tensor([x, x]), "nested"),
        (lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged), "nested"),
    ],
    ids=["coo", "csr", "mkldnn", "nested", "jagged"],
)
@pytest.mark.parametrize("op", ALL)
def test_function_wants_dense_tensors(op, change, kind):
    first, *rest = inputs(op)
    with warnings.catch_warnings():
        # torch calls some of these layouts a prototype.
        warnings.simplefilter("ignore", UserWarning)
        other = change(first)
    with pytest.raises(TypeError, match=f"^lmul_{op}: . is a {kind} tensor, expected a dense one"):
        getattr(lmul, op)(other, *rest)


def operators(op):
    names = [f"lmul_{op}"] if op == "pack" else [f"lmul_{op}", f"lmul_{op}_fwd"]
    return [getattr(OPS, name) for name in names]


@parametrized(RAW_CASES)
def test_raw_operator(op, error, message, tensors, options, raw):
    argument = re.match(r"[a-z_]+", message)
    for operator in operators(op):
        if "grad" in options and operator.__name__.endswith("_fwd"):
            continue
        with pytest.raises(RuntimeError, match=f"^lmul_{op}: ") as caught:
            operator(*(tensors or inputs(op)), **options)
        assert type(caught.value) is RuntimeError
        if argument:
            assert argument.group() in str(caught.value)


@parametrized(FAKE_CASES)
def test_fake_kernel_refuses_what_the_real_one_refuses(op, error, message, tensors, options, raw):
    values = [t.to("meta") for t in (tensors or inputs(op))]
    options = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    for operator in operators(op):
        if "grad" in options and operator.__name__.endswith("_fwd"):
            continue
        with pytest.raises(RuntimeError, match=f"lmul_{op}: "):
            operator(*values, **options)


@pytest.mark.parametrize("op", ALL)
def test_not_a_tensor(op):
    first, *rest = inputs(op)
    with pytest.raises(TypeError, match=f"^lmul_{op}: . must be a tensor, got list"):
        getattr(lmul, op)(first.tolist(), *rest)


@pytest.mark.parametrize("op", WITH_GRAD)
def test_different_devices(op):
    first, second, *rest = inputs(op)
    with pytest.raises(ValueError, match=f"^lmul_{op}: . is on meta and . on cpu; move both"):
        getattr(lmul, op)(first, second.to("meta"), *rest)
    for operator in operators(op):
        with pytest.raises(RuntimeError):
            operator(first, second.to("meta"), *rest)


@pytest.mark.parametrize("op", WITH_GRAD)
def test_gradient_needed_but_grad_is_none(op):
    first, *rest = inputs(op)
    first.requires_grad_()
    for function in (getattr(lmul, op), getattr(OPS, f"lmul_{op}")):
        with pytest.raises(RuntimeError, match=f"^lmul_{op}: an input requires a gradient"):
            function(first, *rest, grad=None)
        with torch.no_grad():
            function(first, *rest, grad=None)
        function(first.detach(), *rest, grad=None)


@pytest.mark.parametrize("op", WITH_GRAD)
def test_double_backward(op):
    # The gradient from upstream is a constant: only the derivative's own inputs ask for more.
    values = [x.requires_grad_() for x in inputs(op)]
    out = getattr(lmul, op)(*values)
    first, *_ = torch.autograd.grad(out.sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match=f"lmul_{op}: double backward is not supported"):
        first.sum().backward()


def test_mask_gets_no_gradient():
    q, k, v = inputs("attention")
    mask = torch.zeros(3, 5, requires_grad=True)
    with pytest.raises(ValueError, match=r"^lmul_attention: attn_mask gets no gradient"):
        lmul.attention(q, k, v, attn_mask=mask)
    with pytest.raises(RuntimeError, match=r"^lmul_attention: attn_mask gets no gradient"):
        OPS.lmul_attention(q, k, v, attn_mask=mask)


def packed_mismatches():
    made, called = {"mantissa_bits": 7}, {"mantissa_bits": 3}
    yield made, called, ("mantissa_bits=7", "mantissa_bits=3")
    yield {"mode": "formula"}, {}, ("mode='formula'", "mode='bits'")
    yield {"round": "rne"}, {}, ("round='rne'", "round='trunc'")
    yield {"offset": 0.5}, {}, ("offset=0.5", "offset=0.0625")


@pytest.mark.parametrize(("made", "called", "shown"), list(packed_mismatches()))
def test_packed_with_other_options(made, called, shown):
    x, w, _ = inputs("linear")
    packed = lmul.pack(w, **made)
    with pytest.raises(ValueError, match=r"^lmul_linear: w_packed was made with ") as caught:
        lmul.linear(x, w, w_packed=packed, **called)
    assert all(text in str(caught.value) for text in shown)
    for operator in operators("linear"):
        with pytest.raises(RuntimeError, match=r"^lmul_linear: w_packed was made with "):
            operator(x, w, w_packed=packed, **called)


def test_packed_from_another_weight():
    x, w, _ = inputs("linear")
    with pytest.raises(ValueError, match=r"w_packed holds a weight \[5, 4\], but w is \[3, 4\]"):
        lmul.linear(x, w, w_packed=lmul.pack(ones(5, 4)))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096])
def test_packed_is_garbage(size):
    x, w, _ = inputs("linear")
    generator = torch.Generator().manual_seed(size)
    garbage = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    with pytest.raises(ValueError, match=r"^lmul_linear: w_packed was not made by lmul_pack"):
        lmul.linear(x, w, w_packed=garbage)


@pytest.mark.parametrize("cut", [1, 7, 64])
def test_packed_is_cut_short(cut):
    x, w, _ = inputs("linear")
    packed = lmul.pack(w)
    with pytest.raises(ValueError, match=r"^lmul_linear: w_packed"):
        lmul.linear(x, w, w_packed=packed[:-cut].clone())


def test_packed_options_are_compared_exactly():
    x, w, _ = inputs("linear")
    packed = lmul.pack(w, offset=0.5)
    # Equal in the first six digits.
    with pytest.raises(ValueError, match=r"offset=0\.5, but .* offset=0\.5000001192092896;"):
        lmul.linear(x, w, w_packed=packed, offset=0.5 + 2**-23)
    lmul.linear(x, w, w_packed=packed, offset=0.5)


# The header of a packed weight as 32-bit numbers: magic, N, K, mantissa_bits, mode, round, offset.
@pytest.mark.parametrize(
    ("index", "value"),
    [
        *((index, value) for index in (0, 1) for value in (0, -1)),
        *((index, value) for index in (2, 4) for value in (0, -1, 2**31 - 1)),
        *((index, value) for index in (3, 5) for value in (-1, 1, 2**30, 2**31 - 1)),
        *((6, value) for value in (-1, 0, 24, 2**31 - 1)),
        *((index, value) for index in (7, 8) for value in (-1, 2, 5, 2**31 - 1)),
        *((9, value) for value in (-1, 2**23)),
    ],
)
def test_packed_with_another_header(index, value):
    x, w, _ = inputs("linear")
    packed = lmul.pack(w)
    packed.numpy()[:64].view(np.int32)[index] = value
    with pytest.raises(ValueError, match=r"^lmul_linear: w_packed was not made by lmul_pack"):
        lmul.linear(x, w, w_packed=packed)


def test_forced_word_with_zeros_or_range():
    zero = torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match=r"^lmul_matmul: algo='word' cannot be exact"):
        lmul.matmul(zero, zero.T, algo="word")
    with pytest.raises(RuntimeError, match=r"^lmul_linear: algo='word' cannot be exact"):
        lmul.linear(zero, zero, algo="word")
    wide = torch.tensor([[2.0**100, 1.0]])
    with pytest.raises(RuntimeError, match=r"^lmul_bmm: algo='word' cannot be exact here: the"):
        lmul.bmm(wide[None], wide.T[None], algo="word")


# ---- memory ----


def endless(*shape):
    """A tensor of one element that claims a shape."""
    return ones(*[1] * len(shape)).expand(shape)


@pytest.mark.parametrize(
    ("op", "shapes", "text"),
    [
        ("mul", ((2**30, 1), (1, 2**30)), r"cannot allocate \[1073741824, 1073741824\] of Float"),
        ("matmul", ((2**30, 1), (1, 2**30)), r"cannot allocate \[1073741824, 1073741824\]"),
        ("bmm", ((1, 2**30, 1), (1, 1, 2**30)), r"cannot allocate \[1, 1073741824, 1073741824\]"),
        ("linear", ((2**30, 1), (2**30, 1)), r"cannot allocate \[1073741824, 1073741824\]"),
        # More elements than int64_t counts.
        ("matmul", ((2**40, 1), (1, 2**40)), r"cannot allocate \[1099511627776, 1099511627776\]"),
        ("pack", ((2**30, 2**28),), r"cannot allocate \[\d+\] of Byte"),
        # The result is small, the memory to work in is not.
        ("matmul", ((300, 2**52), (2**52, 64)), r"not enough memory .* \[300, 4503599627370496\] "),
        ("linear", ((300, 2**52), (64, 2**52), (64,)), r"not enough memory .* \[64\]"),
    ],
)
def test_lack_of_memory_names_operator_and_shapes(op, shapes, text):
    for operator in operators(op):
        with pytest.raises(RuntimeError, match=f"^lmul_{op}: {text}"):
            operator(*(endless(*shape) for shape in shapes))


BACKWARD = {
    "mul": lambda g: OPS.lmul_mul_bwd(g, ones(2, 4), ones(4)),
    "matmul": lambda g: OPS.lmul_matmul_bwd(g, ones(2, 3), ones(3, 4)),
    "bmm": lambda g: OPS.lmul_bmm_bwd(g, ones(1, 2, 3), ones(1, 3, 4)),
    "linear": lambda g: OPS.lmul_linear_bwd(g, ones(2, 3), ones(4, 3)),
    "attention": lambda g: OPS.lmul_attention_bwd(
        g, ones(1, 1, 2, 3), ones(1, 1, 5, 3), ones(1, 1, 5, 4), ones(1, 1, 2, 4)
    ),
}


@pytest.mark.parametrize("op", WITH_GRAD)
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (3, 4), (1, 2, 3), (1, 1, 2, 3), (1, 1, 3, 4)])
def test_backward_checks_the_upstream_shape(op, shape):
    with pytest.raises(RuntimeError, match=f"^lmul_{op}_bwd: g is "):
        BACKWARD[op](ones(*shape))


@pytest.mark.parametrize("op", WITH_GRAD)
def test_backward_checks_the_upstream_dtype(op):
    shapes = {"bmm": (1, 2, 4), "attention": (1, 1, 2, 4)}
    with pytest.raises(RuntimeError, match=f"^lmul_{op}_bwd: g has dtype Double"):
        BACKWARD[op](ones(*shapes.get(op, (2, 4)), dtype=torch.float64))
