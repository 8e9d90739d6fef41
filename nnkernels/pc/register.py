"""Fake kernels of the pc operators, whose schemas and CPU kernels are C++."""

import torch

from nnkernels._registration import register_fake
from nnkernels.pc import checks


def _forward(x, pi, A, B, parent, order, mask=None, save_u=True):
    D, h, _ = checks.check_forward("pc_forward", x, pi, A, B, parent, order, mask)
    u = (D, x.shape[0], h) if save_u else (0,)
    return pi.new_empty((x.shape[0],)), pi.new_empty(u)


def _forward_bwd(grad_ll, x, pi, A, B, parent, order, mask=None):
    name = "pc_forward_bwd"
    checks.check_forward_bwd(name, grad_ll, x, pi, A, B, parent, order, mask)
    return tuple(value.new_empty(value.shape) for value in (pi, A, B))


def _flows(x, pi, A, B, parent, order, mask=None, weights=None):
    checks.check_flows("pc_flows", x, pi, A, B, parent, order, mask, weights)
    return pi.new_empty((x.shape[0],)), *(value.new_empty(value.shape) for value in (pi, A, B))


def _em_update(theta, counts, pseudo_count, step):
    checks.check_em_update("pc_em_update", theta, counts, pseudo_count, step)


def _conditional_cdf(x, model, i, precision=20):
    _, _, K = checks.check_conditional_cdf("pc_conditional_cdf", x, model, i, precision)
    return x.new_empty((x.shape[0], K + 1), dtype=torch.int32)


def _intervals(x, model, precision=20):
    checks.check_coding("pc_intervals", x, model, precision)
    return tuple(x.new_empty(x.shape, dtype=torch.int32) for _ in range(2))


def _lanes(like, N, D, lanes):
    words = (lanes, (N + lanes - 1) // lanes * D + 2)
    return (
        like.new_empty(words, dtype=torch.int32),
        like.new_empty((lanes,), dtype=torch.int32),
    )


def _encode(x, model, lanes, precision=20):
    D, _, _ = checks.check_coding("pc_encode", x, model, precision)
    checks.check_lanes("pc_encode", lanes)
    return _lanes(x, x.shape[0], D, lanes)


def _decode(words, counts, N, model, precision=20):
    D, _, K = checks.check_decode("pc_decode", words, counts, N, model, precision)
    return words.new_empty((N, D), dtype=torch.uint8 if K <= 256 else torch.int16)


def _rans_encode(low, width, lanes, precision=20):
    checks.check_rans_encode("rans_encode", low, width, lanes, precision)
    return _lanes(low, *low.shape, lanes)


def _rans_decode(words, counts, cdf, N, precision=20):
    D = checks.check_rans_decode("rans_decode", words, counts, cdf, N, precision)
    return words.new_empty((N, D))


def _rans_decode_step(state, position, words, counts, cdf, precision=20):
    name = "rans_decode_step"
    checks.check_rans_decode_step(name, state, position, words, counts, cdf, precision)
    return words.new_empty(words.shape[:1])


register_fake(("pc_forward", "pc_forward_fwd"), _forward)
for _name, _fake in (
    ("pc_forward_bwd", _forward_bwd),
    ("pc_flows", _flows),
    ("pc_em_update", _em_update),
    ("pc_conditional_cdf", _conditional_cdf),
    ("pc_intervals", _intervals),
    ("pc_encode", _encode),
    ("pc_decode", _decode),
    ("rans_encode", _rans_encode),
    ("rans_decode", _rans_decode),
    ("rans_decode_step", _rans_decode_step),
):
    register_fake((_name,), _fake)
