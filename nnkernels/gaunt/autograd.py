"""Derivatives of the gaunt operators, first and second, and how they run under torch.func.

Every operator X is multilinear in its tensors (gaunt_power: a form of degree n), so that its
derivatives are operators of the same kind; X_bwd and X_bwd_bwd fuse those of one order.
"""

import torch

from nnkernels import _checks
from nnkernels._registration import TwiceDifferentiable

_ops = torch.ops.nnkernels
_library = torch.library.Library("nnkernels", "FRAGMENT")


def _halves(name):
    return [getattr(_ops, f"{name}_{half}").default for half in ("fwd", "bwd", "bwd_bwd")]


# ---- product, cross: tensors are x, y, w1, w2, w3 ----


def _product(name):
    fwd, bwd, bwd_bwd = _halves(name)

    def forward(tensors, options):
        x, y, *weights = tensors
        degrees, rest = options
        return fwd(x, y, *degrees, *weights, *rest)

    def backward(g, tensors, options, needed):
        x, y, *weights = tensors
        degrees, rest = options
        return bwd(g, x, y, *degrees, *weights, *rest, *needed)

    def twice(cotangents, g, tensors, options, needed):
        x, y, *weights = tensors
        degrees, rest = options
        return bwd_bwd(*cotangents, g, x, y, *degrees, *weights, *rest, *needed)

    function = TwiceDifferentiable(name, forward, backward, twice)

    def kernel(
        x, y, L1, L2, L3, w1=None, w2=None, w3=None, normalization="integral", layout="mul_ir"
    ):
        options = ((L1, L2, L3), (normalization, layout))
        return function.operator((x, y, w1, w2, w3), options)

    _library.impl(name, kernel, "Autograd")
    return function


# ---- nfold: tensors are xs ----


def _nfold():
    fwd, bwd, bwd_bwd = _halves("gaunt_nfold")

    def forward(tensors, options):
        return fwd(list(tensors), *options)

    def backward(g, tensors, options, needed):
        return bwd(g, list(tensors), *options, need=[int(need) for need in needed])

    def twice(cotangents, g, tensors, options, needed):
        # A list holds no None.
        given = [g.new_empty(0) if u is None else u for u in cotangents]
        return bwd_bwd(given, g, list(tensors), *options, need=[int(need) for need in needed])

    function = TwiceDifferentiable("gaunt_nfold", forward, backward, twice)

    def kernel(xs, Ls, Lout, normalization="integral", layout="mul_ir"):
        return function.operator(tuple(xs), (list(Ls), Lout, normalization, layout))

    _library.impl("gaunt_nfold", kernel, "Autograd")
    return function


# ---- power: x ----


def _power():
    fwd, bwd, bwd_bwd = _halves("gaunt_power")

    def forward(tensors, options):
        return fwd(*tensors, *options)

    def backward(g, tensors, options, needed):
        return (bwd(g, *tensors, *options),)

    def twice(cotangents, g, tensors, options, needed):
        return bwd_bwd(*cotangents, g, *tensors, *options, *needed)

    function = TwiceDifferentiable("gaunt_power", forward, backward, twice)

    def kernel(x, n, L, Lout, normalization="integral", layout="mul_ir"):
        return function.operator((x,), (n, L, Lout, normalization, layout))

    _library.impl("gaunt_power", kernel, "Autograd")
    return function


# ---- paths: x, y, w ----


def _paths():
    fwd, bwd, bwd_bwd = _halves("gaunt_paths")

    def forward(tensors, options):
        return fwd(*tensors, *options)

    def backward(g, tensors, options, needed):
        return bwd(g, *tensors, *options, *needed)

    def twice(cotangents, g, tensors, options, needed):
        return bwd_bwd(*cotangents, g, *tensors, *options, *needed)

    function = TwiceDifferentiable("gaunt_paths", forward, backward, twice)

    def kernel(x, y, w, L1, L2, L3, kind="even", normalization="integral", layout="mul_ir"):
        return function.operator((x, y, w), (L1, L2, L3, kind, normalization, layout))

    _library.impl("gaunt_paths", kernel, "Autograd")
    return function


# ---- to_grid, from_grid: linear, each the transpose of the other ----


def _grid(name, transpose):
    fwd = getattr(_ops, f"{name}_fwd").default
    back = getattr(_ops, f"{transpose}_fwd").default

    def forward(tensors, options):
        L, points, weights = options
        return fwd(*tensors, L, points, weights)

    def backward(g, tensors, options, needed):
        L, points, weights = options
        return (back(g, L, points, weights),)

    def twice(cotangents, g, tensors, options, needed):
        return forward(cotangents, options), None

    function = TwiceDifferentiable(name, forward, backward, twice)

    def kernel(value, L, points, weights=None):
        _refuse_constants(name, points, weights)
        return function.operator((value,), (L, points, weights))

    _library.impl(name, kernel, "Autograd")
    return function


def _refuse_constants(name, points, weights):
    for key, value in (("points", points), ("weights", weights)):
        _checks.refuse_tangents(name, value)
        if torch.is_grad_enabled() and value is not None and value.requires_grad:
            raise RuntimeError(f"{name}: {key} gets no gradient; detach it")


FUNCTIONS = {
    "gaunt_product": _product("gaunt_product"),
    "gaunt_cross": _product("gaunt_cross"),
    "gaunt_nfold": _nfold(),
    "gaunt_power": _power(),
    "gaunt_paths": _paths(),
    "gaunt_to_grid": _grid("gaunt_to_grid", "gaunt_from_grid"),
    "gaunt_from_grid": _grid("gaunt_from_grid", "gaunt_to_grid"),
}


# ---- derivatives of the halves themselves ----


def _refuse(name):
    def backward(ctx, *gradients):
        raise RuntimeError(f"{name}: differentiate nnkernels::{name.split('_bwd')[0]} instead")

    torch.library.register_autograd(f"nnkernels::{name}", backward, lib=_library)


for _name in ("product", "cross", "nfold", "power", "paths"):
    for _half in ("bwd", "bwd_bwd"):
        _refuse(f"gaunt_{_name}_{_half}")
