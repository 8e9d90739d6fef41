"""Trains a probabilistic circuit on MNIST and codes the test images with it, losslessly.

    python examples/pc_mnist.py [--data DIR] [--states H] [--epochs N | --minutes M] [--quick]
                                [--pictures DIR]

Reports bits per dimension of the *file*, headers, checksums and all, beside xz, bzip2, zlib and
zstd on the same images in one stream and beside published models. Draws sampled digits, digits
whose lower half the circuit fills in, and the tree it learned. Without MNIST it takes
scikit-learn's digits. Exits with 0 only if the file gives every image back, is as small as the
likelihood says and smaller than xz's; on MNIST with 32 states and all epochs at most 1.26 bits.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from nnkernels import pc
from nnkernels.demo import Report
from nnkernels.demo.data import digits
from nnkernels.demo.pc import byte_codecs, symbols
from nnkernels.pc.structure import Tree, depths
from nnkernels.pc.training import epochs_in

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# Held out of the training images: the parameters that serve them best are kept.
VALID = 2000

# Bits per dimension of MNIST's test images by other models: Dang, Liu and Van den Broeck, "Sparse
# Probabilistic Circuits via Pruning and Growing", NeurIPS 2022, table 1.
PUBLISHED = {
    "sparse PC": 1.14,
    "HCLT": 1.20,
    "BitSwap": 1.27,
    "BB-ANS": 1.39,
    "RAT-SPN": 1.67,
    "IDF": 1.90,
}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = DATA if (DATA / "mnist").exists() else None
    parser.add_argument(
        "--data", type=Path, default=default, help="folder with mnist/*.gz (%(default)s)"
    )
    parser.add_argument("--states", type=int, default=32, help="hidden states (%(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, default=15, help="passes (%(default)s)")
    length.add_argument("--minutes", type=float, help="as many passes as fit")
    parser.add_argument("--lanes", type=int, help="coder states of a block (from the data)")
    parser.add_argument("--threads", type=int, help="threads (all)")
    parser.add_argument("--quick", action="store_true", help="some images, few passes: a minute")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw into this folder")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the model file")
    return parser.parse_args()


def train(options, learn, valid, levels, report):
    start = time.perf_counter()
    circuit = pc.HCLT.from_data(learn, options.states, K=levels + 1, init="clusters")
    tree = Tree(circuit.parent, circuit.order)
    report.line(
        f"  tree of depth {int(depths(tree).max())} in {time.perf_counter() - start:.0f} s; "
        f"{sum(p.numel() for p in circuit.parameters()):,} parameters"
    )
    epochs = options.epochs
    if options.minutes is not None:
        spent = time.perf_counter() - start
        epochs = epochs_in(60 * options.minutes - spent, circuit, learn, 512)

    def progress(now):
        if now.samples == now.of:
            report.line(
                f"  epoch {now.epoch:2}/{now.epochs}: training {now.train_bpd:.4f}, held out "
                f"{now.valid_bpd:.4f} bits, {time.perf_counter() - start:.0f} s"
            )

    circuit.fit(
        learn,
        valid,
        epochs=epochs,
        steps=(0.2, 0.005),
        callback=progress,
    )
    return circuit, time.perf_counter() - start


def code(options, model, test, report):
    """Bits per dimension of the container of the test images, by codec."""
    start = time.perf_counter()
    packed = model.compress(test, lanes=options.lanes)
    there = time.perf_counter() - start
    start = time.perf_counter()
    same = torch.equal(model.decompress(packed), test)
    back = time.perf_counter() - start
    size = test.numel() / 1e6
    report.line(
        f"  {len(test):,} images into {len(packed):,} bytes, {size / there:.1f} MB/s; back "
        f"at {size / back:.1f} MB/s"
    )
    sizes = {"this file": len(packed)} | byte_codecs(test)
    found = {name: 8 * size / test.numel() for name, size in sizes.items()}
    nll = pc.bits(model, test)
    report.line(f"  the model's own likelihood: {nll / test.numel():.4f} bits per dimension")
    report.check("every image comes back as it was", same)
    blocks = -(-len(test) // 4096)
    limit = 1.001 * nll + 8 * (128 + blocks * (32 + 11 * (options.lanes or 64)))
    report.check("the file is as small as the likelihood says", 8 * len(packed) <= limit)
    report.check("it is smaller than xz's", found["this file"] < found["xz -9e"])
    return found


def show(found, published, report):
    rows = [[name, f"{value:.3f}", "measured"] for name, value in found.items()]
    rows += [[name, f"{value:.2f}", "published"] for name, value in published.items()]
    rows.sort(key=lambda row: float(row[1]))
    report.table(["bits per dimension", "", ""], rows)


def draw(folder, circuit, test, levels, report):
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        report.line("  no pictures: they need matplotlib, of the extra demo")
        return
    folder.mkdir(parents=True, exist_ok=True)
    side, generator = round(circuit.D**0.5), torch.Generator().manual_seed(0)

    def save(name, rows):
        """Rows of images [n, D] as one picture."""
        sheet = torch.cat([torch.cat(list(row.view(-1, side, side)), 1) for row in rows])
        pyplot.imsave(folder / name, sheet.numpy(), cmap="gray_r", vmin=0, vmax=levels)

    save("samples.png", circuit.sample(64, generator).split(16))
    given = test[:16]
    missing = torch.arange(circuit.D) >= circuit.D // 2
    mask = missing.expand(16, -1)
    filled = [circuit.conditional_sample(given, mask, generator) for _ in range(3)]
    save("inpainted.png", [given, torch.where(mask, levels // 3, given), *filled])
    figure, axes = pyplot.subplots(figsize=(7, 7))
    # Pixels that never change hang anywhere.
    varies = test.amax(0) > test.amin(0)
    for child, above in enumerate(circuit.parent.tolist()):
        if above >= 0 and varies[child]:
            ends = torch.tensor([child, above])
            axes.plot(ends % side, ends // side, color="#2f6f9f", linewidth=1.2)
    root = int(circuit.order[0])
    axes.plot(root % side, root // side, "o", color="#c2452d", label="root")
    axes.set(title="which pixel hangs on which", aspect="equal", xlim=(-1, side), ylim=(side, -1))
    axes.legend(loc="upper right")
    figure.savefig(folder / "tree.png", dpi=120)
    report.line(f"  drawn: samples, inpainted, tree .png in {folder}")


def main():
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    images = digits(options.data)
    if images is None:
        sys.exit("pc_mnist: needs --data, or scikit-learn for its digits")
    train_x, _, test_x, _, description = images
    report = Report()
    report.title(f"A circuit on {description}, {torch.get_num_threads()} threads")
    mnist = options.data is not None
    if not mnist:
        report.line("  MNIST is not here (--data): scikit-learn's digits instead")
    levels = 255 if mnist else 16
    known, test = (symbols(part, levels) for part in (train_x, test_x))
    if options.quick:
        known, test = known[:6000], test[:1000]
        options.epochs, options.states = min(options.epochs, 3), min(options.states, 16)
    held = min(VALID, len(known) // 10)
    circuit, spent = train(options, known[:-held], known[-held:], levels, report)
    report.line(f"  trained in {spent:.0f} s")
    model = circuit.freeze()
    if options.save:
        model.save(options.save)
        report.line(f"  {options.save}: {options.save.stat().st_size:,} bytes, {model!r}")
    found = code(options, model, test, report)
    whole = mnist and not options.quick
    show(found, PUBLISHED if whole else {}, report)
    if options.pictures:
        draw(options.pictures, circuit, test, levels, report)
    if whole and options.states == 32 and options.minutes is None:
        bpd = found["this file"]
        report.check(f"{bpd:.4f} bits per dimension of the file, at most 1.26", bpd <= 1.26)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
