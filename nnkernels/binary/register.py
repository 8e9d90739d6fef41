"""Fake kernels and autograd of the binary operators, whose schemas and CPU kernels are C++."""

import torch

from nnkernels import _checks
from nnkernels._registration import register_fake
from nnkernels.binary import checks
from nnkernels.binary.reference import row_words

_ops = torch.ops.nnkernels
_library = torch.library.Library("nnkernels", "FRAGMENT")

# ---- fake kernels ----


def _bits(x, K):
    return x.new_empty((*x.shape[:-1], row_words(K)), dtype=torch.int32)


def _pack(x, *, check_nan=False):
    checks.check_pack("binary_pack", x)
    return _bits(x, x.shape[-1])


def _pack_rowpop(x, *, check_nan=False):
    checks.check_pack("binary_pack_rowpop", x)
    return _bits(x, x.shape[-1]), x.new_empty(x.shape[:-1], dtype=torch.int32)


def _unpack(bits, K, dtype):
    checks.check_unpack("binary_unpack", bits, K, dtype)
    return bits.new_empty((*bits.shape[:-1], K), dtype=dtype)


def _pack_biper(w, omega, *, check=False):
    checks.check_pack_biper("binary_pack_biper", w, omega)
    return _bits(w, w.shape[-1])


def _pack_ternary(t):
    checks.check_pack("binary_pack_ternary", t, "t")
    return _bits(t, t.shape[-1]), _bits(t, t.shape[-1])


def _popcount(t):
    checks.check_popcount("binary_popcount", t)
    return t.new_empty(t.shape)


def _matmul(a, b, K, *, out_dtype=None, **options):
    checks.check_matmul("binary_matmul", a, b, K, out_dtype=out_dtype, **options)
    return a.new_empty((*a.shape[:-1], b.shape[-2]), dtype=out_dtype or torch.int32)


def _matmul_prepacked(a, b_packed, N, K, *, out_dtype=None, **options):
    name = "binary_matmul_prepacked"
    checks.check_matmul_prepacked(name, a, b_packed, N, K, out_dtype=out_dtype, **options)
    return a.new_empty((*a.shape[:-1], N), dtype=out_dtype or torch.int32)


def _matmul_sign(a, b, K, thresh, dir):
    checks.check_matmul_sign("binary_matmul_sign", a, b, K, thresh, dir)
    return _bits(a, b.shape[0])


def _hamming(a, b, K):
    checks.check_hamming("binary_hamming", a, b, K)
    return a.new_empty((*a.shape[:-1], b.shape[-2]))


def _prepack(b, K):
    checks.check_prepack("binary_prepack", b, K)
    return b.new_empty((checks.packed_size(b.shape[0], K),), dtype=torch.uint8)


def _linear(x, w_bits, K, **options):
    checks.check_linear("binary_linear", x, w_bits, K, **options)
    return x.new_empty((*x.shape[:-1], w_bits.shape[0]))


def _linear_prepacked(x, w_packed, N, K, **options):
    checks.check_linear_prepacked("binary_linear_prepacked", x, w_packed, N, K, **options)
    return x.new_empty((*x.shape[:-1], N))


def _conv2d(
    x,
    w,
    C,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    pad_mode="zero",
    *,
    corr=None,
    scale=None,
    bias=None,
    out_dtype=None,
    nchw=False,
):
    name = "binary_conv2d"
    sizes = checks.check_conv2d(name, x, w, C, stride, padding, dilation, groups, pad_mode, corr)
    dtype = checks.check_conv2d_result(name, x, w, C // groups, scale, bias, out_dtype)
    shape = (x.shape[0], w.shape[0], *sizes) if nchw else (x.shape[0], *sizes, w.shape[0])
    return x.new_empty(shape, dtype=dtype)


def _conv2d_sign(
    x,
    w,
    C,
    thresh,
    dir,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    pad_mode="zero",
    *,
    corr=None,
):
    name = "binary_conv2d_sign"
    sizes = checks.check_conv2d(name, x, w, C, stride, padding, dilation, groups, pad_mode, corr)
    checks.check_threshold(name, thresh, dir, w.shape[0], "x", x)
    return x.new_empty((x.shape[0], *sizes, row_words(w.shape[0])))


def _conv2d_corr(w, C, groups=1):
    checks.check_conv2d_corr("binary_conv2d_corr", w, C, groups)
    return w.new_empty((w.shape[1] + 1, w.shape[2] + 1, w.shape[0]))


def _maxpool2d(bits, kernel_size, stride=None, padding=0):
    sizes = checks.check_maxpool2d("binary_maxpool2d", bits, kernel_size, stride, padding)
    return bits.new_empty((bits.shape[0], *sizes, bits.shape[3]))


def _ternary_matmul(a_mask, a_sign, b_mask, b_sign, K):
    checks.check_ternary_matmul("binary_ternary_matmul", a_mask, a_sign, b_mask, b_sign, K)
    return a_mask.new_empty((*a_mask.shape[:-1], b_mask.shape[-2]))


def _int8_matmul(x, w_bits, K, *, out_dtype=None, **options):
    checks.check_int8_matmul("binary_int8_matmul", x, w_bits, K, out_dtype=out_dtype, **options)
    return x.new_empty((*x.shape[:-1], w_bits.shape[0]), dtype=out_dtype or torch.int32)


def _planes_matmul(a_planes, b_planes, K):
    checks.check_planes_matmul("binary_planes_matmul", a_planes, b_planes, K)
    return a_planes.new_empty((a_planes.shape[1], b_planes.shape[1]))


def _inside(x_bits, surrogate):
    return x_bits.new_empty(x_bits.shape if surrogate == "ste" else (0,))


def _linear_train_fwd(x, w, alpha=None, bias=None, omega=None, *, surrogate="ste"):
    checks.check_linear_train("binary_linear_train", x, w, alpha, bias, omega, surrogate=surrogate)
    x_bits = _bits(x, w.shape[1])
    out = x.new_empty((*x.shape[:-1], w.shape[0]))
    return out, x_bits, _inside(x_bits, surrogate), _bits(w, w.shape[1])


def _conv2d_train_fwd(x, w, alpha=None, bias=None, omega=None, *window, surrogate="ste", **named):
    inputs = (x, w, alpha, bias, omega, *window)
    name = "binary_conv2d_train"
    sizes = checks.check_conv2d_train(name, *inputs, surrogate=surrogate, **named)
    batch, C, height, width = x.shape
    outputs, channels, KH, KW = w.shape
    words = row_words(channels)
    x_bits = x.new_empty((batch, height, width, C // channels * words), dtype=torch.int32)
    w_bits = w.new_empty((outputs, KH, KW, words), dtype=torch.int32)
    out = x.new_empty((batch, outputs, *sizes))
    return out, x_bits, _inside(x_bits, surrogate), w_bits


def _gradients(g, x_sizes, w_sizes, need_x, need_w, need_alpha):
    return tuple(
        g.new_empty(sizes if need else (0,), dtype=torch.float32)
        for sizes, need in ((x_sizes, need_x), (w_sizes, need_w), (w_sizes[:1], need_alpha))
    )


def _check_upstream(op, g, sizes):
    _checks.tensor(op, "g", g, checks.FLOATS)
    if g.shape != torch.Size(sizes):
        raise ValueError(f"{op}: g is {_checks.shape(g)}, expected {list(sizes)}")


def _linear_train_bwd(
    g, x_bits, x_inside, w_bits, alpha, *, K, need_x=True, need_w=True, need_alpha=True
):
    name = "binary_linear_train_bwd"
    checks.check_bits(name, "x_bits", x_bits, K)
    checks.check_bits(name, "w_bits", w_bits, K)
    N = w_bits.shape[0]
    _check_upstream(name, g, (*x_bits.shape[:-1], N))
    return _gradients(g, (*x_bits.shape[:-1], K), (N, K), need_x, need_w, need_alpha)


def _conv2d_train_bwd(
    g,
    x_bits,
    x_inside,
    w_bits,
    alpha,
    *,
    C,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    pad_mode="zero",
    need_x=True,
    need_w=True,
    need_alpha=True,
):
    name = "binary_conv2d_train_bwd"
    window = (stride, padding, dilation, groups, pad_mode)
    sizes = checks.check_conv2d(name, x_bits, w_bits, C, *window)
    batch, height, width, _ = x_bits.shape
    outputs, KH, KW, _ = w_bits.shape
    _check_upstream(name, g, (batch, outputs, *sizes))
    x_sizes, w_sizes = (batch, C, height, width), (outputs, C // groups, KH, KW)
    return _gradients(g, x_sizes, w_sizes, need_x, need_w, need_alpha)


for _name, _fake in (
    ("pack", _pack),
    ("pack_rowpop", _pack_rowpop),
    ("unpack", _unpack),
    ("pack_biper", _pack_biper),
    ("pack_ternary", _pack_ternary),
    ("popcount", _popcount),
    ("matmul", _matmul),
    ("matmul_prepacked", _matmul_prepacked),
    ("matmul_sign", _matmul_sign),
    ("hamming", _hamming),
    ("prepack", _prepack),
    ("linear", _linear),
    ("linear_prepacked", _linear_prepacked),
    ("conv2d", _conv2d),
    ("conv2d_sign", _conv2d_sign),
    ("conv2d_corr", _conv2d_corr),
    ("maxpool2d", _maxpool2d),
    ("ternary_matmul", _ternary_matmul),
    ("int8_matmul", _int8_matmul),
    ("planes_matmul", _planes_matmul),
    ("linear_train_fwd", _linear_train_fwd),
    ("linear_train_bwd", _linear_train_bwd),
    ("conv2d_train_fwd", _conv2d_train_fwd),
    ("conv2d_train_bwd", _conv2d_train_bwd),
    ("linear_train", lambda *args, **options: _linear_train_fwd(*args, **options)[0]),
    ("conv2d_train", lambda *args, **options: _conv2d_train_fwd(*args, **options)[0]),
):
    register_fake((f"binary_{_name}",), _fake)
