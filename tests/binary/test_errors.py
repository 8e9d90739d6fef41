"""Bad input: the Python functions raise the kind of error that fits, the raw operators and their
fake kernels a RuntimeError; all name the operator and what is wrong."""

import house
import pytest
import torch
from binary_cases import bits, normals

from nnkernels import binary
from nnkernels.binary import reference

OPS = torch.ops.nnkernels
BAD_VALUES = (torch.int64, torch.bool, torch.complex64, torch.float64, torch.int16)
BAD_BITS = (torch.int64, torch.uint8, torch.float32, torch.bool)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def words(*shape):
    return torch.zeros(shape, dtype=torch.int32)


def int8(*shape):
    return ones(*shape, dtype=torch.int8)


# Valid arguments of every operator that takes bits or values.
VALID = {
    "pack": lambda: [ones(3, 40)],
    "pack_rowpop": lambda: [ones(3, 40)],
    "pack_biper": lambda: [ones(3, 40), 20.0],
    "pack_ternary": lambda: [ones(3, 40)],
    "unpack": lambda: [bits(3, 40), 40, torch.float32],
    "popcount": lambda: [bits(3, 40)],
    "matmul": lambda: [bits(3, 40), bits(5, 40), 40],
    "matmul_prepacked": lambda: [bits(3, 40), binary.prepack(bits(5, 40), 40), 5, 40],
    "matmul_sign": lambda: [bits(3, 40), bits(5, 40), 40, words(5), int8(5)],
    "hamming": lambda: [bits(3, 40), bits(5, 40), 40],
    "prepack": lambda: [bits(5, 40), 40],
    "linear": lambda: [ones(3, 40), bits(5, 40), 40],
    "linear_prepacked": lambda: [ones(3, 40), binary.prepack(bits(5, 40), 40), 5, 40],
    "conv2d": lambda: [bits(2, 6, 6, 40), bits(4, 3, 3, 40), 40],
    "conv2d_sign": lambda: [bits(2, 6, 6, 40), bits(4, 3, 3, 40), 40, words(4), int8(4)],
    "conv2d_corr": lambda: [bits(4, 3, 3, 40), 40],
    "maxpool2d": lambda: [bits(2, 6, 6, 40), 2],
    "ternary_matmul": lambda: [bits(3, 40), bits(3, 40), bits(5, 40), bits(5, 40), 40],
    "int8_matmul": lambda: [int8(3, 40), bits(5, 40), 40],
    "planes_matmul": lambda: [bits(2, 3, 40), bits(1, 5, 40), 40],
    "linear_train": lambda: [ones(3, 40), ones(5, 40)],
    "conv2d_train": lambda: [ones(2, 4, 6, 6), ones(3, 4, 3, 3)],
}
# Bits among the arguments of an operator, by position.
BITS = {
    "unpack": [0],
    "popcount": [0],
    "matmul": [0, 1],
    "matmul_prepacked": [0],
    "matmul_sign": [0, 1],
    "hamming": [0, 1],
    "prepack": [0],
    "linear": [1],
    "conv2d": [0, 1],
    "conv2d_sign": [0, 1],
    "conv2d_corr": [0],
    "maxpool2d": [0],
    "ternary_matmul": [0, 1, 2, 3],
    "int8_matmul": [1],
    "planes_matmul": [0, 1],
}
# Where K stands, for the operators whose bits are rows of length K.
LENGTH = {
    "unpack": 1,
    "matmul": 2,
    "matmul_prepacked": 3,
    "matmul_sign": 2,
    "hamming": 2,
    "prepack": 1,
    "linear": 2,
    "ternary_matmul": 4,
    "int8_matmul": 2,
    "planes_matmul": 2,
}
VALUES = ("pack", "pack_rowpop", "pack_biper", "pack_ternary", "linear", "linear_prepacked")
VALUES += ("linear_train", "conv2d_train")


def replaced(op, changes):
    values = VALID[op]()
    for position, value in changes.items():
        values[position] = value
    return values


def case(op, error, message, changes=None, raw=True, **options):
    """`changes` are arguments by position. raw=False: torch itself refuses before the operator."""
    shown = ",".join(f"{k}={v}" for k, v in options.items() if not isinstance(v, torch.Tensor))
    places = ",".join(map(str, changes or ()))
    return pytest.param(
        op, error, message, changes or {}, options, raw, id=f"{op}-{message[:30]}-{places}{shown}"
    )


def dtype_cases():
    for op in VALUES:
        for dtype in BAD_VALUES:
            values = VALID[op]()[0].to(dtype)
            yield case(op, TypeError, "has dtype", {0: values})
    yield case("int8_matmul", TypeError, "x has dtype", {0: ones(3, 40)})
    yield case("linear", TypeError, "x has dtype", {0: int8(3, 40)})
    for op, positions in BITS.items():
        for position in positions:
            for dtype in BAD_BITS:
                bad = VALID[op]()[position].to(dtype)
                yield case(op, TypeError, "has dtype", {position: bad})
    for dtype in (torch.float64, torch.int64, torch.bool, torch.uint8):
        for op in ("matmul", "matmul_prepacked", "conv2d", "int8_matmul"):
            yield case(op, TypeError, "out_dtype is", out_dtype=dtype)
        yield case("unpack", TypeError, "dtype is", {2: dtype})
    yield case("int8_matmul", TypeError, "out_dtype is", out_dtype=torch.int16)


def length_cases():
    for op, place in LENGTH.items():
        # 300 wants 16 words a row where there are 8.
        changes = {place: 300}
        if op in ("linear", "int8_matmul"):
            changes[0] = VALID[op]()[0][:, :1].expand(3, 300)
        yield case(op, ValueError, r"has 8 words a row, expected W\(K\)=16 for K=300", changes)
        for K in (0, -1):
            yield case(op, ValueError, f"K is {K}, expected at least 1", {place: K})
        yield case(op, ValueError, "K is 2147483648, expected at most", {place: 2**31})
        yield case(op, TypeError, "K must be an int", {place: 40.0}, raw=False)
    for op in ("linear", "int8_matmul"):
        yield case(op, ValueError, r"x is \[3, 40\], expected \[..., K\] for K=41", {2: 41})
    yield case("linear_prepacked", ValueError, r"x is \[3, 40\], expected", {3: 41})
    for op in VALUES[:4]:
        yield case(op, ValueError, r"is \[3, 0\], expected \[..., K\]", {0: ones(3, 0)})
        yield case(op, ValueError, r"is \[\], expected \[..., K\]", {0: ones()})
    for op, place in (("matmul", 2), ("matmul_prepacked", 3)):
        K = 32768
        row = words(1, reference.row_words(K))
        changes = {0: row, 1: row if op == "matmul" else VALID[op]()[1], place: K}
        message = "K is 32768, expected at most 32767 for out_dtype int16"
        yield case(op, ValueError, message, changes, out_dtype=torch.int16)
        K = 2**24 + 1
        row = words(1, reference.row_words(K))
        changes = {0: row, 1: row if op == "matmul" else VALID[op]()[1], place: K}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            message = "K is 16777217, expected at most 16777216 for a float out_dtype"
            yield case(op, ValueError, message, changes, out_dtype=dtype)
    K = 2**23 + 1
    changes = {0: int8(1, 1).expand(1, K), 1: words(1, reference.row_words(K)), 2: K}
    yield case("int8_matmul", ValueError, "K is 8388609, expected at most 8388608", changes)
    many = {0: bits(17, 3, 40), 1: bits(16, 5, 40)}
    yield case("planes_matmul", ValueError, "17-bit by 16-bit products over K=40 do not", many)


def shape_cases():
    for op in ("matmul", "hamming"):
        yield case(op, ValueError, r"has 8 words a row", {0: bits(3, 300), 2: 300})
        yield case(op, ValueError, "expected b", {1: bits(2, 5, 40)})
        yield case(op, ValueError, "expected b", {0: bits(3, 3, 40), 1: bits(2, 5, 40)})
        yield case(op, ValueError, "expected b", {0: bits(2, 2, 3, 40), 1: bits(2, 5, 40)})
        yield case(op, ValueError, "expected b", {1: bits(40)})
    yield case("matmul_sign", ValueError, "b is|expected b", {1: bits(2, 5, 40)})
    yield case("prepack", ValueError, r"b is \[2, 5, 8\], expected", {0: bits(2, 5, 40)})
    yield case("linear", ValueError, r"w_bits is \[2, 5, 8\], expected", {1: bits(2, 5, 40)})
    yield case("int8_matmul", ValueError, r"w_bits is \[2, 5, 8\]", {1: bits(2, 5, 40)})
    yield case("ternary_matmul", ValueError, "expected", {1: bits(4, 40)})
    yield case("ternary_matmul", ValueError, "expected", {3: bits(6, 40)})
    yield case("planes_matmul", ValueError, r"a_planes is \[3, 8\]", {0: bits(3, 40)})
    yield case("int8_matmul", ValueError, "w_mask is", w_mask=bits(4, 40))
    yield case("int8_matmul", TypeError, "w_mask has dtype", w_mask=ones(5, 8))


def vector_cases():
    vectors = {
        "matmul": (("row_scale", 3), ("col_scale", 5), ("bias", 5)),
        "matmul_prepacked": (("row_scale", 3), ("col_scale", 5), ("bias", 5)),
        "linear": (("scale", 5), ("bias", 5)),
        "linear_prepacked": (("scale", 5), ("bias", 5)),
        "conv2d": (("scale", 4), ("bias", 4)),
        "int8_matmul": (("row_scale", 3), ("col_scale", 5)),
    }
    for op, named in vectors.items():
        floats = {} if op.startswith("linear") else {"out_dtype": torch.float32}
        for name, size in named:
            message = rf"{name} is \[{size + 1}\], expected \[{size}\]"
            yield case(op, ValueError, message, **{name: ones(size + 1)}, **floats)
            yield case(op, ValueError, f"{name} is", **{name: ones(size, 1)}, **floats)
            for dtype in (torch.float64, torch.bfloat16, torch.int32):
                wrong = ones(size, dtype=dtype)
                yield case(op, TypeError, f"{name} has dtype", **{name: wrong}, **floats)
            if floats:
                message = "a scale or bias needs a float out_dtype"
                yield case(op, ValueError, message, **{name: ones(size)})
    for op, size in (("matmul_sign", 5), ("conv2d_sign", 4)):
        yield case(op, ValueError, "thresh is", {3: words(size + 1)})
        yield case(op, ValueError, "dir is", {4: int8(size - 1)})
        yield case(op, TypeError, "thresh has dtype", {3: ones(size)})
        yield case(op, TypeError, "dir has dtype", {4: words(size)})
    for op in ("matmul", "matmul_prepacked"):
        yield case(op, ValueError, "a_pop is", a_pop=words(4))
        yield case(op, TypeError, "a_pop has dtype", a_pop=ones(3))
    yield case("matmul", ValueError, "b_pop is", b_pop=words(3))
    yield case("conv2d", ValueError, "corr is", corr=words(3, 3, 4))
    yield case("conv2d", TypeError, "corr has dtype", corr=ones(4, 4, 4))


def convolution_cases():
    for op in ("conv2d", "conv2d_sign"):
        bad = case_of_window(op)
        yield bad(ValueError, "not divisible by groups=3", groups=3)
        yield bad(ValueError, "not divisible by groups=0", groups=0)
        yield bad(ValueError, "stride must be", stride=0)
        yield bad(ValueError, "stride must be", stride=(1, -1))
        yield bad(ValueError, "dilation must be", dilation=0)
        yield bad(ValueError, "padding must be", padding=-1)
        yield bad(ValueError, "reaches over 7 pixels, the padded input has 6", dilation=3)
        yield bad(ValueError, "pad_mode must be one of 'zero', 'one', 'minus_one'", pad_mode="x")
        yield bad(ValueError, "words a pixel", {2: 300})
        yield bad(ValueError, "words a pixel", groups=2)
        yield bad(ValueError, "C is 0|not divisible", {2: 0})
        yield bad(ValueError, r"x is \[2, 6, 8\]", {0: bits(2, 6, 40)})
        yield bad(ValueError, r"w is \[4, 3, 8\]", {1: bits(4, 3, 40)})
    for message, options in (
        ("not divisible by groups=3", {"groups": 3}),
        ("stride must be", {"stride": 0}),
        ("padding must be", {"padding": -1}),
        ("dilation must be", {"dilation": 0}),
        ("reaches over 7 pixels", {"dilation": 3}),
        ("pad_mode must be one of", {"pad_mode": "same"}),
        ("surrogate must be one of", {"surrogate": "sign"}),
    ):
        yield case("conv2d_train", ValueError, message, **options)
    yield case("conv2d_train", ValueError, "channels", {1: ones(3, 5, 3, 3)})
    yield case("conv2d_train", ValueError, r"x is \[2, 4, 6\]", {0: ones(2, 4, 6)})
    yield case("conv2d_corr", ValueError, "w is", {0: bits(4, 3, 40)})
    yield case("conv2d_corr", ValueError, "not divisible", groups=3)
    yield case("conv2d_corr", ValueError, "words a row|w is", {1: 300})
    yield case("maxpool2d", ValueError, "bits is", {0: bits(2, 6, 40)})
    yield case("maxpool2d", ValueError, "kernel_size must be", {1: 0})
    yield case("maxpool2d", ValueError, "kernel_size 7 exceeds the padded input of 6", {1: 7})
    yield case("maxpool2d", ValueError, "stride must be", stride=0)
    yield case("maxpool2d", ValueError, "padding must be", padding=-1)
    yield case("maxpool2d", ValueError, "padding 2 is more than half of", padding=2)


def case_of_window(op):
    def bad(error, message, changes=None, **options):
        return case(op, error, message, changes, **options)

    return bad


def other_cases():
    for omega in (0.0, -1.0, float("nan"), float("inf"), 1e39):
        yield case("pack_biper", ValueError, "omega must be finite and positive", {1: omega})
    yield case("pack_biper", TypeError, "omega must be a number", {1: "20"}, raw=False)
    for op in ("linear_train", "conv2d_train"):
        size = 5 if op == "linear_train" else 3
        yield case(op, ValueError, "surrogate must be one of 'ste', 'approxsign'", surrogate="x")
        yield case(op, ValueError, "alpha is", alpha=ones(size + 1))
        yield case(op, TypeError, "alpha has dtype", alpha=ones(size).double())
        yield case(op, ValueError, "bias is", bias=ones(size, 1))
        yield case(op, TypeError, "omega has dtype", omega=torch.tensor(20))
        yield case(op, ValueError, "omega is", omega=ones(2))
        yield case(op, TypeError, "w has dtype", {1: VALID[op]()[1].double()})
    yield case("linear_train", ValueError, r"x is \[3, 40\] and w is \[5, 41\]", {1: ones(5, 41)})
    for op, position in (("matmul_prepacked", 1), ("linear_prepacked", 1)):
        yield case(op, TypeError, "packed", {position: ones(64)})
        yield case(op, ValueError, "packed", {position: ones(8, 8, dtype=torch.uint8)})


CASES = [
    *dtype_cases(),
    *length_cases(),
    *shape_cases(),
    *vector_cases(),
    *convolution_cases(),
    *other_cases(),
]
RAW_CASES = [entry for entry in CASES if entry.values[-1]]


def parametrized(cases):
    names = ("op", "error", "message", "changes", "options", "raw")
    return pytest.mark.parametrize(names, cases)


@parametrized(CASES)
def test_function(op, error, message, changes, options, raw):
    with pytest.raises(error, match=f"^binary_{op}: .*({message})"):
        getattr(binary, op)(*replaced(op, changes), **options)


@parametrized(RAW_CASES)
def test_raw_operator(op, error, message, changes, options, raw):
    with pytest.raises(RuntimeError) as caught:
        getattr(OPS, f"binary_{op}")(*replaced(op, changes), **options)
    assert type(caught.value) is RuntimeError
    assert str(caught.value).startswith(f"binary_{op}: ")


@parametrized(RAW_CASES)
def test_fake_kernel_refuses_what_the_real_one_refuses(op, error, message, changes, options, raw):
    def fake(value):
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    values = [fake(value) for value in replaced(op, changes)]
    options = {key: fake(value) for key, value in options.items()}
    with pytest.raises(RuntimeError, match=f"binary_{op}: "):
        getattr(OPS, f"binary_{op}")(*values, **options)


@pytest.mark.parametrize("op", VALID)
def test_not_a_tensor(op):
    with pytest.raises(TypeError, match=f"^binary_{op}: .* must be a tensor, got list"):
        getattr(binary, op)(*replaced(op, {0: [1.0]}))


@pytest.mark.parametrize("op", [op for op in VALID if isinstance(VALID[op]()[1:2], list)])
def test_different_devices(op):
    values = VALID[op]()
    tensors = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
    for position in tensors[1:]:
        moved = replaced(op, {position: values[position].to("meta")})
        with pytest.raises(
            ValueError, match=f"^binary_{op}: .* is on (meta and .* on cpu|cpu and .* on meta)"
        ):
            getattr(binary, op)(*moved)
        with pytest.raises(RuntimeError):
            getattr(OPS, f"binary_{op}")(*moved)


@pytest.mark.gpu
def test_cuda_tensors_are_refused():
    with pytest.raises(RuntimeError, match="binary_pack: there is no GPU kernel"):
        binary.pack(ones(3, 40).cuda())


# ---- what only the values show ----


@pytest.mark.parametrize("at", [(0, 0), (1, 33), (2, 299)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan(isa, at, dtype):
    x = ones(3, 300, dtype=dtype)
    x[at] = x[2, 299] = float("nan")
    message = rf"x is NaN at \[{at[0]}, {at[1]}\]"
    for function in ("pack", "pack_rowpop"):
        with pytest.raises(ValueError, match=f"^binary_{function}: {message}"):
            getattr(binary, function)(x, check_nan=True)
        with pytest.raises(RuntimeError, match=f"^binary_{function}: {message}") as caught:
            getattr(OPS, f"binary_{function}")(x, check_nan=True)
        assert type(caught.value) is RuntimeError
    binary.pack(ones(3, 300), check_nan=True)
    binary.pack(int8(3, 300), check_nan=True)
    with pytest.raises(ValueError, match=rf"^binary_binarize: {message}"):
        binary.binarize(x, check_nan=True)
    # In the index of the tensor as it is, whatever its strides.
    with pytest.raises(ValueError, match=rf"x is NaN at \[{at[1]}, {at[0]}\]"):
        binary.pack(
            torch.where(torch.arange(900).view(3, 300) == 300 * at[0] + at[1], x, 1).mT,
            check_nan=True,
        )


def test_beyond_the_domain_of_the_square_wave(isa):
    w = normals(3, 300)
    binary.pack_biper(w, 20.0, check=True)
    for value in (2.0**17, float("inf"), float("nan")):
        w[1, 7] = value
        for stage in (1, 2):
            with pytest.raises(ValueError, match=r"\|omega \* w\| exceeds 2\^20 .*\[1, 7\]"):
                binary.biper(w, 20.0, stage=stage, check=True)
        message = r"^binary_pack_biper: \|omega \* w\| exceeds 2\^20 or is NaN at \[1, 7\]"
        with pytest.raises(ValueError, match=message):
            binary.pack_biper(w, 20.0, check=True)
        with pytest.raises(RuntimeError, match=message):
            OPS.binary_pack_biper(w, 20.0, check=True)
    edge = torch.tensor([2.0**20, -(2.0**20)])
    binary.pack_biper(edge, 1.0, check=True)


@pytest.mark.parametrize("operand", ["a", "b"])
@pytest.mark.parametrize("row", [0, 4])
def test_set_pad_bits(operand, row):
    K = 300
    values = {"a": bits(5, K), "b": bits(5, K, seed=1)}
    binary.matmul(values["a"], values["b"], K, check_padding=True)
    values[operand][row, K // 32] |= 1 << (K % 32)
    message = f"^binary_matmul: {operand} has a set pad bit in row {row}, expected 0 beyond K=300"
    with pytest.raises(ValueError, match=message):
        binary.matmul(values["a"], values["b"], K, check_padding=True)
    with pytest.raises(RuntimeError, match=message):
        OPS.binary_matmul(values["a"], values["b"], K, check_padding=True)
    last = bits(5, K)
    last[4, -1] = -(2**31)
    with pytest.raises(ValueError, match="a has a set pad bit in row 4"):
        binary.matmul(last, values["b"], K, check_padding=True)
    # Rows of all batches are counted on.
    with pytest.raises(ValueError, match="a has a set pad bit in row 9"):
        binary.matmul(torch.stack([bits(5, K), last]), bits(2, 5, K), K, check_padding=True)


PREPACKED = {
    "matmul_prepacked": lambda packed, N, K: (bits(3, K), packed, N, K),
    "linear_prepacked": lambda packed, N, K: (ones(3, K), packed, N, K),
}


@pytest.mark.parametrize("op", PREPACKED)
def test_prepacked_of_another_shape(op):
    packed = binary.prepack(bits(5, 40), 40)
    for N, K in ((6, 40), (5, 41), (5, 300)):
        message = rf"holds N=5, K=40, but the call has N={N}, K={K}"
        with pytest.raises(ValueError, match=f"^binary_{op}: ._packed {message}"):
            getattr(binary, op)(*PREPACKED[op](packed, N, K))
        with pytest.raises(RuntimeError, match=f"^binary_{op}: ._packed {message}") as caught:
            getattr(OPS, f"binary_{op}")(*PREPACKED[op](packed, N, K))
        assert type(caught.value) is RuntimeError


@pytest.mark.parametrize("op", PREPACKED)
@pytest.mark.parametrize("change", ["empty", "cut", "garbage", "version", "backend", "huge"])
def test_prepacked_by_another_version_or_backend(op, change):
    packed = binary.prepack(bits(5, 40), 40)
    if change == "empty":
        packed = packed[:0]
    elif change == "cut":
        packed = packed[:-1].clone()
    elif change == "garbage":
        packed = torch.randint(0, 256, packed.shape, dtype=torch.uint8)
    elif change == "version":
        packed[8] += 1
    elif change == "backend":
        packed[0] += 1
    else:
        # N of the header is beyond every memory.
        packed[22] = 255
    message = "was not made by binary_prepack of this version for this backend"
    with pytest.raises(ValueError, match=f"^binary_{op}: ._packed {message}"):
        getattr(binary, op)(*PREPACKED[op](packed, 5, 40))


# ---- gradients ----


def test_bits_cannot_require_a_gradient():
    with pytest.raises(RuntimeError, match="require gradients"):
        bits(3, 40).requires_grad_()


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("matmul", "row_scale"),
        ("matmul", "col_scale"),
        ("matmul", "bias"),
        ("matmul_prepacked", "bias"),
        ("linear", "x"),
        ("linear", "scale"),
        ("linear_prepacked", "x"),
        ("linear_prepacked", "bias"),
        ("conv2d", "scale"),
        ("int8_matmul", "col_scale"),
    ],
)
def test_products_of_bits_refuse_gradients(op, name):
    values = VALID[op]()
    options = {} if op.startswith("linear") else {"out_dtype": torch.float32}
    if name == "x":
        values[0].requires_grad_()
    else:
        sizes = {"row_scale": 3, "scale": 4 if op == "conv2d" else 5}
        options[name] = ones(sizes.get(name, 5)).requires_grad_()
    message = f"^binary_{op}: an input requires a gradient"
    for function in (getattr(binary, op), getattr(OPS, f"binary_{op}")):
        with pytest.raises(RuntimeError, match=message):
            function(*values, **options)
        with torch.no_grad():
            function(*values, **options)


# ---- backward operators ----


def kept(op):
    with torch.no_grad():
        return getattr(OPS, f"binary_{op}_fwd")(*VALID[op]())


@pytest.mark.parametrize("op", ["linear_train", "conv2d_train"])
def test_backward_checks_what_it_gets(op):
    out, *bits_of = kept(op)
    backward = getattr(OPS, f"binary_{op}_bwd")
    extent = {"K": 40} if op == "linear_train" else {"C": 4}
    g = torch.ones_like(out)
    backward(g, *bits_of, None, **extent)
    name = f"^binary_{op}_bwd: "
    with pytest.raises(RuntimeError, match=f"{name}g is "):
        backward(g[:1], *bits_of, None, **extent)
    with pytest.raises(RuntimeError, match=f"{name}g has dtype Double"):
        backward(g.double(), *bits_of, None, **extent)
    with pytest.raises(RuntimeError, match=name):
        backward(g, bits_of[0][..., :4], *bits_of[1:], None, **extent)
    with pytest.raises(RuntimeError, match=f"{name}x_inside"):
        backward(g, bits_of[0], bits_of[1][:1], bits_of[2], None, **extent)
    with pytest.raises(RuntimeError, match=f"{name}alpha is"):
        backward(g, *bits_of, ones(2), **extent)


def test_an_error_inside_the_pool_keeps_its_text():
    x = normals(400, 4000)
    x[399, 3999] = float("nan")
    with house.threads(2), pytest.raises(ValueError, match=r"x is NaN at \[399, 3999\]"):
        binary.pack(x, check_nan=True)


# ---- kinds of tensors and of derivatives ----


def test_tensors_that_are_not_dense():
    with pytest.raises(
        TypeError, match=r"^binary_pack: x is a sparse_coo tensor, expected a dense"
    ):
        binary.pack(ones(3, 40).to_sparse())
    with pytest.raises(TypeError, match=r"^binary_linear_train: w is a sparse_coo tensor"):
        binary.linear_train(ones(3, 40), ones(5, 40).to_sparse())


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("linear_train", lambda x: binary.linear_train(x, ones(5, 40))),
        ("linear", lambda x: binary.linear(x, bits(5, 40), 40)),
        ("binarize", lambda x: binary.binarize(x)),
    ],
)
def test_forward_mode_is_refused(op, function):
    with pytest.raises(NotImplementedError, match=f"binary_{op}: forward-mode"):
        torch.func.jvp(function, (ones(3, 40),), (ones(3, 40),))
    if op != "linear":
        with pytest.raises(NotImplementedError, match=f"binary_{op}: the transforms of torch.func"):
            torch.func.grad(lambda x: function(x).sum())(ones(3, 40))
