"""What the deltaproduct bench is made of: inputs, checks, counted work, and the plain torch a user
would run without this package."""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Work, WrongResult

from nnkernels import deltaproduct
from nnkernels.deltaproduct import reference

# ||x - reference|| / ||reference|| of o and the final state, with beta in [0, 2].
TOLERANCES = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 8e-3}


class Inputs:
    """One call of the scan: B sequences of T tokens, H heads of d x d, n micro-steps a token."""

    def __init__(self, T: int, n: int, d: int, *, B: int = 1, H: int = 4, dtype=torch.float32):
        draw = torch.Generator().manual_seed(T + n + d)
        self.T, self.n, self.d, self.B, self.H, self.dtype = T, n, d, B, H, dtype
        self.q = torch.randn(B, T, H, d, generator=draw).to(dtype)
        k = torch.randn(B, T * n, H, d, generator=draw)
        self.k = torch.nn.functional.normalize(k, dim=-1).to(dtype)
        self.v = torch.randn(B, T * n, H, d, generator=draw).to(dtype)
        self.g = -torch.rand(B, T, H, generator=draw)
        self.beta = (2 * torch.rand(B, T * n, H, generator=draw)).to(dtype)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.k, self.v, self.g, self.beta

    @property
    def shape(self) -> str:
        return f"B{self.B} T{self.T} H{self.H} d{self.d} n{self.n}"

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def heads(self, count: int) -> tuple[torch.Tensor, ...]:
        """The first heads, in float64: what a check takes."""
        return tuple(x[:, :, :count].double() for x in self.tensors)

    def scan(self) -> tuple[torch.Tensor, torch.Tensor]:
        return deltaproduct.scan(*self.tensors, self.n, output_final_state=True)

    def work(self) -> Work:
        """(4 n + 2) K V operations a token, two of them one multiply-add; inputs and o once."""
        d, n, size = self.d, self.n, self.q.element_size()
        per_token = (2 * n * d + 2 * d) * size + 4 * (n + 1)
        count = self.B * self.T * self.H
        return Work(ops=count * (2 * n + 1) * d * d, bytes=count * per_token)


def check_scan(inputs: Inputs, call: Callable, tolerance: float | None = None):
    """A check of one head over all of time, against the float64 token loop."""

    def check() -> None:
        want = reference.scan(*inputs.heads(1), inputs.n, output_final_state=True)
        o, state = call()
        for got, exact in zip((o[:, :, :1], state[:, :1]), want, strict=True):
            check_error(got, exact, tolerance or TOLERANCES[inputs.dtype])

    return check


def check_error(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    error = ((got.double() - want).norm() / want.norm()).item()
    if not error <= tolerance:
        raise WrongResult(f"relative error {error:.2g}, expected at most {tolerance:.2g}")


# ---- the plain torch peers ----


def token_loop(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """What people write first."""
    return reference.scan(*inputs.tensors, inputs.n, output_final_state=True, dtype=torch.float32)


def chunk_form(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The chunk form of this package in torch."""
    return reference.chunk_scan(*inputs.tensors, inputs.n, output_final_state=True)


def interleaved(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """n-fold time for a kernel of n = 1: gates at the first micro-step of a token, queries at the
    last, zeros between."""
    B, T, H, d = inputs.q.shape
    n = inputs.n
    q, g = inputs.q.new_zeros(B, T, n, H, d), inputs.g.new_zeros(B, T, n, H)
    q[:, :, -1], g[:, :, 0] = inputs.q, inputs.g
    o, state = gated_delta_rule(
        q.flatten(1, 2), inputs.k, inputs.v, g.flatten(1, 2), inputs.beta, chunk=64
    )
    return o[:, n - 1 :: n], state


def gated_delta_rule(q, k, v, g, beta, chunk):
    """The gated delta rule as CPU fallbacks of language models have it: padded to whole chunks, the
    inverse of every chunk's triangle row by row for all chunks at once, then a loop over chunks."""
    B, T, H, K = q.shape
    pad = -T % chunk
    q, k, v, g, beta = (x.transpose(1, 2).float() for x in (q * K**-0.5, k, v, g, beta))
    q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
    g, beta = (torch.nn.functional.pad(x, (0, pad)) for x in (g, beta))
    written, keys = v * beta[..., None], k * beta[..., None]
    q, k, written, keys = (x.unflatten(2, (-1, chunk)) for x in (q, k, written, keys))
    g = g.unflatten(2, (-1, chunk)).cumsum(-1)
    later = torch.ones(chunk, chunk, dtype=torch.bool).triu()
    decay = (g[..., :, None] - g[..., None, :]).tril().exp().tril()
    inverse = -(keys @ k.mT * decay).masked_fill(later, 0)
    for i in range(1, chunk):
        row, above = inverse[..., i, :i].clone(), inverse[..., :i, :i].clone()
        inverse[..., i, :i] = row + (row[..., None] * above).sum(-2)
    inverse = inverse + torch.eye(chunk)
    written = inverse @ written
    keys = inverse @ (keys * g.exp()[..., None])
    state = q.new_zeros(B, H, K, v.shape[-1])
    out = torch.empty_like(written)
    for i in range(q.shape[2]):
        scores = (q[:, :, i] @ k[:, :, i].mT * decay[:, :, i]).masked_fill(later.triu(1), 0)
        new = written[:, :, i] - keys[:, :, i] @ state
        out[:, :, i] = (q[:, :, i] * g[:, :, i, :, None].exp()) @ state + scores @ new
        left = (g[:, :, i, -1, None] - g[:, :, i]).exp()[..., None]
        state = state * g[:, :, i, -1, None, None].exp() + (k[:, :, i] * left).mT @ new
    return out.flatten(2, 3)[:, :, :T].transpose(1, 2), state
