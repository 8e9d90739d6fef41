"""What runs the binary operators where the compiled kernels do not."""

from nnkernels._backend import install_plain
from nnkernels.binary import reference

# A prepacked weight belongs to the compiled kernels and holds the rows that the reference reads.
install_plain("binary_prepack")
for _name in (
    "pack",
    "pack_rowpop",
    "unpack",
    "pack_biper",
    "pack_ternary",
    "popcount",
    "matmul",
    "matmul_prepacked",
    "matmul_sign",
    "hamming",
    "linear",
    "linear_prepacked",
    "conv2d",
    "conv2d_sign",
    "conv2d_corr",
    "maxpool2d",
    "ternary_matmul",
    "int8_matmul",
    "planes_matmul",
    "linear_train",
    "linear_train_fwd",
    "linear_train_bwd",
    "conv2d_train",
    "conv2d_train_fwd",
    "conv2d_train_bwd",
):
    install_plain(f"binary_{_name}", reference=getattr(reference, _name))
