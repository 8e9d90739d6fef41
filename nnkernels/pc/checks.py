"""What the pc operators accept.

The public functions call `check_*` before any kernel, the fake kernels before they promise a
result. Errors are TypeError (kind, dtype of a parameter), ValueError (device) or, for everything
about values and shapes, a PCError, which is a ValueError.

Letters: N samples, D variables, K values a variable, h hidden states, P bits of precision, L lanes.
"""

import functools
import math

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.pc.errors import (
    ArgumentError,
    ModelError,
    ShapeError,
    StructureError,
    SymbolRangeError,
)

FLOATS = (torch.float32, torch.float64)
DATA = (torch.uint8, torch.int16)
WORDS = (torch.int32,)

MAX_H = 256
MAX_K = 4096
PRECISIONS = range(12, 25)
# How far the sum of a distribution may be from 1.
SUM_TOLERANCE = 1e-4

_TABLES = ("pi", "A", "B", "C", "parent", "order")


def readable(value: Tensor) -> bool:
    """Whether the values are at hand: not while tracing, and not on a GPU, which would wait."""
    return (
        not torch.compiler.is_compiling()
        and type(value) in (Tensor, torch.nn.Parameter)
        and value.device.type == "cpu"
        and not torch._C._len_torch_dispatch_stack()
    )


def refuse_transforms(op: str):
    """torch.func cannot map or differentiate the operators; torch says so obscurely."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"{op}: the transforms of torch.func (vmap, grad, jvp) do not support it; pass all "
            "samples in one call, and use torch.autograd.grad or backward"
        )


def _match(op, name, value, expected, letters):
    """The value has this shape, whose letters are named."""
    if list(value.shape) != list(expected):
        sizes = ", ".join(f"{a}={b}" for a, b in zip(letters.split(), expected, strict=True))
        raise ShapeError(f"{op}: {name} is {_checks.shape(value)}, expected [{sizes}]")


# ---- data ----


def check_data(op, x, D, K, mask=None):
    """x [N, D] of symbols below K, where `mask`, if any, is not set."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a tensor, got {type(x).__name__}")
    if x.is_floating_point() or x.is_complex():
        raise SymbolRangeError(f"{op}: x has dtype {_checks.short(x.dtype)}{_first_value(x)}")
    if x.dtype not in DATA:
        raise ShapeError(
            f"{op}: x has dtype {_checks.short(x.dtype)}, expected uint8 or int16; convert it "
            "with .to(...)"
        )
    _checks.tensor(op, "x", x, DATA)
    if x.dim() != 2 or x.shape[1] != D:
        raise ShapeError(f"{op}: x is {_checks.shape(x)}, expected [N, D={D}]")
    if mask is not None:
        _checks.tensor(op, "mask", mask, (torch.bool,))
        _match(op, "mask", mask, x.shape, "N D")
        _checks.same_device(op, "mask", mask, "x", x)
    if readable(x) and x.numel() > 0:
        _check_range(op, x, K, mask)


def _check_range(op, x, K, mask):
    if x.dtype == torch.uint8 and K >= 256:
        return
    low, high = x.aminmax()
    if low >= 0 and high < K:
        return
    wrong = (x < 0) | (x >= K)
    if mask is not None:
        wrong &= ~mask
    found = wrong.nonzero()
    if len(found) > 0:
        n, i = found[0].tolist()
        raise SymbolRangeError(
            f"{op}: sample {n}, variable {i} is {int(x[n, i])}, expected 0 to {K - 1}"
        )


def _first_value(x):
    """Where data that is not made of integers begins."""
    text = ", expected uint8 or int16; round it to symbols with .to(torch.uint8)"
    if not readable(x) or x.dim() != 2 or x.numel() == 0:
        return text
    wrong = (x != x.round()).nonzero() if x.is_floating_point() else x.new_zeros(0, 2)
    n, i = wrong[0].tolist() if len(wrong) > 0 else (0, 0)
    return f" (sample {n}, variable {i} is {x[n, i].item()})" + text


def symbols(op: str, x: Tensor, D: int, K: int, mask: Tensor | None = None) -> Tensor:
    """x [N, ...] of D values a sample as contiguous symbols [N, D], checked."""
    if isinstance(x, Tensor) and x.dim() != 2 and x.dim() > 0:
        if math.prod(x.shape[1:]) != D:
            raise ShapeError(
                f"{op}: x is {_checks.shape(x)}, expected [N, D={D}] or samples of D values"
            )
        x = x.reshape(x.shape[0], D)
    check_data(op, x, D, K, mask)
    return x.contiguous()


# ---- trees ----


def check_tree(op, parent, order, D, like_name, like):
    for name, value in (("parent", parent), ("order", order)):
        _checks.tensor(op, name, value, (torch.int64,))
        _checks.same_device(op, name, value, like_name, like)
        _match(op, name, value, (D,), "D")
    if readable(parent) and readable(order):
        _check_preorder(op, parent.numpy().tobytes(), order.numpy().tobytes())


@functools.lru_cache(maxsize=64)
def _check_preorder(op, parent, order):
    """`order` is a depth-first preorder of the tree `parent`: int64 arrays as bytes."""
    parents = list(memoryview(parent).cast("q"))
    D = len(parents)
    path, seen = [], [False] * D
    for place, node in enumerate(memoryview(order).cast("q")):
        if not 0 <= node < D:
            raise StructureError(f"{op}: order holds node {node}, expected 0 to {D - 1}")
        if seen[node]:
            raise StructureError(f"{op}: order holds node {node} twice")
        seen[node] = True
        above = parents[node]
        if (above == -1) != (place == 0):
            raise StructureError(
                f"{op}: node {node} has parent {above} and comes {place}. in order; the one node "
                "with parent -1 comes first"
            )
        while path and path[-1] != above:
            path.pop()
        if place > 0 and not path:
            raise StructureError(
                f"{op}: node {node} comes {place}. in order, not right below its parent {above}; "
                "pass a depth-first order, such as pc.coding_order(parent)"
            )
        path.append(node)


# ---- parameters ----


def _check_sizes(op, pi, A, B, dtypes):
    """D, h and K of parameters pi [h], A [D, h, h] and B [D, h, K]."""
    _checks.tensor(op, "pi", pi, dtypes)
    for name, value in (("A", A), ("B", B)):
        _checks.tensor(op, name, value, (pi.dtype,))
        _checks.same_device(op, name, value, "pi", pi)
    if pi.dim() != 1:
        raise ShapeError(f"{op}: pi is {_checks.shape(pi)}, expected [h]")
    if B.dim() != 3:
        raise ShapeError(f"{op}: B is {_checks.shape(B)}, expected [D, h, K]")
    (D, _, K), h = B.shape, pi.shape[0]
    for name, size, most in (("D", D, None), ("h", h, MAX_H), ("K", K, MAX_K)):
        if size < 1 or (most is not None and size > most):
            allowed = "at least 1" if most is None else f"1 to {most}"
            raise ArgumentError(f"{op}: {name} is {size}, expected {allowed}")
    _match(op, "A", A, (D, h, h), "D h h")
    _match(op, "B", B, (D, h, K), "D h K")
    return D, h, K


def _check_distribution(name, value, rows):
    """Rows that sum to 1, of values that are finite and not negative."""
    sums = value.double().sum(-1)
    wrong = ~(value >= 0).all(-1) | ~((sums - 1).abs() <= SUM_TOLERANCE)
    if wrong.any():
        row = tuple(wrong.nonzero()[0].tolist())
        where = "".join(f", {letter}={index}" for letter, index in zip(rows, row, strict=True))
        values = value[row]
        kind = (
            "holds a value that is not finite"
            if not values.isfinite().all()
            else f"holds {values.min().item():g}"
            if (values < 0).any()
            else f"sums to {sums[row].item():g}"
        )
        raise ModelError(f"{name}{where} {kind}, expected probabilities that sum to 1")


def check_parameters(op, pi, A, B, parent, order):
    """Sizes, and values: not finite, negative or a sum that is not 1 is a ModelError."""
    D, _, _ = _check_sizes(op, pi, A, B, FLOATS)
    check_tree(op, parent, order, D, "pi", pi)
    with torch.no_grad():
        _check_distribution(f"{op}: pi", pi, ())
        _check_distribution(f"{op}: B", B, ("variable", "state"))
        used = A.clone()
        # No state is above the root.
        used[parent < 0] = 1 / A.shape[1]
        _check_distribution(f"{op}: A", used, ("variable", "state"))


# ---- one check per operator ----


def check_forward(op, x, pi, A, B, parent, order, mask):
    """Returns D, h and K."""
    D, h, K = _check_sizes(op, pi, A, B, FLOATS)
    check_tree(op, parent, order, D, "pi", pi)
    check_data(op, x, D, K, mask)
    _checks.same_device(op, "x", x, "pi", pi)
    return D, h, K


def check_flows(op, x, pi, A, B, parent, order, mask, weights):
    sizes = check_forward(op, x, pi, A, B, parent, order, mask)
    if weights is not None:
        _checks.tensor(op, "weights", weights, (pi.dtype,))
        _match(op, "weights", weights, x.shape[:1], "N")
        _checks.same_device(op, "weights", weights, "x", x)
    return sizes


def check_forward_bwd(op, grad_ll, x, pi, A, B, parent, order, mask):
    check_forward(op, x, pi, A, B, parent, order, mask)
    _checks.tensor(op, "grad_ll", grad_ll, (pi.dtype,))
    _checks.same_device(op, "grad_ll", grad_ll, "pi", pi)
    _match(op, "grad_ll", grad_ll, x.shape[:1], "N")


def check_pseudo_count(op, pseudo_count):
    _checks.real(op, "pseudo_count", pseudo_count)
    if not 0 <= pseudo_count < math.inf:
        raise ArgumentError(
            f"{op}: pseudo_count is {pseudo_count}, expected at least 0, and finite"
        )


def check_step(op, step):
    _checks.real(op, "step", step)
    if not 0 < step <= 1:
        raise ArgumentError(f"{op}: step is {step}, expected more than 0, at most 1")


def check_em_update(op, theta, counts, pseudo_count, step):
    _checks.tensor(op, "theta", theta, FLOATS)
    _checks.tensor(op, "counts", counts, (theta.dtype,))
    _checks.same_device(op, "counts", counts, "theta", theta)
    if theta.dim() < 1 or not theta.is_contiguous():
        raise ShapeError(
            f"{op}: theta is {_checks.shape(theta)}, expected contiguous rows [..., width]: it is "
            "updated in place"
        )
    if counts.shape != theta.shape:
        raise ShapeError(
            f"{op}: counts is {_checks.shape(counts)}, expected that of theta, "
            f"{_checks.shape(theta)}"
        )
    check_pseudo_count(op, pseudo_count)
    check_step(op, step)


def check_model(op, model):
    """D, h and K of the frozen tables [pi, A, B, C, parent, order]."""
    if not isinstance(model, list | tuple):
        raise TypeError(
            f"{op}: model must be a list of tables, got {type(model).__name__}; pass model.tables"
        )
    if len(model) != len(_TABLES):
        raise ArgumentError(f"{op}: model has {len(model)} tables, expected {', '.join(_TABLES)}")
    pi, A, B, C, parent, order = model
    D, h, K = _check_sizes(op, pi, A, B, (torch.float32,))
    _checks.tensor(op, "C", C, (torch.float32,))
    _checks.same_device(op, "C", C, "pi", pi)
    _match(op, "C", C, (D, h, K + 1), "D h K+1")
    check_tree(op, parent, order, D, "pi", pi)
    return D, h, K


def check_precision(op, precision, K=1):
    _checks.integer(op, "precision", precision)
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"{op}: precision is {precision}, expected {PRECISIONS[0]} to {PRECISIONS[-1]}"
        )
    if 2**precision < 4 * K:
        raise ArgumentError(
            f"{op}: precision is {precision}, expected at least {(4 * K - 1).bit_length()} for "
            f"K={K} values"
        )


def check_lanes(op, lanes):
    _checks.integer(op, "lanes", lanes)
    if not 1 <= lanes < 2**31:
        raise ArgumentError(f"{op}: lanes is {lanes}, expected 1 to 2^31 - 1")


def check_samples(op, N):
    _checks.integer(op, "N", N)
    if N < 0:
        raise ArgumentError(f"{op}: N is {N}, expected at least 0")


def check_coding(op, x, model, precision, unread=None):
    """What conditional_cdf, intervals and encode share; returns D, h and K."""
    D, h, K = check_model(op, model)
    check_precision(op, precision, K)
    check_data(op, x, D, K, unread)
    _checks.same_device(op, "x", x, "pi", model[0])
    return D, h, K


def check_conditional_cdf(op, x, model, i, precision):
    D, _, _ = check_model(op, model)
    _checks.integer(op, "i", i)
    if not 0 <= i < D:
        raise ArgumentError(f"{op}: i is {i}, expected a variable, 0 to {D - 1}")
    unread = None
    order = model[5]
    if isinstance(x, Tensor) and x.shape[1:] == (D,) and readable(x) and readable(order):
        # What comes at i or later is not read.
        unread = torch.zeros(D, dtype=torch.bool)
        unread[order[order.tolist().index(i) :]] = True
        unread = unread.expand(x.shape)
    return check_coding(op, x, model, precision, unread)


def check_words(op, words, counts):
    """Words [L, W] and how many of each lane are used, [L]; returns L."""
    for name, value in (("words", words), ("counts", counts)):
        _checks.tensor(op, name, value, WORDS)
    _checks.same_device(op, "counts", counts, "words", words)
    if words.dim() != 2:
        raise ShapeError(f"{op}: words is {_checks.shape(words)}, expected [L, W]")
    L, W = words.shape
    _match(op, "counts", counts, (L,), "L")
    if L < 1 or W < 2:
        raise ShapeError(
            f"{op}: words is {_checks.shape(words)}, expected at least one lane of two words"
        )
    return L


def check_decode(op, words, counts, N, model, precision):
    D, h, K = check_model(op, model)
    check_precision(op, precision, K)
    check_samples(op, N)
    check_words(op, words, counts)
    _checks.same_device(op, "words", words, "pi", model[0])
    return D, h, K


def check_rans_encode(op, low, width, lanes, precision):
    check_precision(op, precision)
    check_lanes(op, lanes)
    for name, value in (("low", low), ("width", width)):
        _checks.tensor(op, name, value, WORDS)
    _checks.same_device(op, "width", width, "low", low)
    if low.dim() != 2:
        raise ShapeError(f"{op}: low is {_checks.shape(low)}, expected [N, D]")
    _match(op, "width", width, low.shape, "N D")


def _check_cdf(op, cdf, dims, letters):
    _checks.tensor(op, "cdf", cdf, WORDS)
    if cdf.dim() not in dims or cdf.shape[-1] < 2:
        raise ShapeError(f"{op}: cdf is {_checks.shape(cdf)}, expected {letters} with K at least 1")


def check_rans_decode(op, words, counts, cdf, N, precision):
    """Returns D."""
    check_samples(op, N)
    check_words(op, words, counts)
    _check_cdf(op, cdf, (2, 3), "[D, K+1] or [N, D, K+1]")
    _checks.same_device(op, "cdf", cdf, "words", words)
    check_precision(op, precision, cdf.shape[-1] - 1)
    if cdf.dim() == 3 and cdf.shape[0] != N:
        raise ShapeError(f"{op}: cdf is {_checks.shape(cdf)}, expected [N={N}, D, K+1]")
    return cdf.shape[-2]


def check_rans_decode_step(op, state, position, words, counts, cdf, precision):
    L = check_words(op, words, counts)
    for name, value in (("state", state), ("position", position)):
        _checks.tensor(op, name, value, (torch.int64,))
        _checks.same_device(op, name, value, "words", words)
        _match(op, name, value, (L,), "L")
    _check_cdf(op, cdf, (2,), "[L, K+1]")
    _checks.same_device(op, "cdf", cdf, "words", words)
    check_precision(op, precision, cdf.shape[-1] - 1)
    _match(op, "cdf", cdf, (L, cdf.shape[-1]), "L K+1")
