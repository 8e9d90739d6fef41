"""Inputs, oracles and tolerances that the tests of the deltaproduct operators share.

The oracle is `nnkernels.deltaproduct.reference` in float64 on the same rounded inputs.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from nnkernels import deltaproduct
from nnkernels.deltaproduct import reference

FP64, FP32, BF16, FP16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
NAMES = ("q", "k", "v", "g", "beta", "initial_state")

# Bounds of ||x - reference|| / ||reference||: of o and the final state, of the gradients of q, k, v
# and the initial state, of those of beta and g. "one": beta in [0, 1]; "two": in [0, 2]; "at two":
# beta >= 1.9 without gates, where an error never fades.
TOLERANCES = {
    (FP64, "one"): (1e-12, 1e-11, 1e-11),
    (FP64, "two"): (1e-12, 1e-11, 1e-11),
    (FP64, "at two"): (1e-12, 1e-11, 1e-11),
    (FP32, "one"): (5e-6, 2e-5, 5e-5),
    (FP32, "two"): (5e-6, 2e-5, 5e-5),
    (FP32, "at two"): (2e-5, 1e-4, 1e-4),
    (BF16, "one"): (6e-3, 1e-2, 2e-2),
    (BF16, "two"): (8e-3, 1.5e-2, 2e-2),
    (BF16, "at two"): (3e-2, 5e-2, 5e-2),
    (FP16, "one"): (5e-3, 8e-3, 2e-2),
}


def generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(31**i * s for i, s in enumerate(seed)) % 2**31)


@dataclass(frozen=True)
class Case:
    """One call of `scan`: sizes, and what is special about its values."""

    T: int = 17
    n: int = 2
    K: int = 16
    V: int = 16
    B: int = 2
    Hk: int = 1
    H: int = 2
    dtype: torch.dtype = FP32
    # "one" and "two" draw beta from [0, 1] and [0, 2]; a number is beta everywhere.
    beta: str | float = "two"
    # None, "random" (in [-1, 0]), "strong" and "reset" (random, but -50 or -inf at one token), or
    # the gate everywhere.
    g: str | float | None = "random"
    # "random", "equal" (one key for ever) or "correlated" (0.9 with one key).
    keys: str = "random"
    # The size of the entries of the initial state; None for no state.
    initial: float | None = 1.0
    l2norm: bool = False

    def __str__(self) -> str:
        name = f"T{self.T}-n{self.n}-K{self.K}-V{self.V}-B{self.B}-H{self.Hk}of{self.H}"
        name += f"-{str(self.dtype).removeprefix('torch.')}"
        for field in ("beta", "g", "keys", "initial", "l2norm"):
            if getattr(self, field) != type(self).__dataclass_fields__[field].default:
                name += f"-{field}={getattr(self, field)}"
        return name

    @property
    def regime(self) -> str:
        if self.beta in ("one", "two"):
            return self.beta
        return "one" if self.beta <= 1 else "at two" if self.g in (None, 0.0) else "two"

    @property
    def tolerances(self) -> tuple[float, float, float]:
        return TOLERANCES[self.dtype, self.regime]

    def inputs(self) -> dict[str, Tensor | None]:
        """q, k, v, g, beta and initial_state, unit keys unless the operator makes them so."""
        draw = functools.partial(torch.randn, generator=generator(self.T, self.n, self.K, self.V))
        uniform = functools.partial(torch.rand, generator=generator(self.T, self.H, self.n))
        rows = self.T * self.n
        q = draw(self.B, self.T, self.Hk, self.K)
        k = draw(self.B, rows, self.Hk, self.K)
        first = draw(self.B, 1, self.Hk, self.K)
        if self.keys == "equal":
            k = first.expand_as(k)
        elif self.keys == "correlated":
            k, first = (torch.nn.functional.normalize(x, dim=-1) for x in (k, first))
            k = 0.9 * first + (1 - 0.9**2) ** 0.5 * k
        if not self.l2norm:
            k = torch.nn.functional.normalize(k, dim=-1)
            # Rounding must not push a key beyond length one: beta = 2 would blow up.
            k = k * (1 - 2.0**-8) if self.dtype in (BF16, FP16) else k
        v = draw(self.B, rows, self.H, self.V)
        if isinstance(self.beta, str):
            beta = uniform(self.B, rows, self.H) * {"one": 1, "two": 2}[self.beta]
        else:
            beta = torch.full((self.B, rows, self.H), float(self.beta))
        g = None
        if self.g is not None:
            g = -uniform(self.B, self.T, self.H)
            if self.g in ("strong", "reset"):
                g[:, self.T // 2] = -50 if self.g == "strong" else -torch.inf
            elif self.g != "random":
                g = torch.full_like(g, self.g)
        state = None
        if self.initial is not None:
            state = self.initial * draw(self.B, self.H, self.K, self.V)
        wide = reference.state_dtype(self.dtype)
        return {
            **{"q": q.to(self.dtype), "k": k.to(self.dtype), "v": v.to(self.dtype)},
            **{"g": None if g is None else g.to(wide), "beta": beta.to(self.dtype)},
            "initial_state": None if state is None else state.to(wide),
        }

    def upstream(self) -> tuple[Tensor, Tensor]:
        """The gradients of o and of the final state, drawn once for all."""
        draw = functools.partial(torch.randn, generator=generator(self.T, 7))
        wide = reference.state_dtype(self.dtype)
        grad_o = draw(self.B, self.T, self.H, self.V).to(self.dtype)
        return grad_o, draw(self.B, self.H, self.K, self.V).to(wide)

    @property
    def options(self) -> dict:
        return {
            "num_householder": self.n,
            "output_final_state": True,
            "use_qk_l2norm": self.l2norm,
        }


def part(inputs: dict, n: int, start: int, end: int) -> dict[str, Tensor | None]:
    """q, k, v, g and beta of the tokens from start to end."""
    tokens, rows = slice(start, end), slice(start * n, end * n)
    along = {"q": tokens, "g": tokens, "k": rows, "v": rows, "beta": rows}
    return {
        name: None if inputs[name] is None else inputs[name][:, where]
        for name, where in along.items()
    }


def run(function, inputs, upstream, **options) -> dict[str, Tensor]:
    """o, final_state and the gradients of `function`, by name."""
    leaves = {
        name: None if x is None else x.detach().clone().requires_grad_()
        for name, x in inputs.items()
    }
    given = {name: x for name, x in leaves.items() if x is not None}
    o, state = function(**leaves, **options)
    gradients = torch.autograd.grad((o, state), list(given.values()), upstream)
    found = {f"d{name}": x for name, x in zip(given, gradients, strict=True)}
    return {"o": o.detach(), "final_state": state.detach(), **found}


@functools.cache
def expected(case: Case) -> dict[str, Tensor]:
    """The same in float64. Long sequences by chunks, whose agreement with the loop is tested."""
    wide = {name: None if x is None else x.to(FP64) for name, x in case.inputs().items()}
    upstream = tuple(x.to(FP64) for x in case.upstream())
    function = reference.scan if case.T * case.n <= 400 else reference.chunk_scan
    return run(function, wide, upstream, **case.options)


def relative_error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||; the plain norm where nothing is wanted."""
    want = want.to(FP64)
    norm = want.norm().item()
    return (got.to(FP64) - want).norm().item() / (norm or 1.0)


def check_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerances) -> None:
    """Every result within its bound."""
    bounds = dict.fromkeys(("o", "final_state"), tolerances[0])
    bounds |= dict.fromkeys(("dbeta", "dg"), tolerances[2])
    for name, x in want.items():
        assert got[name].shape == x.shape, name
        error = relative_error(got[name], x)
        assert error <= bounds.get(name, tolerances[1]), f"{name}: relative error {error:.3g}"


def check(case: Case) -> None:
    """The operator's results and gradients against the oracle."""
    inputs = case.inputs()
    got = run(deltaproduct.scan, inputs, case.upstream(), **case.options)
    for name, x in inputs.items():
        assert x is None or got[f"d{name}"].dtype == x.dtype
    assert got["o"].dtype == case.dtype
    assert got["final_state"].dtype == reference.state_dtype(case.dtype)
    check_close(got, expected(case), case.tolerances)
