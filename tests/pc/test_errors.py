"""Bad input: the Python functions raise the kind of error that fits, the raw operators and their
fake kernels a RuntimeError; all name the operator and the argument."""

import contextlib
import functools
import re

import pytest
import torch
from pc_cases import FP32, FP64, Case
from torch._subclasses import FakeTensorMode

from nnkernels import pc
from nnkernels.pc import ArgumentError, ShapeError, StructureError, SymbolRangeError

OPS = torch.ops.nnkernels
N, D, H, K, L = 6, 4, 3, 5, 2
CIRCUIT = Case(D=D, h=H, K=K, N=N)
INT32 = torch.int32


@functools.cache
def frozen():
    parameters = CIRCUIT.parameters()
    model = pc.HCLT(*(parameters[name] for name in ("parent", "pi", "A", "B")))
    return model.freeze().tables


@functools.cache
def coded():
    return pc.encode(CIRCUIT.data(), frozen(), L)


def forward_arguments():
    return CIRCUIT.inputs() | {"mask": torch.zeros(N, D, dtype=torch.bool)}


def coding_arguments(**more):
    return {"x": CIRCUIT.data(), "model": list(frozen()), "precision": 20} | more


def words_arguments(**more):
    words, counts = coded()
    return {"words": words, "counts": counts, "precision": 20} | more


# No powers of two: with them any flipped bit is the code of something else.
CDF = (0, 100_003, 300_007, 500_009, 900_001, 2**20)


def cdf(*shape):
    return torch.tensor(CDF, dtype=INT32).expand(*shape, K + 1)


def rans_coded():
    low = torch.zeros(N, D, dtype=INT32)
    return pc.rans_encode(low, low + CDF[1], L)


MAKE = {
    "pc_forward": forward_arguments,
    "pc_flows": lambda: forward_arguments() | {"weights": torch.ones(N)},
    "pc_em_update": lambda: {
        "theta": torch.full((3, 4), 0.25),
        "counts": torch.ones(3, 4),
        "pseudo_count": 0.1,
        "step": 0.5,
    },
    "pc_conditional_cdf": lambda: coding_arguments(i=int(frozen()[5][-1])),
    "pc_intervals": coding_arguments,
    "pc_encode": lambda: coding_arguments(lanes=L),
    "pc_decode": lambda: words_arguments(N=N, model=list(frozen())),
    "rans_encode": lambda: {
        "low": torch.zeros(N, D, dtype=INT32),
        "width": torch.full((N, D), 2**18, dtype=INT32),
        "lanes": L,
        "precision": 20,
    },
    "rans_decode": lambda: {
        "words": rans_coded()[0],
        "counts": rans_coded()[1],
        "cdf": cdf(D),
        "N": N,
        "precision": 20,
    },
    "rans_decode_step": lambda: words_arguments(
        state=torch.zeros(L, dtype=torch.int64),
        position=torch.zeros(L, dtype=torch.int64),
        cdf=cdf(L),
    ),
}
INFERENCE = ("pc_forward", "pc_flows")
CODING = ("pc_conditional_cdf", "pc_intervals", "pc_encode")
FROZEN = (*CODING, "pc_decode")
DECODING = ("pc_decode", "rans_decode", "rans_decode_step")


def run(op, arguments):
    return getattr(pc, op.removeprefix("pc_"))(**arguments)


def raw(op, arguments):
    operator = getattr(OPS, op).default
    return operator(*(arguments[argument.name] for argument in operator._schema.arguments))


def case(op, error, message, raw=True, **changes):
    """raw: whether the operator itself says so too, "values" where only its kernel can."""
    words = []
    for name, x in changes.items():
        if isinstance(x, torch.Tensor):
            x = f"{list(x.shape)}:{x.dtype}".replace("torch.", "")
        words.append(f"{name}={x}"[:40].replace(" ", ""))
    label = re.sub(r"[^\w=:.,\[\]-]", "", "-".join([op, message[:25], *words]))
    return pytest.param(op, error, message, changes, raw, id=label)


def table(index, value):
    model = list(frozen())
    model[index] = value
    return model


def data_cases():
    for op in (*INFERENCE, *CODING):
        x = CIRCUIT.data()
        yield case(op, TypeError, "x must be a tensor, got list", False, x=[[0] * D])
        yield case(op, SymbolRangeError, "x has dtype float32", x=x.float())
        half = x.float()
        half[2, 1] = 0.5
        yield case(op, SymbolRangeError, r"\(sample 2, variable 1 is 0.5\)", False, x=half.clone())
        half[1, 3] = torch.nan
        yield case(op, SymbolRangeError, r"\(sample 1, variable 3 is nan\)", False, x=half.clone())
        for dtype in (torch.int32, torch.int64, torch.int8, torch.bool):
            yield case(op, ShapeError, f"x has dtype {str(dtype)[6:]}", x=x.to(dtype))
        yield case(op, ShapeError, rf"x is \[{N}, 3\], expected \[N, D={D}\]", x=x[:, :3])
        yield case(op, ShapeError, rf"x is \[{D}\]", x=x[0])
        yield case(op, ShapeError, r"x is \[6, 4, 1\]", x=x[..., None])
        # The root is read by all.
        root = int(frozen()[5][0])
        for value, sample in ((K, 3), (255, 5), (-1, 0)):
            wrong = x.to(torch.int16) if value < 0 else x.clone()
            wrong[sample, root] = value
            message = f"sample {sample}, variable {root} is {value}"
            yield case(op, SymbolRangeError, message, "values", x=wrong)
        yield case(op, TypeError, "x is a sparse_coo tensor", False, x=x.to_sparse())


def parameter_cases():
    given = CIRCUIT.inputs()
    for op in INFERENCE:
        for name in ("pi", "A", "B"):
            for dtype in (torch.bfloat16, torch.float16, INT32):
                yield case(op, TypeError, f"{name} has dtype", **{name: given[name].to(dtype)})
            yield case(op, TypeError, f"{name} must be a tensor", False, **{name: [1.0]})
            wrong = given[name][..., :-1]
            yield (
                case(op, ShapeError, r"(A|B) is \[", False, **{name: wrong})
                if (name != "B")
                else case(op, SymbolRangeError, "", "values", B=given["B"][..., :1])
            )
        yield case(op, TypeError, "A has dtype float64", A=given["A"].double())
        yield case(op, TypeError, "B has dtype float64", B=given["B"].double())
        yield case(op, ShapeError, r"pi is \[1, 3\], expected \[h\]", pi=given["pi"][None])
        yield case(op, ShapeError, r"B is \[3, 5\]", B=given["B"][0])
        yield case(op, ShapeError, r"A is \[5, 3, 3\], expected \[D=4", A=torch.ones(5, H, H))
        yield case(op, ArgumentError, "h is 0", pi=torch.ones(0))
        yield case(op, ArgumentError, "h is 257", pi=torch.ones(257))
        yield case(op, ArgumentError, "K is 0", B=torch.ones(D, H, 0))
        yield case(op, ArgumentError, "K is 4097", B=torch.ones(D, H, 4097))
        yield case(op, TypeError, "mask has dtype uint8", mask=given["x"])
        mask = torch.ones(N, D + 1, dtype=torch.bool)
        yield case(op, ShapeError, r"mask is \[6, 5\], expected \[N=6, D=4\]", mask=mask)
        yield case(op, TypeError, "mask must be a tensor", False, mask=True)
    yield case("pc_flows", TypeError, "weights has dtype float64", weights=torch.ones(N).double())
    yield case("pc_flows", ShapeError, r"weights is \[1\], expected \[N=6\]", weights=torch.ones(1))


def tree_cases():
    parent, order = frozen()[4:]
    root, second = order[:2].tolist()
    other = int(order[2])
    for op in (*INFERENCE, *FROZEN):
        # The tables are arguments of their own, or parts of the model.
        def given(op=op, **changes):
            if op in INFERENCE:
                return changes
            index = {"parent": 4, "order": 5}
            model = list(frozen())
            for name, value in changes.items():
                model[index[name]] = value
            return {"model": model}

        for name, value in (("parent", parent), ("order", order)):
            changes = given(**{name: value.int()})
            yield case(op, TypeError, f"{name} has dtype int32", **changes)
            changes = given(**{name: value[:-1]})
            yield case(op, ShapeError, rf"{name} is \[3\], expected \[D=4\]", **changes)
        wrong = order.clone()
        wrong[3] = wrong[2]
        message = f"order holds node {int(wrong[2])} twice"
        yield case(op, StructureError, message, "values", **given(order=wrong.clone()))
        wrong[3] = 7
        message = "order holds node 7, expected 0 to 3"
        yield case(op, StructureError, message, "values", **given(order=wrong.clone()))
        wrong[3] = -1
        yield case(
            op, StructureError, "order holds node -1", "values", **given(order=wrong.clone())
        )
        wrong = parent.clone()
        wrong[second] = -1
        message = f"node {second} has parent -1"
        yield case(op, StructureError, message, "values", **given(parent=wrong.clone()))
        wrong[second] = root
        wrong[root] = second
        message = f"node {root} has parent {second}"
        yield case(op, StructureError, message, "values", **given(parent=wrong.clone()))
        wrong = parent.clone()
        wrong[other] = 9
        message = f"node {other} .* parent 9"
        yield case(op, StructureError, message, "values", **given(parent=wrong))
        wrong = torch.cat([order[1:], order[:1]])
        yield case(op, StructureError, f"node {second} has parent", "values", **given(order=wrong))


def model_cases():
    pi, A, B, C, *_ = frozen()
    for op in FROZEN:
        yield case(op, TypeError, "model must be a list of tables, got Tensor", False, model=pi)
        yield case(op, ArgumentError, "model has 5 tables", model=list(frozen())[:5])
        for index, value in enumerate((pi, A, B, C)):
            yield case(op, TypeError, "has dtype float64", model=table(index, value.double()))
        yield case(
            op,
            ShapeError,
            r"C is \[4, 3, 5\], expected \[D=4, h=3, K\+1=6\]",
            model=table(3, C[..., :-1]),
        )
        yield case(op, ShapeError, r"A is \[4, 3, 2\]", model=table(1, A[..., :-1]))
        for precision in (11, 25, 0, -1, 64):
            message = f"precision is {precision}, expected 12 to 24"
            yield case(op, ArgumentError, message, precision=precision)
        for precision in (20.0, "20", None, True):
            yield case(op, TypeError, "precision must be an int", False, precision=precision)
    for op in ("rans_encode", "rans_decode", "rans_decode_step"):
        yield case(op, ArgumentError, "precision is 11", precision=11)
        yield case(op, ArgumentError, "precision is 25", precision=25)
    for op in ("pc_encode", "rans_encode"):
        for lanes in (0, -1, 2**31):
            yield case(op, ArgumentError, f"lanes is {lanes}, expected 1 to", lanes=lanes)
        yield case(op, TypeError, "lanes must be an int", False, lanes=2.0)
    for i in (-1, D):
        yield case("pc_conditional_cdf", ArgumentError, f"i is {i}, expected a variable", i=i)
    yield case("pc_conditional_cdf", TypeError, "i must be an int", False, i=1.0)


def words_cases():
    words, counts = torch.zeros(L, 10, dtype=INT32), torch.full((L,), 2, dtype=INT32)
    for op in DECODING:
        yield case(op, TypeError, "words has dtype int64", words=words.long())
        yield case(op, TypeError, "counts has dtype int64", counts=counts.long())
        yield case(op, ShapeError, r"words is \[", words=words[0])
        yield case(op, ShapeError, r"counts is \[1\], expected \[L=2\]", counts=counts[:1])
        yield case(op, ShapeError, r"at least one lane", words=words[:0], counts=counts[:0])
        yield case(op, ShapeError, r"of two words", words=words[:, :1])
    for op in ("pc_decode", "rans_decode"):
        yield case(op, ArgumentError, "N is -1, expected at least 0", N=-1)
        yield case(op, TypeError, "N must be an int", False, N=2.0)
    for op in ("rans_decode", "rans_decode_step"):
        for shape in ((), (D, 1)):
            wrong = torch.zeros(shape, dtype=INT32)
            yield case(op, ShapeError, r"cdf is \[", cdf=wrong)
        yield case(op, TypeError, "cdf has dtype int64", cdf=cdf(L).long())
    wrong = cdf(N + 1, D)
    yield case("rans_decode", ShapeError, r"cdf is .* expected \[N=6, D, K\+1\]", cdf=wrong)
    yield case("rans_decode_step", ShapeError, r"cdf is \[3, 6\], expected \[L=2", cdf=cdf(3))
    yield case("rans_decode_step", TypeError, "state has dtype", state=torch.zeros(L).int())
    yield case(
        "rans_decode_step",
        ShapeError,
        r"position is \[3\]",
        position=torch.zeros(3, dtype=torch.int64),
    )
    low = torch.zeros(N, D, dtype=INT32)
    yield case("rans_encode", TypeError, "low has dtype int64", low=low.long())
    yield case("rans_encode", TypeError, "width has dtype int64", width=low.long())
    yield case("rans_encode", ShapeError, r"low is \[6\]", low=low[:, 0])
    yield case(
        "rans_encode", ShapeError, r"width is \[6, 3\], expected \[N=6, D=4\]", width=low[:, :3]
    )


def update_cases():
    op = "pc_em_update"
    yield case(op, TypeError, "theta has dtype", theta=torch.ones(3, 4).half())
    yield case(op, TypeError, "counts has dtype", counts=torch.ones(3, 4).double())
    yield case(op, ShapeError, r"counts is \[4\]", counts=torch.ones(4))
    yield case(op, ShapeError, "contiguous", theta=torch.ones(4, 3).T)
    for value in (-1.0, float("nan"), float("inf")):
        yield case(op, ArgumentError, "pseudo_count is", False, pseudo_count=value)
    for value in (0.0, 1.5, float("nan")):
        yield case(op, ArgumentError, "step is", False, step=value)


CASES = [
    *(*data_cases(), *parameter_cases(), *tree_cases(), *model_cases(), *words_cases()),
    *update_cases(),
]


@pytest.mark.parametrize(("op", "error", "message", "changes", "as_raw"), CASES)
def test_functions(op, error, message, changes, as_raw):
    with pytest.raises(error, match=f"^{op}: .*{message}"):
        run(op, MAKE[op]() | changes)


@pytest.mark.parametrize(
    ("op", "message", "changes", "as_raw"),
    [
        pytest.param(p.values[0], p.values[2], p.values[3], p.values[4], id=p.id)
        for p in CASES
        if p.values[4]
    ],
)
def test_raw_operators(op, message, changes, as_raw):
    arguments = MAKE[op]() | changes
    with pytest.raises(RuntimeError, match=f"{op}: "):
        raw(op, arguments)
    if as_raw == "values":
        # Values are read by the kernels alone.
        return
    with FakeTensorMode() as mode:

        def fake(x):
            return mode.from_tensor(x) if isinstance(x, torch.Tensor) else x

        moved = {
            name: [fake(t) for t in x] if isinstance(x, list) else fake(x)
            for name, x in arguments.items()
        }
        with pytest.raises(RuntimeError, match=f"{op}: .*{message}"):
            raw(op, moved)


@pytest.mark.parametrize("op", MAKE)
def test_valid_arguments_pass(op):
    run(op, MAKE[op]())
    raw(op, MAKE[op]())


@pytest.mark.parametrize("op", MAKE)
def test_devices_must_agree(op):
    arguments = MAKE[op]()
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            with pytest.raises(ValueError, match=f"^{op}: .* is on "):
                run(op, arguments | {name: value.to("meta")})
    for index in range(6 if "model" in arguments else 0):
        moved = table(index, frozen()[index].to("meta"))
        with pytest.raises(ValueError, match=f"^{op}: .* is on "):
            run(op, arguments | {"model": moved})


def test_a_conditional_reads_what_comes_before_alone():
    arguments = MAKE["pc_conditional_cdf"]()
    order = frozen()[5]
    want = pc.conditional_cdf(**arguments | {"i": int(order[2])})
    spoiled = arguments["x"].clone()
    spoiled[:, order[2:]] = 255
    got = pc.conditional_cdf(**arguments | {"i": int(order[2]), "x": spoiled})
    assert torch.equal(got, want)
    with pytest.raises(SymbolRangeError, match=r"^pc_conditional_cdf: sample 0, variable"):
        pc.conditional_cdf(**arguments | {"i": int(order[3]), "x": spoiled})


@pytest.mark.parametrize("precision", [12, 24])
def test_precision_must_hold_every_value(precision):
    values = 2**precision // 4
    if values > 4096:
        return
    parameters = Case(D=2, h=2, K=values + 1).parameters()
    model = pc.HCLT(*(parameters[name] for name in ("parent", "pi", "A", "B"))).freeze().tables
    x = torch.zeros(1, 2, dtype=torch.int16)
    message = f"precision is {precision}, expected at least {precision + 1} for K={values + 1}"
    with pytest.raises(ArgumentError, match=f"^pc_intervals: {message}"):
        pc.intervals(x, model, precision)


@pytest.mark.parametrize("op", ["pc_decode", "rans_decode"])
def test_bad_streams(op):
    """Words that are no code of anything raise, and read nothing outside themselves."""
    arguments = MAKE[op]()
    words, counts = arguments["words"], arguments["counts"]
    for wrong in (counts + 1, counts - 1, counts * 0, -counts, counts + 1000):
        with pytest.raises(RuntimeError, match=f"^{op}: "):
            run(op, arguments | {"counts": wrong.int()})
    flipped = words.clone()
    flipped[1, 0] ^= 1
    with pytest.raises(RuntimeError, match=f"^{op}: "):
        run(op, arguments | {"words": flipped})
    with pytest.raises(RuntimeError, match=f"^{op}: "):
        run(op, arguments | {"N": N + 9} | ({"cdf": cdf(D)} if op == "rans_decode" else {}))


def test_bad_intervals():
    good = torch.full((N, D), 2**18, dtype=INT32)
    for low, width in ((0, 0), (-1, 5), (2**20, 1), (2**20 - 1, 2), (0, 2**20 + 1), (5, -3)):
        bad_low, bad_width = good.clone(), good.clone()
        bad_low[2, 1], bad_width[2, 1] = low, width
        with pytest.raises(RuntimeError, match=r"^rans_encode: "):
            pc.rans_encode(bad_low, bad_width, L)


def test_bad_cdfs():
    """What the decoder meets is noticed; what it does not meet does no harm."""
    arguments = MAKE["rans_decode"]()
    for index, value in ((0, 1), (0, 2**30), (1, 0), (1, -5), (1, 2**20 + 1)):
        wrong = cdf(D).clone()
        wrong[1, index] = value
        with pytest.raises(RuntimeError, match=r"^rans_decode: "):
            pc.rans_decode(**arguments | {"cdf": wrong})
    for index, value in ((2, 0), (3, -1), (4, 2**30), (K, 2**20 - 1), (K, -(2**31))):
        wrong = cdf(D).clone()
        wrong[1, index] = value
        with contextlib.suppress(RuntimeError):
            assert (pc.rans_decode(**arguments | {"cdf": wrong}) == 0).all()


@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_a_theta_that_requires_a_gradient(dtype):
    theta = torch.full((2, 2), 0.5, dtype=dtype, requires_grad=True)
    with pytest.raises(ValueError, match=r"^pc_em_update: theta requires a gradient"):
        pc.em_update(theta, torch.ones(2, 2, dtype=dtype))
