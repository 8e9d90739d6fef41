"""lmul: how much accuracy does a network lose when every multiplication becomes one addition?"""

import copy

import torch

from nnkernels import lmul
from nnkernels.demo import seconds
from nnkernels.demo.data import digits


def run(report, data=None):
    images = digits(data)
    report.title("lmul: multiplication by one integer addition")
    torch.manual_seed(0)
    _check(report)
    if images is None:
        report.line("  The network on handwritten digits is left out: it needs scikit-learn,")
        report.line("  which  pip install 'nnkernels[demo]'  brings.")
    else:
        _network(report, *images)
    _speed(report)


def _check(report):
    one = torch.ones(())
    exact = all(
        lmul.mul(one, one, mantissa_bits=m).item() == 1 + lmul.reference.default_offset(m)
        for m in range(1, 24)
    )
    report.check("L(1, 1) = 1 + 2^-l(m) for every m from 1 to 23", exact)
    x, y = torch.randn(64, 300), torch.randn(300, 48)
    x[:, ::3] = 0
    for mode in ("bits", "formula"):
        options = {"mantissa_bits": 7, "mode": mode}
        want = lmul.reference.matmul(x, y, **options)
        magnitude = lmul.reference.matmul_magnitude(x, y, **options)
        error = (lmul.matmul(x, y, **options) - want).abs()
        report.check(
            f"matmul, mode={mode!r}: every sum within 2e-6 of the float64 reference",
            bool((error <= 2e-6 * magnitude).all()),
        )


def _train(report, x, y, hidden=128, steps=600, batch=128):
    model = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rounds = range(steps)
    try:
        from tqdm import tqdm

        rounds = tqdm(rounds, desc="  training", leave=False, disable=None)
    except ImportError:
        report.line("  training ...")
    for _ in rounds:
        pick = torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model.eval()


def _cast(model, dtype):
    """The network with the operands of every product cast to a narrow format."""

    def hook(_module, inputs):
        return tuple(value.to(dtype).float() for value in inputs)

    model = copy.deepcopy(model)
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = layer.weight.data.to(dtype).float()
            layer.register_forward_pre_hook(hook)
    return model


@torch.no_grad()
def _network(report, train_x, train_y, test_x, test_y, description):
    with torch.enable_grad():
        model = _train(report, train_x, train_y)
    exact = model(test_x)
    variants = {
        "exact float32": model,
        "operands cast to fp8 e4m3": _cast(model, torch.float8_e4m3fn),
        "operands cast to fp8 e5m2": _cast(model, torch.float8_e5m2),
    }
    for m in (3, 4, 7):
        variants[f"L-Mul, m = {m}"] = lmul.convert(copy.deepcopy(model), mantissa_bits=m)
    rows, accuracy = [], {}
    for name, variant in variants.items():
        logits = variant(test_x)
        accuracy[name] = (logits.argmax(1) == test_y).float().mean().item()
        error = ((logits - exact).square().mean() / exact.square().mean()).sqrt().item()
        time = seconds(lambda network=variant: network(test_x), budget=0.1)
        rows.append([name, f"{accuracy[name]:.2%}", f"{error:.4f}", f"{time * 1e3:.2f} ms"])
    report.line(f"  A two-layer network on {description}, trained in exact arithmetic:")
    report.table(["arithmetic of the test", "accuracy", "rms error of logits", "time"], rows)
    drop = accuracy["exact float32"] - accuracy["L-Mul, m = 7"]
    report.check(f"L-Mul with m = 7 costs {drop:.2%} of accuracy (at most 2%)", drop <= 0.02)


def _broadcast(a, b):
    """What people write today: every product of the word sums at once, then the sum."""
    words = a.view(torch.int32)[:, :, None] + (b.view(torch.int32) - 0x3F780000)[None]
    return words.view(torch.float32).sum(1)


def _speed(report):
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    report.check(
        "the broadcast code computes the same sums (m = 23)",
        torch.allclose(_broadcast(a, b), lmul.matmul(a, b), atol=1e-3),
    )
    ours = seconds(lambda: lmul.matmul(a, b))
    usual = seconds(lambda: _broadcast(a, b))
    product = seconds(lambda: a @ b)
    report.line("  256 x 256 x 256 products in float32:")
    report.table(
        ["", "time", "ratio"],
        [
            ["nnkernels.lmul.matmul", f"{ours * 1e3:.2f} ms", "1.0"],
            ["broadcast torch code", f"{usual * 1e3:.2f} ms", f"{usual / ours:.1f}"],
            ["torch.matmul (exact products)", f"{product * 1e3:.2f} ms", f"{product / ours:.1f}"],
        ],
    )
