"""Real input for the demo: handwritten digits, and text."""

import gzip
import sysconfig
from pathlib import Path

import torch


class DataError(Exception):
    """The data asked for is not there."""


def digits(folder=None):
    """Handwritten digits as (train_x, train_y, test_x, test_y, description), pixels in [0, 1].

    From folder/mnist (idx .gz files, 60,000 + 10,000 images of 28x28) where a folder is given, else
    scikit-learn's 1,797 images of 8x8, the last 297 of them for testing.
    Returns None where neither is there because the extra `demo` is not installed.
    """
    if folder is not None:
        return _mnist(Path(folder) / "mnist")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return None
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    y = torch.tensor(data.target)
    return x[:1500], y[:1500], x[1500:], y[1500:], "scikit-learn's 8x8 digits, 1,500 + 297 images"


def _mnist(folder):
    def read(name, header):
        path = folder / name
        if not path.exists():
            raise DataError(f"{path} is not there; --data takes the folder that holds mnist/{name}")
        return torch.frombuffer(bytearray(gzip.open(path).read()), dtype=torch.uint8)[header:]

    def split(prefix):
        x = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 784).float() / 255
        return x, read(f"{prefix}-labels-idx1-ubyte.gz", 8).long()

    return *split("train"), *split("t10k"), "MNIST, 60,000 + 10,000 images of 28x28"


def text(file=None):
    """A text as (characters, description): `file`, or the licence of the Python interpreter."""
    if file is not None:
        if not file.is_file():
            raise DataError(f"{file} is not a file")
        return file.read_text(encoding="utf-8", errors="replace"), file.name
    library = Path(sysconfig.get_path("stdlib"))
    for folder in (library.parent, library):
        for name in ("LICENSE.txt", "LICENSE"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8"), "Python's licence"
    raise DataError("this Python comes without its licence text; name a text file")
