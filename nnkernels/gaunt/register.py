"""Fake kernels of the gaunt operators, whose schemas and CPU kernels are C++."""

from nnkernels import _checks
from nnkernels._registration import register_fake
from nnkernels.gaunt import checks

# ---- what all operators share ----


def _upstream(op, name, value, like, shape):
    checks.tensor(op, name, value, "x", like)
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} is {_checks.shape(value)}, expected {list(shape)}")


def _gradients(values, needed):
    """An empty tensor for what is not needed."""
    first = values[0]
    return tuple(
        first.new_empty(value.shape if need and value is not None else (0,))
        for value, need in zip(values, needed, strict=True)
    )


def _cotangents(op, names, cotangents, values, like):
    for name, cotangent, value in zip(names, cotangents, values, strict=True):
        if cotangent is None:
            continue
        if value is None:
            raise ValueError(f"{op}: {name} is given, but what it belongs to is None")
        _upstream(op, name, cotangent, like, value.shape)


# ---- product, cross ----


def _product(name):
    needs_of_inputs = ("need_x", "need_y", "need_w1", "need_w2", "need_w3")

    def forward(
        x, y, L1, L2, L3, w1=None, w2=None, w3=None, normalization="integral", layout="mul_ir"
    ):
        leading = checks.check_product(name, x, y, L1, L2, L3, w1, w2, w3, normalization, layout)
        return x.new_empty(checks.with_coefficients(leading, L3, layout))

    def backward(gz, x, y, L1, L2, L3, w1=None, w2=None, w3=None, *options, **needs):
        normalization, layout, *needed = _defaults(
            options,
            needs,
            ("normalization", "layout", *needs_of_inputs),
            ("integral", "mul_ir", True, True, False, False, False),
        )
        z = forward(x, y, L1, L2, L3, w1, w2, w3, normalization, layout)
        _upstream(f"{name}_bwd", "gz", gz, x, z.shape)
        return _gradients((x, y, w1, w2, w3), needed)

    def twice(
        ux, uy, uw1, uw2, uw3, gz, x, y, L1, L2, L3, w1=None, w2=None, w3=None, *options, **needs
    ):
        normalization, layout, *needed = _defaults(
            options,
            needs,
            ("normalization", "layout", "need_gz", *needs_of_inputs),
            ("integral", "mul_ir", True, True, True, False, False, False),
        )
        z = forward(x, y, L1, L2, L3, w1, w2, w3, normalization, layout)
        op = f"{name}_bwd_bwd"
        _upstream(op, "gz", gz, x, z.shape)
        values = (x, y, w1, w2, w3)
        _cotangents(op, ("ux", "uy", "uw1", "uw2", "uw3"), (ux, uy, uw1, uw2, uw3), values, x)
        return _gradients((gz, *values), needed)

    register_fake((name, f"{name}_fwd"), forward)
    register_fake((f"{name}_bwd",), backward)
    register_fake((f"{name}_bwd_bwd",), twice)


def _defaults(positional, named, names, defaults):
    """The values of options given by position, by name, or not at all."""
    values = dict(zip(names, defaults, strict=True)) | named
    return list((values | dict(zip(names, positional, strict=False))).values())


_product("gaunt_product")
_product("gaunt_cross")


# ---- nfold, power ----


def _nfold(xs, Ls, Lout, normalization="integral", layout="mul_ir"):
    leading = checks.check_nfold("gaunt_nfold", xs, Ls, Lout, normalization, layout)
    return xs[0].new_empty(checks.with_coefficients(leading, Lout, layout))


def _nfold_bwd(gz, xs, Ls, Lout, normalization="integral", layout="mul_ir", *, need):
    z = _nfold(xs, Ls, Lout, normalization, layout)
    _upstream("gaunt_nfold_bwd", "gz", gz, xs[0], z.shape)
    return list(_gradients(xs, need))


def _nfold_bwd_bwd(us, gz, xs, Ls, Lout, normalization="integral", layout="mul_ir", *, need):
    z = _nfold(xs, Ls, Lout, normalization, layout)
    op = "gaunt_nfold_bwd_bwd"
    _upstream(op, "gz", gz, xs[0], z.shape)
    given = [None if u.shape == (0,) else u for u in us]
    _cotangents(op, [f"us[{i}]" for i in range(len(us))], given, xs, xs[0])
    return list(_gradients((gz, *xs), need))


def _power(x, n, L, Lout, normalization="integral", layout="mul_ir"):
    leading = checks.check_power("gaunt_power", x, n, L, Lout, normalization, layout)
    return x.new_empty(checks.with_coefficients(leading, Lout, layout))


def _power_bwd(gz, x, n, L, Lout, normalization="integral", layout="mul_ir"):
    z = _power(x, n, L, Lout, normalization, layout)
    _upstream("gaunt_power_bwd", "gz", gz, x, z.shape)
    return x.new_empty(x.shape)


def _power_bwd_bwd(
    u, gz, x, n, L, Lout, normalization="integral", layout="mul_ir", need_gz=True, need_x=True
):
    z = _power(x, n, L, Lout, normalization, layout)
    op = "gaunt_power_bwd_bwd"
    _upstream(op, "gz", gz, x, z.shape)
    _upstream(op, "u", u, x, x.shape)
    return _gradients((gz, x), (need_gz, need_x))


register_fake(("gaunt_nfold", "gaunt_nfold_fwd"), _nfold)
register_fake(("gaunt_nfold_bwd",), _nfold_bwd)
register_fake(("gaunt_nfold_bwd_bwd",), _nfold_bwd_bwd)
register_fake(("gaunt_power", "gaunt_power_fwd"), _power)
register_fake(("gaunt_power_bwd",), _power_bwd)
register_fake(("gaunt_power_bwd_bwd",), _power_bwd_bwd)


# ---- paths ----


def _paths(x, y, w, L1, L2, L3, kind="even", normalization="integral", layout="mul_ir"):
    leading = checks.check_paths("gaunt_paths", x, y, w, L1, L2, L3, kind, normalization, layout)
    return x.new_empty(checks.with_coefficients(leading, L3, layout))


def _paths_bwd(
    gz,
    x,
    y,
    w,
    L1,
    L2,
    L3,
    kind="even",
    normalization="integral",
    layout="mul_ir",
    need_x=True,
    need_y=True,
    need_w=True,
):
    z = _paths(x, y, w, L1, L2, L3, kind, normalization, layout)
    _upstream("gaunt_paths_bwd", "gz", gz, x, z.shape)
    return _gradients((x, y, w), (need_x, need_y, need_w))


def _paths_bwd_bwd(
    ux,
    uy,
    uw,
    gz,
    x,
    y,
    w,
    L1,
    L2,
    L3,
    kind="even",
    normalization="integral",
    layout="mul_ir",
    need_gz=True,
    need_x=True,
    need_y=True,
    need_w=True,
):
    z = _paths(x, y, w, L1, L2, L3, kind, normalization, layout)
    op = "gaunt_paths_bwd_bwd"
    _upstream(op, "gz", gz, x, z.shape)
    _cotangents(op, ("ux", "uy", "uw"), (ux, uy, uw), (x, y, w), x)
    return _gradients((gz, x, y, w), (need_gz, need_x, need_y, need_w))


register_fake(("gaunt_paths", "gaunt_paths_fwd"), _paths)
register_fake(("gaunt_paths_bwd",), _paths_bwd)
register_fake(("gaunt_paths_bwd_bwd",), _paths_bwd_bwd)


# ---- grids ----


def _to_grid(x, L, points, weights=None):
    leading = checks.check_to_grid("gaunt_to_grid", x, L, points, weights)
    return x.new_empty((*leading, points.shape[0]))


def _from_grid(f, L, points, weights=None):
    leading = checks.check_from_grid("gaunt_from_grid", f, L, points, weights)
    return f.new_empty((*leading, (L + 1) ** 2))


register_fake(("gaunt_to_grid", "gaunt_to_grid_fwd"), _to_grid)
register_fake(("gaunt_from_grid", "gaunt_from_grid_fwd"), _from_grid)
