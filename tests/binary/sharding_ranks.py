"""One rank of test_sharding: `sharding_ranks.py FILE`, with RANK and WORLD_SIZE set."""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import nnkernels.distributed  # noqa: F401, registers the sharding rules
from nnkernels import binary

ROWS, COLUMNS, LAST, WHOLE, SUM = Shard(0), Shard(1), Shard(2), Replicate(), Partial()


def normals(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def check(function, mesh, values, placements, out_placement, grad_placements=None):
    """Sharded like this the result has the bits of the unsharded one, and so have gradients."""
    recorded = grad_placements is not None
    leaves = [value.clone().requires_grad_(recorded) for value in values]
    expected = function(*leaves)
    shards = [
        distribute_tensor(value, mesh, [placement]).requires_grad_(recorded)
        for value, placement in zip(values, placements, strict=True)
    ]
    out = function(*shards)
    assert out.placements == (out_placement,), out.placements
    assert torch.equal(out.full_tensor(), expected)
    if not recorded:
        return
    g = normals(*expected.shape)
    expected.backward(g)
    out.backward(distribute_tensor(g, mesh, [out_placement]))
    for leaf, shard, placement in zip(leaves, shards, grad_placements, strict=True):
        assert shard.grad.placements == (placement,), shard.grad.placements
        torch.testing.assert_close(shard.grad.full_tensor(), leaf.grad, rtol=1e-5, atol=1e-5)


def main(meeting):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))

    a, b = normals(4, 300), normals(6, 300)
    a_bits, b_bits = binary.pack(a), binary.pack(b)
    check(binary.pack, mesh, (a,), (ROWS,), ROWS)
    check(lambda x: binary.unpack(x, 300), mesh, (a_bits,), (ROWS,), ROWS)

    def product(a, b):
        return binary.matmul(a, b, 300)

    check(product, mesh, (a_bits, b_bits), (ROWS, WHOLE), ROWS)
    check(product, mesh, (a_bits, b_bits), (WHOLE, ROWS), COLUMNS)
    batched = a_bits.view(2, 2, -1), b_bits.view(2, 3, -1)
    check(product, mesh, batched, (ROWS, ROWS), ROWS)
    scale = normals(6)

    def scaled(a, b, scale):
        return binary.matmul(a, b, 300, col_scale=scale, out_dtype=torch.float32)

    check(scaled, mesh, (a_bits, b_bits, scale), (WHOLE, ROWS, ROWS), COLUMNS)

    def linear(x, w, scale, bias):
        return binary.linear(x, w, 300, scale=scale, bias=bias)

    values = (a.view(2, 2, 300), b_bits, scale, scale)
    check(linear, mesh, values, (ROWS, WHOLE, WHOLE, WHOLE), ROWS)
    check(linear, mesh, values, (WHOLE, ROWS, ROWS, ROWS), LAST)

    train, values = binary.linear_train, (a, b, scale, scale)
    check(train, mesh, values, (ROWS, *[WHOLE] * 3), ROWS, (ROWS, SUM, SUM, SUM))
    check(train, mesh, values, (WHOLE, *[ROWS] * 3), COLUMNS, (SUM, ROWS, ROWS, ROWS))

    def convolution(x, w, alpha):
        return binary.conv2d_train(x, w, alpha, None, None, 1, 1)

    values = (normals(2, 5, 6, 6), normals(6, 5, 3, 3), scale)
    check(convolution, mesh, values, (ROWS, WHOLE, WHOLE), ROWS, (ROWS, SUM, SUM))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
