"""HCLT: a hidden Chow-Liu tree that learns, samples, and freezes into a coder."""

import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from nnkernels import _checks
from nnkernels.pc import checks, em, initial, ops, sampling, structure
from nnkernels.pc.em import Report
from nnkernels.pc.errors import ArgumentError, ShapeError

# Parameters of a frozen circuit are at least this before they are normalised.
_SMALLEST = 2.0**-30
# Variables that are frozen at once, which bounds memory.
_PIECE = 64


class HCLT(nn.Module):
    """A hidden Chow-Liu tree (arXiv 2111.11632): a tree of hidden states, one per variable.

    Args:
        parent: int64 [D], the tree, -1 at the root. pi [h], A [D, h, h] (A[root] unused), B [D, h,
            K]: probabilities, float32 or float64; see nnkernels.pc.reference. They become
            parameters.

    Attributes: parent, order (the coding order), pi, A, B, and the sizes D, h, K.

    Calling it is `log_prob`. Training is by EM (`fit`, `em_step`); gradients exist, but do not keep
    the rows on the simplex. K up to 4096, h up to 256, CPU only.

    Raises TypeError (dtypes), StructureError (naming the node), ShapeError, ArgumentError,
    ModelError (parameters that are no probabilities; zeros may be).

    >>> import torch, nnkernels
    >>> x = torch.tensor([[0, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]], dtype=torch.uint8)
    >>> model = nnkernels.pc.HCLT.from_data(x, h=2)
    >>> reports = model.fit(x, epochs=20)
    >>> reports[-1].train_bpd < reports[0].train_bpd
    True
    """

    def __init__(self, parent: Tensor, pi: Tensor, A: Tensor, B: Tensor):
        super().__init__()
        tree = structure.make_tree(parent)
        checks.check_parameters("HCLT", pi, A, B, *tree)
        self.register_buffer("parent", tree.parent.clone())
        self.register_buffer("order", tree.order)
        for name, value in (("pi", pi), ("A", A), ("B", B)):
            value = value.detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, nn.Parameter(value))

    @classmethod
    def from_data(
        cls,
        x: Tensor,
        h: int,
        seed: int = 0,
        bins: int = 8,
        K: int | None = None,
        *,
        parent: Tensor | None = None,
        init: str = "random",
        dtype: torch.dtype = torch.float32,
    ) -> "HCLT":
        """A circuit for data x: the tree learned from it, parameters where training may start.

        Args:
            x: symbols, uint8 or int16 [N, D]. h: hidden states. seed: of the random numbers. bins:
                values are put into as many buckets to learn the tree. K: number of values, default
                the largest of x plus 1. parent: a tree to use instead of a learned one. init:
                "random", near the marginals of x, or "clusters", a guess of the hidden states from
                x (see nnkernels.pc.initial), which takes longer and trains better. dtype: float32
                or float64.

        The same bits for the same arguments. Raises as `structure.learn`, and SymbolRangeError.
        """
        op = "HCLT.from_data"
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: x must be a tensor, got {type(x).__name__}")
        _checks.choice(op, "init", init, ("random", "clusters"))
        _checks.integer(op, "h", h)
        if not 1 <= h <= checks.MAX_H:
            raise ArgumentError(f"{op}: h is {h}, expected 1 to {checks.MAX_H}")
        if K is not None:
            _checks.integer(op, "K", K)
            if not 1 <= K <= checks.MAX_K:
                raise ArgumentError(f"{op}: K is {K}, expected 1 to {checks.MAX_K}")
        D = x.shape[1] if x.dim() == 2 else 0
        checks.check_data(op, x, D, checks.MAX_K if K is None else K)
        if K is None:
            K = int(x.max()) + 1 if x.numel() > 0 else 1
        if parent is None:
            parent = structure.learn(x, K, bins=bins, seed=seed).parent
        if init == "random":
            return cls(parent, *initial.random(x, h, K, seed, dtype))
        parent = structure.make_tree(parent).parent
        if len(parent) != D:
            raise ShapeError(f"{op}: parent is [{len(parent)}], expected [D={D}]")
        return cls(parent, *initial.clusters(x, h, K, seed, dtype, parent))

    @property
    def D(self) -> int:
        """Variables of a sample."""
        return self.B.shape[0]

    @property
    def h(self) -> int:
        """Hidden states of a variable."""
        return self.B.shape[1]

    @property
    def K(self) -> int:
        """Values of a variable, 0 to K - 1."""
        return self.B.shape[2]

    def extra_repr(self) -> str:
        return f"D={self.D}, h={self.h}, K={self.K}"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.log_prob(x, mask)

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Natural logarithm [N] of p(x) for symbols x [N, D], -inf where it is 0; mask bool [N, D],
        True where a value is missing. Guarantee and errors: as `nnkernels.pc.forward`."""
        tables = self.pi, self.A, self.B, self.parent, self.order
        return ops.forward(x, *tables, mask, save_u=False)[0]

    # ---- training ----

    def em_step(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        pseudo_count: float = 0.1,
        step: float = 1.0,
    ) -> Tensor:
        """One step of EM on samples x [N, D], in place.

        Args:
            mask: as in `log_prob`. weights: [N], how often each sample counts. pseudo_count: added
                to the counts of every distribution, spread evenly. step: how far to go, at most 1;
                1 is EM, and never lowers the likelihood of x if pseudo_count is 0.

        Returns:
            log p(x) [N] before the step; samples where it is -inf teach nothing.
        """
        op = "HCLT.em_step"
        checks.check_pseudo_count(op, pseudo_count)
        checks.check_step(op, step)
        return em.em_step(self, x, mask, weights, pseudo_count, step)[0]

    def fit(
        self,
        x: Tensor,
        valid: Tensor | float | None = None,
        epochs: int = 10,
        batch: int = 512,
        pseudo_count: float = 0.1,
        callback: Callable[[Report], bool | None] | None = None,
        *,
        mask: Tensor | None = None,
        steps: tuple[float, float] = (0.25, 0.005),
        seed: int = 0,
        patience: int | None = None,
        checkpoint: str | os.PathLike | None = None,
        resume: bool = False,
    ) -> list[Report]:
        """Trains on x [N, D] by mini-batch EM; with batch >= N by EM proper, one step an epoch.

        Args:
            valid: held-out samples, or the share of x to hold out; the parameters that serve it
                best are kept. epochs: passes over x. batch: samples a step. pseudo_count: per
                distribution and pass. callback: called with a Report after every step; returns True
                to stop. mask: bool [N, D], True where x is missing. steps: step sizes of the first
                and the last step, between which they fall linearly. seed: of the order of samples.
            patience: stop after so many epochs without a better `valid`. checkpoint: a file written
                after every epoch. resume: continue from it, with the same data and options; on the
                CPU the result has the same bits as an uninterrupted run with as many threads.

        Returns:
            The Report of every epoch. Samples of probability zero are skipped and counted there.

        Raises:
            As `log_prob`; ArgumentError for an option, or a checkpoint of something else;
            FormatError for a file that is no checkpoint; FileNotFoundError.
        """
        return em.fit(
            *(self, x, valid, epochs, batch, pseudo_count, callback, mask, steps, seed),
            *(patience, checkpoint, resume),
        )

    # ---- sampling ----

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n exact samples [n, D], uint8, or int16 where K > 256."""
        return sampling.sample(self, n, generator)

    @torch.no_grad()
    def conditional_sample(
        self, x: Tensor, mask: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """x [N, D] with its missing values (mask bool [N, D], True) drawn from their joint
        distribution given the others: inpainting.

        Raises ArgumentError where the others have probability 0.
        """
        return sampling.conditional_sample(self, x, mask, generator)

    # ---- freezing ----

    @torch.no_grad()
    def freeze(self):
        """The circuit as a PCModel, which codes data: no zeros, float32, tables of running sums.

        Probabilities are raised to at least 2^-30 and normalised, by sums in float64 in index
        order. Raises ModelError for parameters that are no probabilities.
        """
        from nnkernels.pc.model import PCModel

        checks.check_parameters("HCLT.freeze", self.pi, self.A, self.B, self.parent, self.order)
        A = self.A.clone()
        A[self.order[0]] = 1 / self.h
        pi, A, B = (_frozen(value) for value in (self.pi[None], A, self.B))
        tables = [torch.from_numpy(value) for value in (pi[0], A, B, _running_sums(B))]
        return PCModel(*tables, self.parent.clone(), self.order.clone())


def _frozen(values: Tensor) -> np.ndarray:
    """Rows of probabilities, at least 2^-30 before they are normalised, as float32."""
    out = np.empty(values.shape, np.float32)
    for start in range(0, len(out), _PIECE):
        piece = np.maximum(values[start : start + _PIECE].double().cpu().numpy(), _SMALLEST)
        # accumulate adds in index order; sum does not.
        out[start : start + _PIECE] = piece / np.add.accumulate(piece, -1)[..., -1:]
    return out


def _running_sums(B: np.ndarray) -> np.ndarray:
    """C [D, h, K + 1]: C[..., v] = sum of B[..., w] over w < v; never falls; ends with 1."""
    D, h, K = B.shape
    C = np.zeros((D, h, K + 1), np.float32)
    for start in range(0, D, _PIECE):
        sums = np.add.accumulate(B[start : start + _PIECE].astype(np.float64), -1)
        C[start : start + _PIECE, :, 1:] = np.minimum(sums, 1)
    C[..., K] = 1
    return C
