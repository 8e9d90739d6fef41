"""Triton kernels, one module per core. Each needs Triton; importing this package alone does not."""
