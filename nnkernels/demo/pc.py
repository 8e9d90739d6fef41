"""pc: a circuit learns handwritten digits in seconds and packs new ones tighter than xz."""

import bz2
import lzma
import time
import zlib

import torch

from nnkernels import pc
from nnkernels.demo import seconds
from nnkernels.demo.data import digits

# ---- also those of examples/pc_mnist.py ----


def symbols(images, levels):
    """Pixels in [0, 1] as the integers they were."""
    return (images * levels).round().to(torch.uint8)


def byte_codecs(x) -> dict[str, int]:
    """What general compressors make of all samples in one stream, in bytes."""
    data = x.numpy().tobytes()
    sizes = {
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "bzip2 -9": len(bz2.compress(data, 9)),
        "zlib -9": len(zlib.compress(data, 9)),
    }
    try:
        import zstandard
    except ImportError:
        return sizes
    return sizes | {"zstd -22": len(zstandard.ZstdCompressor(level=22).compress(data))}


# ---- the demo ----


def run(report, data=None):
    report.title("pc: lossless compression by a probabilistic circuit")
    torch.manual_seed(0)
    _check(report)
    images = digits(data)
    if images is None:
        report.line("  Learning handwritten digits is left out: it needs scikit-learn, which")
        report.line("  pip install 'nnkernels[demo]'  brings.")
        return
    _digits(report, *images)


def _check(report):
    x = torch.randint(0, 5, (60, 12), dtype=torch.uint8)
    model = pc.HCLT.from_data(x, h=6, K=5)
    model.requires_grad_(False)
    tables = model.pi, model.A, model.B, model.parent, model.order
    want = pc.reference.forward(x, *tables)[0]
    error = ((model.log_prob(x) - want).abs() / want.abs()).max().item()
    report.check(f"log-likelihood within 1e-5 of the float64 sum ({error:.0e})", error <= 1e-5)


def _digits(report, train_x, _train_y, test_x, _test_y, description):
    levels = 16 if train_x.shape[1] == 64 else 255
    # MNIST in a demo's time: some of its images, few states.
    learn, new = symbols(train_x[:6000], levels), symbols(test_x[:1000], levels)
    start = time.perf_counter()
    circuit = pc.HCLT.from_data(learn, h=16, K=levels + 1, init="clusters")
    epochs = 10 if levels == 16 else 2
    circuit.fit(learn, epochs=epochs, batch=64, pseudo_count=1.0)
    model = circuit.freeze()
    spent = time.perf_counter() - start
    packed = model.compress(new)
    report.line(f"  {description}: a circuit of 16 states a pixel learns {len(learn):,}")
    report.line(f"  of them in {spent:.1f} s and packs {len(new):,} that it has not seen:")
    rows = [["a byte a pixel", f"{new.numel():,}", "8.000", f"{new.numel() / len(packed):.2f}"]]
    sizes = {"nnkernels.pc": len(packed)} | byte_codecs(new)
    for name, size in sizes.items():
        ratio = f"{size / len(packed):.2f}"
        rows.append([name, f"{size:,}", f"{8 * size / new.numel():.3f}", ratio])
    report.table(["", "bytes", "bits/pixel", "ratio"], rows)
    report.check("what is unpacked is what was packed", torch.equal(model.decompress(packed), new))
    report.check("the file is smaller than xz's", len(packed) < sizes["xz -9e"])
    bits = pc.bits(model, new)
    limit = 1.001 * bits + 8 * (128 + 32 + 11 * 64)
    held = 8 * len(packed) <= limit
    report.check("the file is as small as the likelihood says (0.1% and its headers)", held)
    report.check("a flipped bit is noticed", _notices(model, packed))
    times = [
        seconds(call, 0.2)
        for call in (lambda: model.compress(new), lambda: model.decompress(packed))
    ]
    there, back = (new.numel() / 1e6 / spent for spent in times)
    report.line(f"  packs {there:.1f} MB/s, unpacks {back:.1f} MB/s")


def _notices(model, packed) -> bool:
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 1
    try:
        model.decompress(bytes(damaged))
    except pc.ChecksumError:
        return True
    return False
