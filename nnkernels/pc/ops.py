"""The public pc functions: check the arguments, then call the operator.

Where no parameter needs a gradient `forward` calls the `_fwd` operator, which is cheaper than the
one that carries the autograd; the results are the same.

Letters: N samples, D variables, K values a variable, h hidden states, P bits of precision, L lanes.
A circuit is pi [h], A [D, h, h], B [D, h, K], parent and order int64 [D], as in
`nnkernels.pc.reference`; `order` is a depth-first preorder of the tree, such as
`coding_order(parent)`. `model` is the list of a frozen circuit's tables [pi, A, B, C, parent,
order], float32, such as `PCModel.tables`. Data are symbols 0 to K-1, uint8 or int16 [N, D].
"""

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.pc import checks

_ops = torch.ops.nnkernels

# What to do where there is no derivative.
FLOWS_HINT = "differentiate forward, or call it under torch.no_grad()"
CODEC_HINT = "detach the tables or call it under torch.no_grad()"


def forward(
    x: Tensor,
    pi: Tensor,
    A: Tensor,
    B: Tensor,
    parent: Tensor,
    order: Tensor,
    mask: Tensor | None = None,
    *,
    save_u: bool = True,
) -> tuple[Tensor, Tensor]:
    """The log-likelihood of samples under a hidden Chow-Liu tree (arXiv 2111.11632).

    Args:
        x: symbols, uint8 or int16 [N, D].
        pi [h], A [D, h, h], B [D, h, K]: parameters, float32 or float64.
        parent, order: int64 [D].
        mask: bool [N, D], True where a value is missing: it is summed over, whatever x holds there.
        save_u: whether u is wanted. Without it u is [0] where no parameter needs a gradient, which
            saves memory.

    Returns:
        ll [N], the natural logarithm of p(x), -inf where that is 0, and u [D, N, h], the upward
        messages, every row times a power of two. ll is differentiable once in pi, A and B, also
        where they are 0; samples of probability 0 contribute nothing.

    Raises:
        TypeError: a kind, or the dtype of a parameter. PCError (a ValueError): ShapeError,
        SymbolRangeError, StructureError, ArgumentError. RuntimeError: double backward.
        NotImplementedError: forward mode, transforms of torch.func.

    Guarantee:
        Relative error at most 1e-5 in float32 and 1e-12 in float64; the same bits from run to run.

    >>> import torch, nnkernels
    >>> tree = nnkernels.pc.chain(2)
    >>> half = torch.full((2, 2, 2), 0.5)
    >>> x = torch.tensor([[0, 1]], dtype=torch.uint8)
    >>> nnkernels.pc.forward(x, half[0, 0], half, half, *tree)[0].exp()
    tensor([0.2500])
    """
    op = "pc_forward"
    checks.refuse_transforms(op)
    checks.check_forward(op, x, pi, A, B, parent, order, mask)
    _checks.boolean(op, "save_u", save_u)
    if _checks.needs_grad(op, "", pi, A, B):
        return _ops.pc_forward.default(x, pi, A, B, parent, order, mask)
    return _ops.pc_forward_fwd.default(x, pi, A, B, parent, order, mask, save_u)


def flows(
    x: Tensor,
    pi: Tensor,
    A: Tensor,
    B: Tensor,
    parent: Tensor,
    order: Tensor,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The log-likelihood and the expected counts: the E-step of EM.

    Args:
        x, pi, A, B, parent, order, mask: as in `forward`.
        weights: [N] in the dtype of pi, how often each sample counts; default 1.

    Returns:
        ll [N]; and in the shapes of pi, A and B how often, given the data, the root has a state, a
        variable has state b below state a, and a variable in state a has symbol v. The counts of a
        variable sum to the weights of the samples that have a probability (and, for symbols, are
        not masked). Not differentiable.

    Raises:
        As `forward`; RuntimeError for a parameter that requires a gradient.

    Guarantee:
        Error at most 1e-4 of a variable's total in float32 (1e-11 in float64); the same bits from
        run to run.

    >>> import torch, nnkernels
    >>> tree, one = nnkernels.pc.chain(1), torch.ones(1, 1, 1)
    >>> x = torch.tensor([[1], [0], [1]], dtype=torch.uint8)
    >>> nnkernels.pc.flows(x, one[0, 0], one, torch.tensor([[[0.25, 0.75]]]), *tree)[3]
    tensor([[[1., 2.]]])
    """
    op = "pc_flows"
    checks.refuse_transforms(op)
    checks.check_flows(op, x, pi, A, B, parent, order, mask, weights)
    _checks.refuse_gradients(op, FLOWS_HINT, pi, A, B, weights)
    return _ops.pc_flows.default(x, pi, A, B, parent, order, mask, weights)


def em_update(theta: Tensor, counts: Tensor, pseudo_count: float = 0.1, step: float = 1.0) -> None:
    """The M-step of EM on distributions over the last dimension, in place:

        theta <- (1 - step) theta + step (counts + pseudo_count / width) / (sum + pseudo_count)

    Args:
        theta: float32 or float64 [..., width], contiguous. counts: the same dtype and shape.
        pseudo_count: at least 0. step: more than 0, at most 1.

    Rows without counts and pseudo-counts stay as they are. Not differentiable.

    Raises:
        TypeError, ShapeError, ArgumentError; ValueError for a theta that requires a gradient.

    >>> import torch, nnkernels
    >>> theta = torch.tensor([0.5, 0.5])
    >>> nnkernels.pc.em_update(theta, torch.tensor([3.0, 1.0]), pseudo_count=0, step=0.5)
    >>> theta
    tensor([0.6250, 0.3750])
    """
    op = "pc_em_update"
    checks.refuse_transforms(op)
    checks.check_em_update(op, theta, counts, pseudo_count, step)
    if theta.requires_grad:
        raise ValueError(f"{op}: theta requires a gradient, but it is updated in place; detach it")
    _checks.refuse_gradients(op, FLOWS_HINT, theta, counts)
    _ops.pc_em_update.default(theta, counts, float(pseudo_count), float(step))


# ---- coding ----


def conditional_cdf(x: Tensor, model: list[Tensor], i: int, precision: int = 20) -> Tensor:
    """The integer CDF of variable i given the variables that come before it in coding order.

    Args:
        x: symbols [N, D], of which only those before i in order are read.
        model: the tables of a frozen circuit. i: a variable. precision: P, 12 to 24, 2^P >= 4 K.

    Returns:
        int32 [N, K+1], strictly increasing from 0 to 2^P: what the coder uses for x[:, i]. The same
        integers on every machine.

    Raises:
        As `forward`; ArgumentError for i and precision.
    """
    op = "pc_conditional_cdf"
    checks.refuse_transforms(op)
    checks.check_conditional_cdf(op, x, model, i, precision)
    _checks.refuse_gradients(op, CODEC_HINT, *model)
    return _ops.pc_conditional_cdf.default(x, list(model), i, precision)


def intervals(x: Tensor, model: list[Tensor], precision: int = 20) -> tuple[Tensor, Tensor]:
    """What the coder is told of every symbol: its interval of the conditional CDF.

    Args:
        x: symbols [N, D]. model, precision: as in `conditional_cdf`.

    Returns:
        low and width, int32 [N, D], columns in coding order; widths are at least 1. The sum of
        P - log2(width) is what x costs in bits. The same integers on every machine.

    Raises:
        As `conditional_cdf`.
    """
    op = "pc_intervals"
    checks.refuse_transforms(op)
    checks.check_coding(op, x, model, precision)
    _checks.refuse_gradients(op, CODEC_HINT, *model)
    return _ops.pc_intervals.default(x, list(model), precision)


def encode(
    x: Tensor, model: list[Tensor], lanes: int, precision: int = 20
) -> tuple[Tensor, Tensor]:
    """Codes samples with a frozen circuit and rANS; lane l codes samples l, l + L, ...

    Args:
        x: symbols [N, D]. model, precision: as in `conditional_cdf`. lanes: L, at least 1.

    Returns:
        words int32 [L, ceil(N / L) D + 2], the bits of 32-bit words, zero after what is used, and
        counts int32 [L], words used. The same words on every machine and for every number of
        threads.

    Raises:
        As `conditional_cdf`.
    """
    op = "pc_encode"
    checks.refuse_transforms(op)
    checks.check_coding(op, x, model, precision)
    checks.check_lanes(op, lanes)
    _checks.refuse_gradients(op, CODEC_HINT, *model)
    return _ops.pc_encode.default(x, list(model), lanes, precision)


def decode(
    words: Tensor, counts: Tensor, N: int, model: list[Tensor], precision: int = 20
) -> Tensor:
    """The samples [N, D] that `encode` turned into these words, exactly.

    Args:
        words, counts: as `encode` returned them. N: number of samples. model, precision: as given
            to `encode`.

    Returns:
        uint8 [N, D], or int16 where K > 256.

    Raises:
        As `conditional_cdf`; RuntimeError for words that are no such code.
    """
    op = "pc_decode"
    checks.refuse_transforms(op)
    checks.check_decode(op, words, counts, N, model, precision)
    _checks.refuse_gradients(op, CODEC_HINT, *model)
    return _ops.pc_decode.default(words, counts, N, list(model), precision)


def rans_encode(
    low: Tensor, width: Tensor, lanes: int, precision: int = 20
) -> tuple[Tensor, Tensor]:
    """Codes intervals of any model with rANS: symbol (n, d) takes [low, low + width) of 2^P.

    Args:
        low, width: int32 [N, D]; 0 <= low, 1 <= width, low + width <= 2^P. lanes, precision: as in
            `encode`.

    Returns:
        words and counts, as `encode`.

    Raises:
        TypeError, ShapeError, ArgumentError; RuntimeError for an interval outside 2^P.

    >>> import torch, nnkernels
    >>> low, width = torch.tensor([[0, 2**19]]).int(), torch.tensor([[2**19, 2**18]]).int()
    >>> words, counts = nnkernels.pc.rans_encode(low, width, 1)
    >>> cdf = torch.tensor([0, 2**19, 3 * 2**18, 2**20]).int().expand(2, 4)
    >>> nnkernels.pc.rans_decode(words, counts, cdf, 1)
    tensor([[0, 1]], dtype=torch.int32)
    """
    op = "rans_encode"
    checks.refuse_transforms(op)
    checks.check_rans_encode(op, low, width, lanes, precision)
    return _ops.rans_encode.default(low, width, lanes, precision)


def rans_decode(words: Tensor, counts: Tensor, cdf: Tensor, N: int, precision: int = 20) -> Tensor:
    """The symbols whose intervals `rans_encode` coded, given all CDFs beforehand.

    Args:
        words int32 [L, W], counts int32 [L]: the code. cdf: int32 [D, K+1] for all samples, or [N,
            D, K+1]: rising from 0 to 2^P. N: number of samples.

    Returns:
        int32 [N, D].

    Raises:
        TypeError, ShapeError, ArgumentError; RuntimeError for a CDF or words that do not fit.
    """
    op = "rans_decode"
    checks.refuse_transforms(op)
    checks.check_rans_decode(op, words, counts, cdf, N, precision)
    return _ops.rans_decode.default(words, counts, cdf, N, precision)


def rans_decode_step(
    state: Tensor,
    position: Tensor,
    words: Tensor,
    counts: Tensor,
    cdf: Tensor,
    precision: int = 20,
) -> Tensor:
    """The next symbol of every lane: for models whose CDF depends on what was decoded.

    Args:
        state, position: int64 [L], updated in place; zeros start at the beginning. At the end
            position equals counts and state 2^32.
        words int32 [L, W], counts int32 [L]: the code. cdf: int32 [L, K+1], of each lane.

    Returns:
        int32 [L].

    Raises:
        As `rans_decode`.
    """
    op = "rans_decode_step"
    checks.refuse_transforms(op)
    checks.check_rans_decode_step(op, state, position, words, counts, cdf, precision)
    return _ops.rans_decode_step.default(state, position, words, counts, cdf, precision)
