"""Bad input: the Python functions raise the kind of error that fits, the raw operators and their
fake kernels a RuntimeError; all name the operator."""

import re
import warnings

import pytest
import torch
from gaunt_cases import dim

from nnkernels import gaunt

OPS = torch.ops.nnkernels
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def ones(*shape, dtype=F32, device=None):
    return torch.ones(shape, device=device).to(dtype)


POINTS = ones(6, 3) / 3**0.5
GRID = gaunt.Grid(POINTS.double(), ones(6, dtype=F64), 4)

# Valid arguments of each operator, by name.
VALID = {
    "product": {"x": ones(2, 9), "y": ones(2, 4), "L1": 2, "L2": 1, "L3": 2},
    "cross": {"x": ones(2, 9), "y": ones(2, 4), "L1": 2, "L2": 1, "L3": 2},
    "nfold": {"xs": [ones(2, 9), ones(2, 4)], "Ls": [2, 1], "Lout": 2},
    "power": {"x": ones(2, 9), "n": 2, "L": 2, "Lout": 2},
    "paths": {"x": ones(2, 9), "y": ones(2, 4), "w": ones(8), "L1": 2, "L2": 1, "L3": 2},
    "vector_product": {"u": ones(2, 3, 9), "v": ones(2, 3, 4), "L1": 2, "L2": 1, "L3": 2},
    "to_grid": {"x": ones(2, 9), "L": 2, "grid": POINTS},
    "from_grid": {"f": ones(2, 6), "L": 2, "grid": GRID},
}
VALID["paths"]["w"] = ones(len(gaunt.path_list(2, 1, 2)))
PAIRS = ("product", "cross", "paths")
OPTIONS = ("product", "cross", "nfold", "power", "paths", "vector_product")


def case(op, error, message, raw=True, **changed):
    shown = [
        f"{k}={list(v.shape) if isinstance(v, torch.Tensor) else v}" for k, v in changed.items()
    ]
    shown = [re.sub(r"tensor\(.*?\)", "tensor", text, flags=re.DOTALL) for text in shown]
    words = "-".join([op, error.__name__, *shown])
    return pytest.param(op, error, message, changed, raw, id=re.sub(r"\s+", "", words)[:90])


def cases():
    wrong = r"x has 8 coefficients, expected \(L1\+1\)\^2 = 9"
    for op in PAIRS:
        yield case(op, ValueError, wrong, x=ones(2, 8))
        yield case(op, ValueError, r"y has 9 coefficients, expected \(L2\+1\)\^2 = 4", y=ones(2, 9))
        for degree, text in ((-1, "-1"), (25, "25")):
            yield case(op, ValueError, rf"L1={text}: degree out of range \[0, 24\]", L1=degree)
            yield case(op, ValueError, rf"L3={text}: degree out of range \[0, 24\]", L3=degree)
        # torch parses these itself where the raw operator is called.
        yield case(op, TypeError, "L1 must be an int, got bool True", raw=False, L1=True)
        yield case(op, TypeError, "L2 must be an int, got float 1.0", raw=False, L2=1.0)
        matching = "expected matching floating dtypes, got"
        yield case(op, TypeError, f"{matching} float32 and float64", y=ones(2, 4, dtype=F64))
        yield case(op, TypeError, f"{matching} float32 and int32", y=ones(2, 4, dtype=torch.int32))
        for dtype in (torch.int64, torch.bool, torch.complex64):
            short = str(dtype).removeprefix("torch.")
            both = {"x": ones(2, 9, dtype=dtype), "y": ones(2, 4, dtype=dtype)}
            if op == "paths":
                both["w"] = ones(len(gaunt.path_list(2, 1, 2)), dtype=dtype)
            yield case(op, TypeError, f"{matching} {short} and {short}", **both)
        yield case(op, ValueError, "on different devices", raw=False, y=ones(2, 4, device="meta"))
        unequal = r"x \[2, 9\] and y \[3, 4\].*do not broadcast"
        yield case(op, ValueError, unequal, y=ones(3, 4))
        yield case(op, TypeError, "x is a 0-dim tensor", x=ones())
        yield case(op, TypeError, "x is a sparse_coo tensor", raw=False, x=ones(2, 9).to_sparse())
        yield case(op, TypeError, "x must be a tensor, got list", raw=False, x=[1.0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            quantised = torch.quantize_per_tensor(ones(2, 9), 1.0, 0, torch.qint8)
        yield case(op, TypeError, "expected matching floating dtypes", raw=False, x=quantised)
    for op in OPTIONS:
        listed = "normalization must be one of 'integral', 'component', 'norm', got 'sum'"
        yield case(op, ValueError, listed, normalization="sum")
        listed = "layout must be one of 'mul_ir', 'ir_mul', got 'mul'"
        yield case(op, ValueError, listed, layout="mul")
    yield case("paths", ValueError, "kind must be one of 'even', 'cross', 'both'", kind="odd")
    listed = "kind must be one of 'cross', 'dot', 'scale'"
    yield case("vector_product", ValueError, listed, kind="even")
    for op in ("product", "cross"):
        yield case(op, ValueError, r"w1 has 2 degree weights, expected L1\+1 = 3", w1=ones(2))
        yield case(op, ValueError, r"w3 has 4 degree weights, expected L3\+1 = 3", w3=ones(4))
        yield case(op, TypeError, "got float32 and bfloat16", w2=ones(2, dtype=BF16))
        yield case(op, ValueError, "on different devices", raw=False, w2=ones(2, device="meta"))
        yield case(op, ValueError, r"w1 \[3, 3\].*do not broadcast", w1=ones(3, 3))
        yield case(op, TypeError, "w1 is a 0-dim tensor", w1=ones())
    count = len(gaunt.path_list(2, 1, 2))
    text = rf"w has {count - 1} weights, expected .*P = {count}"
    yield case("paths", ValueError, text, w=ones(count - 1))
    yield case("paths", TypeError, "got float32 and float64", w=ones(count, dtype=F64))
    # nfold and power; torch cannot dispatch an operator without tensors.
    yield case(
        "nfold", ValueError, "number of signals must be in 1..6, got 0", raw=False, xs=[], Ls=[]
    )
    seven = {"xs": [ones(2, 1)] * 7, "Ls": [0] * 7}
    yield case("nfold", ValueError, "number of signals must be in 1..6, got 7", **seven)
    yield case("nfold", ValueError, "Ls has 1 degrees for 2 signals", Ls=[2])
    yield case("nfold", ValueError, r"xs\[1\] has 4 coefficients, expected .* = 9", Ls=[2, 2])
    yield case("nfold", ValueError, r"Ls\[0\]=-1: degree out of range", Ls=[-1, 1])
    yield case("nfold", TypeError, r"Ls\[1\] must be an int, got float", raw=False, Ls=[2, 1.5])
    yield case("nfold", TypeError, "xs must be a list", raw=False, xs=ones(2, 9))
    yield case("nfold", TypeError, "expected matching", xs=[ones(2, 9), ones(2, 4, dtype=F64)])
    yield case(
        "nfold", ValueError, r"xs\[0\] \[2, 9\] and .*broadcast", xs=[ones(2, 9), ones(3, 4)]
    )
    large = {"xs": [ones(1, dim(24))] * 4, "Ls": [24] * 4, "Lout": 1}
    yield case("nfold", ValueError, "the degrees sum to 97: degree out of range", **large)
    for n in (0, 7, -1):
        yield case("power", ValueError, rf"n must be in 1..6, got {n}", n=n)
    yield case("power", TypeError, "n must be an int, got float", raw=False, n=2.5)
    yield case("power", ValueError, r"x has 9 coefficients, expected \(L\+1\)\^2 = 4", L=1)
    large = {"x": ones(1, dim(24)), "n": 4, "L": 24, "Lout": 1}
    yield case("power", ValueError, "the degrees sum to 97", **large)
    # vector_product
    yield case(
        "vector_product", ValueError, r"v is \[2, 2, 4\].*x, y, z", raw=False, v=ones(2, 2, 4)
    )
    yield case("vector_product", ValueError, r"u is \[9\].*x, y, z", raw=False, u=ones(9))
    # grids
    yield case(
        "to_grid", ValueError, r"x has 8 coefficients, expected \(L\+1\)\^2 = 9", x=ones(2, 8)
    )
    yield case("to_grid", ValueError, r"points is \[6, 2\], expected \[P, 3\]", grid=ones(6, 2))
    yield case("to_grid", TypeError, "points has dtype int64", grid=ones(6, 3, dtype=torch.int64))
    yield case("to_grid", ValueError, "degree out of range", L=25)
    yield case("from_grid", ValueError, "f has 5 values, expected one per point, 6", f=ones(2, 5))
    coarse = "grid of degree 4 cannot integrate degree 2L = 6 exactly"
    yield case("from_grid", ValueError, coarse, raw=False, L=3)
    yield case("from_grid", TypeError, "grid must be a Grid, got Tensor", raw=False, grid=POINTS)


def arguments(op, changed):
    return VALID[op] | changed


def raw_arguments(op, given):
    """The same for the operator, which takes points and weights."""
    given = dict(given)
    grid = given.pop("grid", None)
    if op == "to_grid":
        given["points"] = grid
    if op == "from_grid":
        given |= {"points": grid.points, "weights": grid.weights}
    return given


@pytest.mark.parametrize(("op", "error", "message", "changed", "raw"), cases())
def test_bad_input(op, error, message, changed, raw):
    with pytest.raises(error, match=f"^gaunt_{op}: .*{message}"):
        getattr(gaunt, op)(**arguments(op, changed))
    if not raw:
        return
    given = raw_arguments(op, arguments(op, changed))
    name = f"gaunt_{op}"
    halves = (name,) if op == "vector_product" else (name, f"{name}_fwd")
    for half in halves:
        with pytest.raises(RuntimeError, match=f"^{name}(_fwd)?: "):
            getattr(OPS, half)(**given)
    fake = {key: on_meta(value) for key, value in given.items()}
    with pytest.raises(RuntimeError, match=f"^{name}: .*{message}"):
        getattr(OPS, halves[-1])(**fake)


def on_meta(value):
    if isinstance(value, list):
        return [on_meta(item) for item in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("op", VALID)
def test_valid_input_is_accepted(op):
    out = getattr(gaunt, op)(**VALID[op])
    assert out.isfinite().all()


def test_not_errors():
    assert gaunt.product(ones(0, 9), ones(0, 4), 2, 1, 2).shape == (0, 9)
    assert gaunt.product(ones(2, 9), ones(2, 4), 2, 1, 5).shape == (2, 36)
    assert gaunt.product(ones(9), ones(4), 2, 1, 2).shape == (9,)
    strided = ones(9, 2).T
    assert gaunt.product(strided, ones(2, 4), 2, 1, 2).shape == (2, 9)
    x = ones(2, 9).requires_grad_()
    assert gaunt.product(x, ones(2, 4), 2, 1, 2).requires_grad


def test_layout_ir_mul_needs_channels():
    with pytest.raises(ValueError, match=r"x is \[9\], expected \[\.\.\., .*channels\]"):
        gaunt.product(ones(9), ones(4, 1), 2, 1, 2, layout="ir_mul")
    text = r"x has 2 coefficients, expected \(L1\+1\)\^2 = 9"
    with pytest.raises(ValueError, match=text):
        gaunt.product(ones(2, 9), ones(4, 9), 2, 1, 2, layout="ir_mul")


@pytest.mark.parametrize("op", ["product", "cross"])
def test_bad_upstream_and_cotangents(op):
    x, y, z = ones(2, 9), ones(2, 4), ones(2, 9)
    name = f"gaunt_{op}"
    for device in ("cpu", "meta"):
        x, y, z = (t.to(device) for t in (x, y, z))
        backward = getattr(OPS, f"{name}_bwd")
        twice = getattr(OPS, f"{name}_bwd_bwd")
        with pytest.raises(RuntimeError, match=f"^{name}_bwd: gz"):
            backward(z[:, :8], x, y, 2, 1, 2)
        with pytest.raises(RuntimeError, match=f"^{name}_bwd"):
            backward(z.double(), x, y, 2, 1, 2)
        with pytest.raises(RuntimeError, match=f"^{name}_bwd_bwd: ux"):
            twice(x[:, :8], None, None, None, None, z, x, y, 2, 1, 2)
        with pytest.raises(RuntimeError, match=f"^{name}_bwd_bwd: uw1"):
            twice(x, None, ones(3, device=device), None, None, z, x, y, 2, 1, 2)


def test_points_get_no_gradient():
    points = POINTS.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"^gaunt_to_grid: points gets no gradient"):
        gaunt.to_grid(ones(2, 9).requires_grad_(), 2, points)


# ---- plain Python ----


@pytest.mark.parametrize(
    ("function", "error", "message", "arguments"),
    [
        (gaunt.grid, ValueError, "gaunt_grid: degree must not be negative, got -1", (-1,)),
        (gaunt.grid, TypeError, "gaunt_grid: degree must be an int, got float 2.0", (2.0,)),
        (gaunt.grid, TypeError, "gaunt_grid: degree must be an int, got bool True", (True,)),
        (gaunt.grid, ValueError, "kind must be one of 'gauss_legendre', 'lebedev'", (4, "healpix")),
        (gaunt.grid, ValueError, "lebedev rule of degree 4; .* is 5", (4, "lebedev")),
        # Those of degree 13, 25 and 27 have negative weights.
        (gaunt.grid, ValueError, "lebedev rule of degree 13; .* is 15", (13, "lebedev")),
        (gaunt.grid, ValueError, "lebedev rule of degree 25; .* is 29", (25, "lebedev")),
        (gaunt.grid, ValueError, "degree 132; the last one is 131", (132, "lebedev")),
        (gaunt.coefficients, ValueError, "kind must be one of 'even', 'cross'", (1, 1, 1, "both")),
        (gaunt.coefficients, ValueError, "L3=25: degree out of range", (1, 1, 25)),
        (gaunt.coefficients, TypeError, "L1 must be an int", (1.0, 1, 1)),
        (gaunt.coefficients, ValueError, "normalization must be one of", (1, 1, 1, "even", "x")),
        (gaunt.vsh_to_xyz, ValueError, "gaunt_vsh_to_xyz: L=25: degree out of range", (25,)),
        (gaunt.xyz_to_vsh, TypeError, "gaunt_xyz_to_vsh: L must be an int", ("1",)),
        (gaunt.path_list, ValueError, "gaunt_path_list: kind must be one of", (1, 1, 1, "all")),
    ],
)
def test_bad_arguments_of_tables(function, error, message, arguments):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_lebedev_needs_scipy(monkeypatch):
    import builtins

    plain = builtins.__import__

    def without(name, *rest):
        if name.startswith("scipy"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'scipy>=1\.15'"):
        gaunt.grid(5, "lebedev")
