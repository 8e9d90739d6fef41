"""Bad input: the Python functions raise the kind of error that fits, the raw operators and their
fake kernels a RuntimeError; all name the operator and the argument."""

import re

import pytest
import torch
from deltaproduct_cases import BF16, FP16, FP32, FP64
from torch._subclasses import FakeTensorMode

from nnkernels import deltaproduct

OPS = torch.ops.nnkernels
B, T, n, Hk, H, K, V = 2, 3, 2, 2, 4, 5, 6


def ones(*shape, dtype=FP32):
    return torch.ones(shape, dtype=dtype)


def scan_arguments(**changes):
    """Valid arguments of `scan`, changed."""
    arguments = {
        "q": ones(B, T, Hk, K),
        "k": ones(B, T * n, Hk, K),
        "v": ones(B, T * n, H, V),
        "g": -ones(B, T, H),
        "beta": ones(B, T * n, H),
        "num_householder": n,
        "initial_state": ones(B, H, K, V),
        "output_final_state": True,
        "use_qk_l2norm": True,
    }
    return arguments | changes


def map_arguments(**changes):
    arguments = scan_arguments()
    for name in ("q", "initial_state", "output_final_state", "use_qk_l2norm"):
        del arguments[name]
    return arguments | changes


def step_arguments(**changes):
    arguments = {
        "q": ones(B, Hk, K),
        "k": ones(B, n, Hk, K),
        "v": ones(B, n, H, V),
        "g": -ones(B, H),
        "beta": ones(B, n, H),
        "state": ones(B, H, K, V),
    }
    return arguments | changes


MAKE = {"scan": scan_arguments, "step": step_arguments, "state_map": map_arguments}
# What the raw operators take in the place of what the functions leave out.
DEFAULTS = {
    "initial_state": None,
    "cu_seqlens": None,
    "slots": None,
    "scale": 0.5,
    "use_qk_l2norm": False,
    "use_k_l2norm": False,
    "output_final_state": False,
    "save_for_backward": True,
}


def raw(op, arguments):
    """Calls the operator with the arguments of the function."""
    operator = getattr(OPS, f"deltaproduct_{op}").default
    given = DEFAULTS | {key: value for key, value in arguments.items() if value is not None}
    given.setdefault("g", None)
    return operator(*(given[argument.name] for argument in operator._schema.arguments))


def packed(**changes):
    """One row that holds two sequences."""
    row = scan_arguments()
    one = {name: row[name][:1] for name in ("q", "k", "v", "g", "beta")}
    given = {"cu_seqlens": torch.tensor([0, 1, 3]), "initial_state": None} | changes
    return one | given


def case(op, error, message, raw=True, **changes):
    shown = {
        name: f"{list(x.shape)}:{x.dtype}".replace("torch.", "")
        if isinstance(x, torch.Tensor)
        else x
        for name, x in changes.items()
    }
    words = [f"{name}={x}".replace(" ", "") for name, x in shown.items()]
    name = "-".join([op, *words])
    return pytest.param(op, error, message, changes, raw, id=name)


def dtype_cases():
    for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn):
        for name in ("q", "k", "v", "g", "beta", "initial_state"):
            wrong = scan_arguments()[name].to(dtype)
            yield case("scan", TypeError, f"{name} has dtype {str(dtype)[6:]}", **{name: wrong})
        for name in ("q", "k", "v", "g", "beta", "state"):
            wrong = step_arguments()[name].to(dtype)
            yield case("step", TypeError, f"{name} has dtype {str(dtype)[6:]}", **{name: wrong})
    for name in ("k", "v"):
        for dtype in (BF16, FP16, FP64):
            wrong = scan_arguments()[name].to(dtype)
            yield case("scan", TypeError, f"{name} has dtype", **{name: wrong})
            wrong = step_arguments()[name].to(dtype)
            yield case("step", TypeError, f"{name} has dtype", **{name: wrong})
    yield case("state_map", TypeError, "v has dtype", v=ones(B, T * n, H, V, dtype=BF16))
    # Narrower than the operator computes in, and not what q is.
    for dtype in (BF16, FP64):
        yield case("scan", TypeError, "beta has dtype", False, beta=ones(B, T * n, H, dtype=dtype))
    state = ones(B, H, K, V, dtype=FP64)
    yield case("scan", TypeError, "initial_state has dtype float64", False, initial_state=state)
    yield case("step", TypeError, "state has dtype", False, state=state)
    for dtype in (FP32, torch.int32):
        slots = torch.zeros(B, dtype=dtype)
        yield case("step", TypeError, "slots has dtype", slots=slots)


def kind_cases():
    for op, names in (("scan", "qkvgb"), ("step", "qkvgb"), ("state_map", "kvgb")):
        for letter in names:
            name = "beta" if letter == "b" else letter
            yield case(op, TypeError, f"{name} must be a tensor", False, **{name: [1.0]})
    yield case("scan", TypeError, "initial_state must be a tensor", False, initial_state=0)
    yield case("step", TypeError, "state must be a tensor", False, state=None)
    for value in (2.0, "2", True, None):
        message = "num_householder must be an int"
        yield case("scan", TypeError, message, False, num_householder=value)
        yield case("state_map", TypeError, message, False, num_householder=value)
    yield case("scan", TypeError, "scale must be a number", False, scale="1")
    yield case("scan", TypeError, "use_qk_l2norm must be a bool", False, use_qk_l2norm=1)
    yield case("scan", TypeError, "output_final_state must be a bool", False, output_final_state=1)
    sparse = ones(B, T, Hk, K).to_sparse()
    yield case("scan", TypeError, "q is a sparse_coo tensor", False, q=sparse)


def size_cases():
    wrong = {
        "q": [(B, T, K), (B, T + 1, Hk, K), (B + 1, T, Hk, K)],
        "k": [
            *((B, T, Hk, K), (B, T * n + 1, Hk, K), (B, T * n, Hk, K + 1), (B, T * n, Hk + 2, K)),
            *((1, T * n, Hk, K), (B, T * n, K)),
        ],
        "v": [(B, T * n - 1, H, V), (B, T * n, V), (1, T * n, H, V)],
        "beta": [(B, T, H), (B, T * n, H + 1), (B, T * n), (B, T * n, 1)],
        "initial_state": [(B, H, K, V + 1), (B, H, V, K), (B + 1, H, K, V), (H, K, V)],
    }
    for name, shapes in wrong.items():
        for shape in shapes:
            # A wrong q is noticed in what does not fit it.
            named = r"(q|k|g) is" if name == "q" else f"{name} is"
            yield case("scan", ValueError, named, **{name: ones(*shape)})
    for shape in ((B, T, n + 1, Hk, K), (B, T + 1, n, Hk, K)):
        yield case("scan", ValueError, "k is .*num_householder=2", False, k=ones(*shape))
    yield case("scan", ValueError, "k is", num_householder=3)
    for value in (0, -1):
        message = "num_householder must be at least 1"
        yield case("scan", ValueError, message, num_householder=value)
        yield case("state_map", ValueError, message, num_householder=value)
    # Value heads that are not a multiple of the key heads.
    odd = {"v": ones(B, T * n, 3, V), "beta": ones(B, T * n, 3), "g": ones(B, T, 3)}
    message = "H=3 .*Hk=2.* multiple"
    yield case("scan", ValueError, message, **odd, initial_state=None)
    yield case("state_map", ValueError, message, **odd)
    none = {"v": ones(B, T * n, 0, V), "beta": ones(B, T * n, 0), "g": ones(B, T, 0)}
    message = "H=0 .*Hk=2.* multiple"
    yield case("scan", ValueError, message, **none, initial_state=None)
    yield case("state_map", ValueError, message, **none)
    for shape in ((B, T * n, H), (B, T, n, H)):
        raw = len(shape) == 3
        yield case("scan", ValueError, "g is .*one gate per token", raw, g=ones(*shape))
        yield case("state_map", ValueError, "g is .*one gate per token", raw, g=ones(*shape))
    yield case("step", ValueError, "g is .*one gate per token", g=ones(B, n, H))
    for shape in ((B, T, H + 1), (B, T), (1, T, H), (B, T, 1)):
        yield case("scan", ValueError, "g is", g=ones(*shape))
    none = {"q": ones(B, T, Hk, 0), "k": ones(B, T * n, Hk, 0), "initial_state": None}
    yield case("scan", ValueError, "K=0", **none)
    yield case("state_map", ValueError, "K=0", k=ones(B, T * n, Hk, 0))
    yield case("scan", ValueError, "V=0", v=ones(B, T * n, H, 0), initial_state=None)
    yield case("state_map", ValueError, "k has .* rows", k=ones(B, 5, Hk, K))
    wrong = {
        "q": [(B, T, Hk, K), (B, Hk + 1, K)],
        "k": [(B, n + 1, Hk, K), (B, n, Hk, K + 1), (B, Hk, K)],
        "v": [(B, n, V), (B + 1, n, H, V)],
        "beta": [(B, H), (B, n, 1)],
        "state": [(B, H, K, V + 1), (B + 1, H, K, V), (H, K, V)],
        "slots": [(B + 1,), (B, 1)],
    }
    for name, shapes in wrong.items():
        for shape in shapes:
            x = ones(*shape, dtype=torch.int64) if name == "slots" else ones(*shape)
            named = r"(q|k|v|beta) is" if name in ("q", "v") else f"{name} is"
            yield case("step", ValueError, named, **{name: x})
    yield case("step", ValueError, "num_householder", k=ones(B, 0, Hk, K), v=ones(B, 0, H, V))


def value_cases():
    for scale in (float("nan"), float("inf"), -float("inf")):
        yield case("scan", ValueError, "scale must be finite", scale=scale)
        yield case("step", ValueError, "scale must be finite", scale=scale)
    bounds = {
        "starts with 1": [1, 2, 3],
        "decreases from 2 to 1 at index 2": [0, 2, 1, 3],
        "ends with 4, expected at most T=3": [0, 2, 4],
        "starts with -1": [-1, 3],
    }
    for message, values in bounds.items():
        for dtype in (torch.int32, torch.int64):
            cu_seqlens = torch.tensor(values, dtype=dtype)
            changes = packed(cu_seqlens=cu_seqlens)
            yield case("scan", ValueError, f"cu_seqlens {message}", **changes)
            del changes["q"], changes["initial_state"]
            yield case("state_map", ValueError, f"cu_seqlens {message}", **changes)
    yield case("scan", TypeError, "cu_seqlens has dtype", **packed(cu_seqlens=ones(3)))
    whole = torch.tensor([0, 3])
    yield case("scan", ValueError, "cu_seqlens needs B=1", cu_seqlens=whole)
    yield case("scan", ValueError, "cu_seqlens is", **packed(cu_seqlens=whole[None]))
    none = torch.zeros(0, dtype=torch.int64)
    yield case("scan", ValueError, "cu_seqlens is", **packed(cu_seqlens=none))
    state = ones(3, H, K, V)
    yield case("scan", ValueError, "initial_state is", **packed(initial_state=state))
    for message, slots in {
        "holds 2, expected -1 to 1": [0, 2],
        "holds -2": [-2, 0],
        "holds 1 twice": [1, 1],
    }.items():
        yield case("step", ValueError, f"slots {message}", slots=torch.tensor(slots))


CASES = [*dtype_cases(), *kind_cases(), *size_cases(), *value_cases()]


@pytest.mark.parametrize(("op", "error", "message", "changes", "as_raw"), CASES)
def test_functions(op, error, message, changes, as_raw):
    with pytest.raises(error, match=f"^deltaproduct_{op}: .*{message}"):
        getattr(deltaproduct, op)(**MAKE[op](**changes))


@pytest.mark.parametrize(
    ("op", "message", "changes"),
    [pytest.param(p.values[0], p.values[2], p.values[3], id=p.id) for p in CASES if p.values[4]],
)
@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
def test_raw_operators(op, message, changes, fake):
    arguments = MAKE[op](**changes)
    reads_values = re.search("slots holds|starts with|decreases|ends with", message)
    if fake and reads_values:
        # Values are read by the kernels alone.
        return
    if not fake:
        with pytest.raises(RuntimeError, match=f"deltaproduct_{op}: "):
            raw(op, arguments)
        return
    with FakeTensorMode() as mode:
        moved = {
            name: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x
            for name, x in arguments.items()
        }
        with pytest.raises(RuntimeError, match=f"deltaproduct_{op}: .*{message}"):
            raw(op, moved)


@pytest.mark.parametrize("op", MAKE)
def test_valid_arguments_pass(op):
    getattr(deltaproduct, op)(**MAKE[op]())
    raw(op, MAKE[op]())


@pytest.mark.parametrize("op", MAKE)
def test_devices_must_agree(op):
    arguments = MAKE[op]()
    tensors = [name for name, x in arguments.items() if isinstance(x, torch.Tensor)]
    for name in tensors[1:]:
        moved = arguments | {name: arguments[name].to("meta")}
        with pytest.raises(ValueError, match=f"^deltaproduct_{op}: {name} is on meta"):
            getattr(deltaproduct, op)(**moved)


# ---- gradients ----


@pytest.mark.parametrize("op", ["step", "state_map"])
def test_no_derivative(op):
    arguments = MAKE[op]()
    for name in ("k", "v", "g", "beta"):
        wanted = arguments | {name: arguments[name].clone().requires_grad_()}
        message = f"^deltaproduct_{op}: an input requires a gradient, but it has no derivative"
        with pytest.raises(RuntimeError, match=message):
            getattr(deltaproduct, op)(**wanted)
        with pytest.raises(RuntimeError, match=message):
            raw(op, wanted)
        with torch.no_grad():
            getattr(deltaproduct, op)(**wanted)


def test_a_state_that_requires_a_gradient():
    arguments = step_arguments(state=ones(B, H, K, V).requires_grad_())
    for context in (torch.enable_grad, torch.no_grad):
        with context(), pytest.raises(ValueError, match=r"^deltaproduct_step: state requires"):
            deltaproduct.step(**arguments)


def test_double_backward():
    q = ones(B, T, Hk, K).requires_grad_()
    o, _ = deltaproduct.scan(**scan_arguments(q=q))
    (gradient,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="deltaproduct_scan: double backward is not supported"):
        gradient.sum().backward()


def test_backward_checks_its_own_arguments():
    arguments = scan_arguments()
    tensors = [arguments[x] for x in ("q", "k", "v", "g", "beta", "initial_state")]
    o, state, checkpoints = OPS.deltaproduct_scan_fwd(*tensors, None, n, 0.5, True, True, True)
    for name, changes in {
        "grad_o": (o[:, :1], state, checkpoints),
        "grad_final": (o, state[:1], checkpoints),
        "checkpoints": (o, state, checkpoints[:1]),
    }.items():
        grad_o, grad_final, kept = changes
        with pytest.raises(RuntimeError, match=f"deltaproduct_scan_bwd: .*{name}"):
            OPS.deltaproduct_scan_bwd(grad_o, grad_final, *tensors, None, kept, n, 0.5, True)
