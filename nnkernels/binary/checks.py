"""What the binary operators accept, and the shape and dtype of what they return.

The public functions call `check_*` before any kernel, the fake kernels before they promise a
result. Errors are TypeError (kind, dtype) or ValueError (value, shape).
"""

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.binary.reference import row_words

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
VALUES = (*FLOATS, torch.int8)
BITS = (torch.int32,)
RESULTS = (torch.int32, torch.int16, *FLOATS)
UNPACKED = (*FLOATS, torch.int8, torch.int16, torch.int32)

PAD_MODES = ("zero", "one", "minus_one")
SURROGATES = ("ste", "approxsign", "identity")
STAGES = (1, 2)

MAX_K = 2**31 - 1
# Sums that float32 holds exactly, that int16 holds, and of int8 values that int32 holds.
MAX_FLOAT_K = 2**24
MAX_INT16_K = 32767
MAX_INT8_K = 2**23
# |omega * w| up to which the square wave is defined.
MAX_PHASE = 2.0**20
MAX_OMEGA = torch.finfo(torch.float32).max


# ---- lengths, scalars ----


def check_length(op, K, largest=MAX_K, why="bits a row", name="K"):
    _checks.integer(op, name, K)
    if K < 1:
        raise ValueError(f"{op}: {name} is {K}, expected at least 1")
    if largest < K:
        raise ValueError(f"{op}: {name} is {K}, expected at most {largest} {why}")


def check_omega(op, omega):
    _checks.real(op, "omega", omega)
    # NaN fails every comparison.
    if not 0 < omega <= MAX_OMEGA:
        raise ValueError(f"{op}: omega must be finite and positive, got {omega}")


def check_stage(op, stage):
    _checks.choice(op, "stage", stage, STAGES)


def check_surrogate(op, surrogate):
    _checks.choice(op, "surrogate", surrogate, SURROGATES)


def check_pad_mode(op, pad_mode):
    _checks.choice(op, "pad_mode", pad_mode, PAD_MODES)


def pair(op, name, value, least):
    """An int or two of them, as two."""
    values = tuple(value) if isinstance(value, list | tuple) else (value, value)
    for each in values:
        _checks.integer(op, name, each)
    if len(values) != 2 or any(each < least for each in values):
        raise ValueError(
            f"{op}: {name} must be an int or two, each at least {least}, got {value!r}"
        )
    return values


# ---- tensors ----


def check_bits(op, name, bits, K):
    """A bits tensor [..., W(K)]."""
    _checks.tensor(op, name, bits, BITS)
    if bits.dim() < 1 or bits.shape[-1] != row_words(K):
        words = bits.shape[-1] if bits.dim() else 0
        raise ValueError(
            f"{op}: {name} has {words} words a row, expected W(K)={row_words(K)} for K={K}; pass "
            "the K it was packed with"
        )


def check_vector(op, name, value, sizes, first_name, first, dtypes=(torch.float32,)):
    """An optional tensor of exactly these sizes."""
    if value is None:
        return
    _checks.tensor(op, name, value, dtypes)
    _checks.same_device(op, name, value, first_name, first)
    if value.shape != torch.Size(sizes):
        raise ValueError(f"{op}: {name} is {_checks.shape(value)}, expected {list(sizes)}")


def check_pair(op, a_name, a, b_name, b, K):
    """Bits a [..., M, W(K)] and b [N, W(K)], or b [..., N, W(K)] with the batch of a."""
    check_bits(op, a_name, a, K)
    check_bits(op, b_name, b, K)
    _checks.same_device(op, b_name, b, a_name, a)
    if b.dim() != 2 and (a.dim() < 3 or b.dim() < 3 or a.shape[:-2] != b.shape[:-2]):
        raise ValueError(
            f"{op}: {a_name} is {_checks.shape(a)} and {b_name} is {_checks.shape(b)}, expected "
            f"{b_name} [N, W(K)], or [batch, N, W(K)] with the batch of {a_name}"
        )


def check_2d(op, name, bits):
    if bits.dim() != 2:
        raise ValueError(f"{op}: {name} is {_checks.shape(bits)}, expected [N, W(K)]")


def check_packed(op, name, packed, first_name, first):
    _checks.tensor(op, name, packed, (torch.uint8,))
    _checks.same_device(op, name, packed, first_name, first)
    if packed.dim() != 1 or not packed.is_contiguous():
        raise ValueError(
            f"{op}: {name} is {_checks.shape(packed)}, expected the 1-D contiguous tensor that "
            "prepack returned"
        )


def packed_size(N, K):
    """The bytes of a prepacked weight: the format of csrc/binary/cpu/prepack.cpp."""
    header, panel, chunk = 64, 64, 120
    slices = (N + panel - 1) // panel * ((K + chunk - 1) // chunk) * chunk
    return header + 4 * N * row_words(K) + 8 * slices


def result_dtype(op, out_dtype, K, scaled, dtypes=RESULTS):
    """The dtype of a product of length K, which must hold every sum exactly."""
    dtype = torch.int32 if out_dtype is None else out_dtype
    if dtype not in dtypes:
        _checks.out_dtype(op, dtype, dtypes)
    if scaled and not dtype.is_floating_point:
        raise ValueError(
            f"{op}: a scale or bias needs a float out_dtype, got {_checks.short(dtype)}"
        )
    check_length(op, K, MAX_K, "for 32-bit sums")
    if dtype == torch.int16:
        check_length(op, K, MAX_INT16_K, "for out_dtype int16")
    if dtype.is_floating_point:
        check_length(op, K, MAX_FLOAT_K, "for a float out_dtype")
    return dtype


# ---- one check per operator ----


def check_pack(op, x, name="x", dtypes=VALUES):
    _checks.tensor(op, name, x, dtypes)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(
            f"{op}: {name} is {_checks.shape(x)}, expected [..., K] with K of at least 1"
        )
    check_length(op, x.shape[-1])


def check_popcount(op, t):
    _checks.tensor(op, "t", t, BITS)


def check_pack_biper(op, w, omega):
    check_pack(op, w, "w", FLOATS)
    check_omega(op, omega)


def check_unpack(op, bits, K, dtype):
    check_length(op, K)
    check_bits(op, "bits", bits, K)
    if dtype not in UNPACKED:
        raise TypeError(
            f"{op}: dtype is {_checks.short(dtype)}, expected one of "
            f"{', '.join(map(_checks.short, UNPACKED))}"
        )


def check_matmul(
    op,
    a,
    b,
    K,
    *,
    row_scale=None,
    col_scale=None,
    bias=None,
    out_dtype=None,
    a_pop=None,
    b_pop=None,
    check_padding=False,
):
    scaled = any(value is not None for value in (row_scale, col_scale, bias))
    result_dtype(op, out_dtype, K, scaled)
    check_pair(op, "a", a, "b", b, K)
    check_vector(op, "row_scale", row_scale, a.shape[:-1], "a", a)
    check_vector(op, "col_scale", col_scale, (b.shape[-2],), "a", a)
    check_vector(op, "bias", bias, (b.shape[-2],), "a", a)
    check_vector(op, "a_pop", a_pop, a.shape[:-1], "a", a, BITS)
    check_vector(op, "b_pop", b_pop, b.shape[:-1], "a", a, BITS)


def check_matmul_prepacked(
    op, a, b_packed, N, K, *, row_scale=None, col_scale=None, bias=None, out_dtype=None, a_pop=None
):
    scaled = any(value is not None for value in (row_scale, col_scale, bias))
    result_dtype(op, out_dtype, K, scaled)
    check_length(op, N, name="N")
    check_bits(op, "a", a, K)
    check_packed(op, "b_packed", b_packed, "a", a)
    check_vector(op, "row_scale", row_scale, a.shape[:-1], "a", a)
    check_vector(op, "col_scale", col_scale, (N,), "a", a)
    check_vector(op, "bias", bias, (N,), "a", a)
    check_vector(op, "a_pop", a_pop, a.shape[:-1], "a", a, BITS)


def check_threshold(op, thresh, dir, N, first_name, first):
    for name, value, dtype in (("thresh", thresh, torch.int32), ("dir", dir, torch.int8)):
        _checks.tensor(op, name, value, (dtype,))
        check_vector(op, name, value, (N,), first_name, first, (dtype,))


def check_matmul_sign(op, a, b, K, thresh, dir):
    check_length(op, K)
    check_pair(op, "a", a, "b", b, K)
    check_2d(op, "b", b)
    check_threshold(op, thresh, dir, b.shape[0], "a", a)


def check_hamming(op, a, b, K):
    check_length(op, K)
    check_pair(op, "a", a, "b", b, K)


def check_prepack(op, b, K):
    check_length(op, K)
    check_bits(op, "b", b, K)
    check_2d(op, "b", b)


def _check_linear_x(op, x, K, dtypes=FLOATS, largest=MAX_FLOAT_K, why="for a float result"):
    _checks.tensor(op, "x", x, dtypes)
    check_length(op, K, largest, why)
    if x.dim() < 1 or x.shape[-1] != K:
        raise ValueError(f"{op}: x is {_checks.shape(x)}, expected [..., K] for K={K}")


def check_linear(op, x, w_bits, K, *, scale=None, bias=None):
    _check_linear_x(op, x, K)
    check_bits(op, "w_bits", w_bits, K)
    _checks.same_device(op, "w_bits", w_bits, "x", x)
    check_2d(op, "w_bits", w_bits)
    check_vector(op, "scale", scale, (w_bits.shape[0],), "x", x)
    check_vector(op, "bias", bias, (w_bits.shape[0],), "x", x)


def check_linear_prepacked(op, x, w_packed, N, K, *, scale=None, bias=None):
    _check_linear_x(op, x, K)
    check_length(op, N, name="N")
    check_packed(op, "w_packed", w_packed, "x", x)
    check_vector(op, "scale", scale, (N,), "x", x)
    check_vector(op, "bias", bias, (N,), "x", x)


def check_ternary_matmul(op, a_mask, a_sign, b_mask, b_sign, K):
    check_length(op, K)
    check_pair(op, "a_mask", a_mask, "b_mask", b_mask, K)
    check_pair(op, "a_sign", a_sign, "b_sign", b_sign, K)
    _checks.same_device(op, "a_sign", a_sign, "a_mask", a_mask)
    for mask, sign in ((a_mask, a_sign), (b_mask, b_sign)):
        if mask.shape != sign.shape:
            raise ValueError(
                f"{op}: a mask is {_checks.shape(mask)} and its sign {_checks.shape(sign)}, "
                "expected equal shapes"
            )


def check_int8_matmul(
    op, x, w_bits, K, *, w_mask=None, row_scale=None, col_scale=None, out_dtype=None
):
    scaled = row_scale is not None or col_scale is not None
    result_dtype(op, out_dtype, K, scaled, (torch.int32, *FLOATS))
    _check_linear_x(op, x, K, (torch.int8,), MAX_INT8_K, "for int8 sums in 32 bits")
    check_bits(op, "w_bits", w_bits, K)
    _checks.same_device(op, "w_bits", w_bits, "x", x)
    check_2d(op, "w_bits", w_bits)
    if w_mask is not None:
        check_vector(op, "w_mask", w_mask, w_bits.shape, "x", x, BITS)
    check_vector(op, "row_scale", row_scale, x.shape[:-1], "x", x)
    check_vector(op, "col_scale", col_scale, (w_bits.shape[0],), "x", x)


def check_planes_matmul(op, a_planes, b_planes, K):
    check_length(op, K)
    check_bits(op, "a_planes", a_planes, K)
    check_bits(op, "b_planes", b_planes, K)
    _checks.same_device(op, "b_planes", b_planes, "a_planes", a_planes)
    if a_planes.dim() != 3 or b_planes.dim() != 3:
        raise ValueError(
            f"{op}: a_planes is {_checks.shape(a_planes)} and b_planes is "
            f"{_checks.shape(b_planes)}, expected [planes, rows, W(K)] each"
        )
    planes = a_planes.shape[0], b_planes.shape[0]
    if min(planes) < 1 or sum(planes) > 32 or MAX_K >> (sum(planes) - 2) < K:
        raise ValueError(
            f"{op}: sums of {planes[0]}-bit by {planes[1]}-bit products over K={K} do not fit "
            "32 bits"
        )


def window(op, image, C, kernel, stride, padding, dilation, groups, pad_mode):
    """Checks a convolution of an image (H, W) and gives the size (OH, OW) of its result.

    `kernel` is (O, KH, KW).
    """
    stride = pair(op, "stride", stride, 1)
    padding = pair(op, "padding", padding, 0)
    dilation = pair(op, "dilation", dilation, 1)
    check_groups(op, C, kernel[0], groups)
    check_pad_mode(op, pad_mode)
    sizes = []
    for d in range(2):
        reach, padded = dilation[d] * (kernel[1 + d] - 1) + 1, image[d] + 2 * padding[d]
        if kernel[1 + d] < 1 or reach > padded:
            raise ValueError(
                f"{op}: the kernel reaches over {reach} pixels, the padded input has {padded}"
            )
        sizes.append((padded - reach) // stride[d] + 1)
    return tuple(sizes)


def check_groups(op, C, O, groups):  # noqa: E741
    check_length(op, C, name="C")
    _checks.integer(op, "groups", groups)
    if groups < 1 or C % groups or O % groups:
        raise ValueError(f"{op}: C={C} and O={O} are not divisible by groups={groups}")


def check_conv2d(op, x, w, C, stride, padding, dilation, groups, pad_mode, corr=None):
    """Bits x [batch, H, W, groups * W(C / groups)] and w [O, KH, KW, W(C / groups)].

    Returns the size (OH, OW) of the result.
    """
    _checks.tensor(op, "x", x, BITS)
    _checks.tensor(op, "w", w, BITS)
    _checks.same_device(op, "w", w, "x", x)
    if x.dim() != 4 or w.dim() != 4:
        raise ValueError(
            f"{op}: x is {_checks.shape(x)} and w is {_checks.shape(w)}, expected x "
            "[batch, H, W, groups * W(C / groups)] and w [O, KH, KW, W(C / groups)]"
        )
    sizes = window(op, x.shape[1:3], C, w.shape[:3], stride, padding, dilation, groups, pad_mode)
    words = row_words(C // groups)
    if x.shape[3] != groups * words or w.shape[3] != words:
        raise ValueError(
            f"{op}: x has {x.shape[3]} words a pixel and w has {w.shape[3]}, expected "
            f"{groups * words} and {words} for C={C} in {groups} groups"
        )
    corr_sizes = (w.shape[1] + 1, w.shape[2] + 1, w.shape[0])
    check_vector(op, "corr", corr, corr_sizes, "x", x, BITS)
    return sizes


def check_conv2d_result(op, x, w, channels, scale, bias, out_dtype):
    """Scales and dtype of a convolution's result; returns the dtype."""
    check_vector(op, "scale", scale, w.shape[:1], "x", x)
    check_vector(op, "bias", bias, w.shape[:1], "x", x)
    scaled = scale is not None or bias is not None
    return result_dtype(op, out_dtype, channels * w.shape[1] * w.shape[2], scaled)


def check_conv2d_corr(op, w, C, groups):
    _checks.tensor(op, "w", w, BITS)
    if w.dim() != 4:
        raise ValueError(f"{op}: w is {_checks.shape(w)}, expected [O, KH, KW, W(C / groups)]")
    check_groups(op, C, w.shape[0], groups)
    if 0 in w.shape[1:3]:
        raise ValueError(f"{op}: w is {_checks.shape(w)}, expected kernel sizes of at least 1")
    check_bits(op, "w", w, C // groups)


def check_maxpool2d(op, bits, kernel_size, stride, padding):
    """Returns the size (OH, OW) of the result."""
    _checks.tensor(op, "bits", bits, BITS)
    if bits.dim() != 4:
        raise ValueError(f"{op}: bits is {_checks.shape(bits)}, expected [batch, H, W, words]")
    kernel = pair(op, "kernel_size", kernel_size, 1)
    step = kernel if stride is None or stride == [] else pair(op, "stride", stride, 1)
    margin = pair(op, "padding", padding, 0)
    sizes = []
    for d in range(2):
        padded = bits.shape[1 + d] + 2 * margin[d]
        if 2 * margin[d] > kernel[d]:
            raise ValueError(
                f"{op}: padding {margin[d]} is more than half of kernel_size {kernel[d]}"
            )
        if kernel[d] > padded:
            raise ValueError(
                f"{op}: kernel_size {kernel[d]} exceeds the padded input of {padded} pixels"
            )
        sizes.append((padded - kernel[d]) // step[d] + 1)
    return tuple(sizes)


# ---- training ----


def _check_latent(op, x, w, alpha, bias, omega, surrogate):
    for name, value in (("x", x), ("w", w)):
        _checks.tensor(op, name, value, FLOATS)
    _checks.same_device(op, "w", w, "x", x)
    check_surrogate(op, surrogate)
    if omega is not None:
        _checks.tensor(op, "omega", omega, (torch.float32,))
        _checks.same_device(op, "omega", omega, "x", x)
        if omega.numel() != 1:
            raise ValueError(f"{op}: omega is {_checks.shape(omega)}, expected one number")


def check_linear_train(op, x, w, alpha=None, bias=None, omega=None, *, surrogate="ste"):
    _check_latent(op, x, w, alpha, bias, omega, surrogate)
    if x.dim() < 1 or w.dim() != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"{op}: x is {_checks.shape(x)} and w is {_checks.shape(w)}, expected x [..., K] and "
            "w [N, K]"
        )
    check_length(op, w.shape[1], MAX_FLOAT_K, "for a float result")
    check_vector(op, "alpha", alpha, w.shape[:1], "x", x)
    check_vector(op, "bias", bias, w.shape[:1], "x", x)


def check_conv2d_train(
    op,
    x,
    w,
    alpha=None,
    bias=None,
    omega=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    pad_mode="zero",
    *,
    surrogate="ste",
):
    """Returns the size (OH, OW) of the result."""
    _check_latent(op, x, w, alpha, bias, omega, surrogate)
    if x.dim() != 4 or w.dim() != 4:
        raise ValueError(
            f"{op}: x is {_checks.shape(x)} and w is {_checks.shape(w)}, expected x "
            "[batch, C, H, W] and w [O, C / groups, KH, KW]"
        )
    C, kernel = x.shape[1], (w.shape[0], *w.shape[2:])
    sizes = window(op, x.shape[2:], C, kernel, stride, padding, dilation, groups, pad_mode)
    if w.shape[1] != C // groups:
        raise ValueError(
            f"{op}: x is {_checks.shape(x)} and w is {_checks.shape(w)}, expected {C // groups} "
            f"channels of w in {groups} groups"
        )
    K = w.shape[1] * w.shape[2] * w.shape[3]
    check_length(op, K, MAX_FLOAT_K, "for a float result")
    check_vector(op, "alpha", alpha, w.shape[:1], "x", x)
    check_vector(op, "bias", bias, w.shape[:1], "x", x)
    return sizes


# Why products of bits refuse inputs that require a gradient.
NO_GRADIENT = (
    "use linear_train, conv2d_train or a module for products of bits, detach the inputs or call "
    "under torch.no_grad()"
)


def refuse_gradients(op, *values: Tensor | None):
    _checks.refuse_gradients(op, NO_GRADIENT, *values)
