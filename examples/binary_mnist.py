"""Trains a network of bits on MNIST by BiPer (arXiv 2404.01278), freezes it and compares it.

    python examples/binary_mnist.py [--data DIR] [--epochs STAGE1 STAGE2] [--hidden N]

Stage 1 trains real weights sin(20 w) under binarised activations, stage 2 goes on with their signs.
Then every layer is frozen to packed bits. Without MNIST it takes scikit-learn's small digits.
Exits with 0 only if the frozen network predicts the same for every test image, and with MNIST at
least 97.5% of them right.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from nnkernels import binary
from nnkernels.demo import Report
from nnkernels.demo.binary import (
    accuracy,
    compare,
    file_size,
    float_network,
    network,
    predictions,
    train,
)
from nnkernels.demo.data import digits

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def shifted(images):
    """Square images moved by up to a pixel, the whole batch alike."""
    side = int(images.shape[1] ** 0.5)
    by = torch.randint(-1, 2, (2,)).tolist()
    return images.view(-1, side, side).roll(by, (1, 2)).flatten(1)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = DATA if (DATA / "mnist").exists() else None
    parser.add_argument(
        "--data", type=Path, default=default, help="folder with mnist/*.gz (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, nargs=2, default=(4, 6), help="of each stage")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the hidden layers")
    parser.add_argument("--threads", type=int, help="threads (all)")
    return parser.parse_args()


def main():
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = digits(options.data)
    if images is None:
        sys.exit("binary_mnist: needs --data, or scikit-learn for its digits")
    train_x, train_y, test_x, test_y, description = images
    report = Report()
    report.title(f"BiPer on {description}, {torch.get_num_threads()} threads")
    model = network(train_x.shape[1], options.hidden)
    # MNIST is large enough to learn from moved images too; the 8x8 digits fill their frame.
    augment = shifted if options.data is not None else None
    start = time.perf_counter()
    for stage, epochs in zip((1, 2), options.epochs, strict=True):
        binary.set_stage(model, stage)

        def progress(epoch, loss, stage=stage):
            reached = accuracy(model.eval(), test_x, test_y)
            model.train()
            spent = time.perf_counter() - start
            report.line(
                f"  stage {stage}, epoch {epoch + 1:2}: loss {loss:.4f}, test {reached:.2%}, "
                f"{spent:.0f} s"
            )

        train(model, train_x, train_y, epochs, augment=augment, progress=progress)
    spent = time.perf_counter() - start
    reached = accuracy(model, test_x, test_y)
    report.line(f"  trained in {spent:.0f} s; {reached:.2%} of {len(test_x):,} test images right")

    frozen = binary.freeze(model)
    same = torch.equal(predictions(frozen, test_x), predictions(model, test_x))
    report.check("the frozen network predicts the same for every test image", same)
    latent, bits = file_size(model), file_size(frozen)
    report.line(f"  file: {latent / 1e3:,.0f} kB latent, {bits / 1e3:,.0f} kB frozen")
    exact = float_network(train_x.shape[1], options.hidden).eval()
    ratio = compare(report, frozen, exact, test_x[:1000])
    report.line(f"  frozen over float32: {ratio:.1f} times the images a second")
    if options.data is not None:
        report.check(f"accuracy {reached:.2%} of at least 97.5%", reached >= 0.975)
        report.check(f"trained in {spent:.0f} s of at most 600 s", spent <= 600)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
