"""binary: a network whose weights and activations are single bits, trained by BiPer and frozen."""

import io
import itertools
import math

import torch
from torch import nn

from nnkernels import binary
from nnkernels.demo import seconds
from nnkernels.demo.data import digits

# ---- the network: also that of examples/binary_mnist.py ----


class Levels(nn.Module):
    """Every pixel in [0, 1] as its distance from each level, whose sign tells ink from paper."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        return torch.cat([x - level for level in self.levels], 1)


def network(inputs, hidden, levels=(0.5,), classes=10):
    """Two hidden layers; every product is of +-1, what is left is one batch norm a layer."""
    sizes = (inputs * len(levels), hidden, hidden, classes)
    layers = [Levels(levels)]
    for ins, outs in itertools.pairwise(sizes):
        layers.append(binary.BiPerLinear(ins, outs, bias=False, surrogate="approxsign"))
        layers.append(nn.BatchNorm1d(outs))
    return nn.Sequential(*layers)


def float_network(inputs, hidden, levels=(0.5,), classes=10):
    """The same shape in float32."""
    sizes = (inputs * len(levels), hidden, hidden, classes)
    layers = [Levels(levels)]
    for ins, outs in itertools.pairwise(sizes):
        layers += [nn.Linear(ins, outs, bias=False), nn.BatchNorm1d(outs), nn.Hardtanh()]
    return nn.Sequential(*layers[:-1])


def train(model, x, y, epochs, *, rate=3e-3, batch=256, augment=None, progress=None):
    """One stage: Adam with a learning rate that falls to zero along a cosine."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps)
    )
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for pick in order[: len(x) // batch * batch].view(-1, batch):
            images = x[pick] if augment is None else augment(x[pick])
            loss = nn.functional.cross_entropy(model(images), y[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress(epoch, loss.item())
    return model.eval()


@torch.no_grad()
def predictions(model, x):
    return torch.cat([model(part).argmax(1) for part in x.split(2000)])


def accuracy(model, x, y):
    return (predictions(model, x) == y).float().mean().item()


def file_size(model):
    """The bytes of the state as torch.save writes it."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def compare(report, frozen, exact, x):
    """Sizes and speeds of the frozen network beside the float32 one of the same shape."""
    with torch.no_grad():
        times = [seconds(lambda net=net: net(x), budget=0.5) for net in (exact, frozen)]
    rows = [
        [name, f"{file_size(net) / 1e3:,.0f} kB", f"{len(x) / time:,.0f}"]
        for name, net, time in zip(("float32", "frozen bits"), (exact, frozen), times, strict=True)
    ]
    report.table([f"network of the same shape, batch of {len(x)}", "file", "images/s"], rows)
    return times[0] / times[1]


# ---- the demo ----


def run(report, data=None):
    report.title("binary: XNOR products of packed +-1")
    torch.manual_seed(0)
    _check(report)
    images = digits(data)
    if images is None:
        report.line("  The network on handwritten digits is left out: it needs scikit-learn,")
        report.line("  which  pip install 'nnkernels[demo]'  brings.")
    else:
        _network(report, *images)
    _speed(report)


def _check(report):
    a, b = torch.randn(70, 1000), torch.randn(90, 1000)
    packed = binary.pack(a), binary.pack(b)
    want = binary.binarize(a) @ binary.binarize(b).T
    report.check(
        "matmul of packed rows equals the float product of their signs",
        torch.equal(binary.matmul(*packed, 1000, out_dtype=torch.float32), want),
    )
    images, weight = torch.randn(2, 40, 9, 9), torch.randn(30, 40, 3, 3)
    layer = binary.BinaryConv2d(40, 30, 3, padding=1, bias=False)
    layer.weight.data, layer.alpha.data = weight, torch.ones(30)
    want = nn.functional.conv2d(binary.binarize(images), binary.binarize(weight), padding=1)
    report.check(
        "conv2d with zero padding equals torch's of the signs", torch.equal(layer(images), want)
    )


def _network(report, train_x, train_y, test_x, test_y, description):
    # Few enough steps for a demo, whatever the data.
    epochs = max(1, 30 * 1500 // len(train_x))
    sizes = {"inputs": train_x.shape[1], "hidden": 256, "levels": (0.2, 0.4, 0.6, 0.8)}
    model = network(**sizes)
    reached = {}
    for stage in (1, 2):
        binary.set_stage(model, stage)
        train(model, train_x, train_y, epochs, batch=128)
        reached[stage] = accuracy(model, test_x, test_y)
    report.line(f"  BiPer in two stages on {description}:")
    report.line(
        f"  real weights sin(20 w): {reached[1]:.2%}, bits: {reached[2]:.2%} of test images"
    )
    frozen = binary.freeze(model)
    same = torch.equal(predictions(frozen, test_x), predictions(model, test_x))
    report.check("the frozen network predicts the same for every test image", same)
    report.check(f"bits alone reach {reached[2]:.2%} (at least 88%)", reached[2] >= 0.88)
    compare(report, frozen, float_network(**sizes).eval(), test_x[:1000])


def _speed(report):
    size = 1024
    x, w = torch.randn(size, size), torch.randn(size, size)
    a, b = binary.pack(x), binary.prepack(binary.pack(w), size)
    ours = seconds(lambda: binary.matmul_prepacked(a, b, size, size))
    usual = seconds(lambda: x @ w.T)
    report.line(f"  {size} x {size} x {size} products:")
    report.table(
        ["", "time", "ratio"],
        [
            ["nnkernels.binary.matmul_prepacked", f"{ours * 1e3:.2f} ms", "1.0"],
            ["torch.matmul, float32", f"{usual * 1e3:.2f} ms", f"{usual / ours:.1f}"],
        ],
    )
