"""Fake kernels and autograd of the lmul operators, whose schemas and CPU kernels are C++."""

import torch

from nnkernels import _checks
from nnkernels._registration import register_autograd, register_fake
from nnkernels.lmul import checks

# ---- fake kernels ----


def _mul(x, y, *, out_dtype=None, **options):
    checks.check_mul("lmul_mul", x, y, out_dtype=out_dtype, **options)
    sizes = torch.broadcast_shapes(x.shape, y.shape)
    return x.new_empty(sizes, dtype=checks.mul_dtype(out_dtype, x, y))


def _matmul(a, b, *, out_dtype=None, **options):
    checks.check_matmul("lmul_matmul", a, b, out_dtype=out_dtype, **options)
    dtype = checks.result_dtype(out_dtype, a.dtype, b.dtype)
    return a.new_empty((a.shape[0], b.shape[1]), dtype=dtype)


def _bmm(a, b, *, out_dtype=None, **options):
    checks.check_matmul("lmul_bmm", a, b, rank=3, out_dtype=out_dtype, **options)
    dtype = checks.result_dtype(out_dtype, a.dtype, b.dtype)
    return a.new_empty((a.shape[0], a.shape[1], b.shape[2]), dtype=dtype)


def _linear(x, w, bias=None, *, out_dtype=None, **options):
    checks.check_linear("lmul_linear", x, w, bias, out_dtype=out_dtype, **options)
    dtype = checks.result_dtype(out_dtype, x.dtype, w.dtype)
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=dtype)


def _pack(w, **options):
    checks.check_pack("lmul_pack", w, **options)
    return w.new_empty((checks.packed_size(*w.shape),), dtype=torch.uint8)


def _attention(q, k, v, *, out_dtype=None, **options):
    checks.check_attention("lmul_attention", q, k, v, out_dtype=out_dtype, **options)
    dtype = checks.result_dtype(out_dtype, q.dtype, k.dtype, v.dtype)
    return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=dtype)


def _check_upstream(op, g, result):
    _checks.tensor(op, "g", g, checks.MANTISSA_BITS)
    if g.shape != result.shape:
        raise ValueError(f"{op}: g is {_checks.shape(g)}, expected {_checks.shape(result)}")


def _gradient(value, need):
    return value.new_empty(value.shape if need else (0,))


def _mul_bwd(g, x, y, *, need_x=True, need_y=True, **options):
    _check_upstream("lmul_mul_bwd", g, _mul(x, y, **options))
    return _gradient(x, need_x), _gradient(y, need_y)


def _matmul_bwd(g, a, b, *, need_a=True, need_b=True, **options):
    _check_upstream("lmul_matmul_bwd", g, _matmul(a, b, **options))
    return _gradient(a, need_a), _gradient(b, need_b)


def _bmm_bwd(g, a, b, *, need_a=True, need_b=True, **options):
    _check_upstream("lmul_bmm_bwd", g, _bmm(a, b, **options))
    return _gradient(a, need_a), _gradient(b, need_b)


def _linear_bwd(g, x, w, *, need_x=True, need_w=True, need_bias=False, **options):
    _check_upstream("lmul_linear_bwd", g, _linear(x, w, **options))
    grad_bias = w.new_empty((w.shape[0] if need_bias else 0,), dtype=torch.float32)
    return _gradient(x, need_x), _gradient(w, need_w), grad_bias


def _attention_bwd(
    g, q, k, v, out, attn_mask=None, *, need_q=True, need_k=True, need_v=True, **options
):
    result = _attention(q, k, v, attn_mask=attn_mask, **options)
    _check_upstream("lmul_attention_bwd", g, result)
    _check_upstream("lmul_attention_bwd", out, result)
    return _gradient(q, need_q), _gradient(k, need_k), _gradient(v, need_v)


for _name, _fake, _fake_bwd in (
    ("lmul_mul", _mul, _mul_bwd),
    ("lmul_matmul", _matmul, _matmul_bwd),
    ("lmul_bmm", _bmm, _bmm_bwd),
    ("lmul_linear", _linear, _linear_bwd),
    ("lmul_attention", _attention, _attention_bwd),
):
    register_fake((_name, f"{_name}_fwd"), _fake)
    register_fake((f"{_name}_bwd",), _fake_bwd)
register_fake(("lmul_pack",), _pack)

# ---- autograd ----

register_autograd("lmul_mul", inputs=("x", "y"), saved=("x", "y"), choices=checks.GRADS)
register_autograd("lmul_matmul", inputs=("a", "b"), saved=("a", "b"), choices=checks.GRADS)
register_autograd("lmul_bmm", inputs=("a", "b"), saved=("a", "b"), choices=checks.GRADS)
register_autograd("lmul_linear", inputs=("x", "w", "bias"), saved=("x", "w"), choices=checks.GRADS)
register_autograd(
    "lmul_attention",
    inputs=("q", "k", "v"),
    saved=("q", "k", "v", "out", "attn_mask"),
    choices=checks.GRADS,
    constants=("attn_mask",),
)
