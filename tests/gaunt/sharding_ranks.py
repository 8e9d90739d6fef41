"""One rank of test_sharding: `sharding_ranks.py FILE`, with RANK and WORLD_SIZE set."""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import nnkernels.distributed  # noqa: F401, registers the sharding rules
from nnkernels import gaunt

ROWS, CHANNELS, WHOLE, SUM = Shard(0), Shard(1), Replicate(), Partial()


def normals(*shape):
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def derivatives(function, leaves, g):
    out = function(*leaves)
    first = torch.autograd.grad(out, leaves, g, create_graph=True)
    total = sum((gradient * gradient).sum() for gradient in first)
    return out, first, torch.autograd.grad(total, leaves)


def check(function, mesh, values, placements, out_placement, grad_placements):
    """Sharded like this, result and derivatives are those of the whole tensors."""
    leaves = [value.clone().requires_grad_() for value in values]
    g = normals(*function(*leaves).shape)
    expected, *expected_gradients = derivatives(function, leaves, g)
    shards = [
        distribute_tensor(value, mesh, [placement]).requires_grad_()
        for value, placement in zip(values, placements, strict=True)
    ]
    upstream = distribute_tensor(g, mesh, [out_placement])
    out, first, second = derivatives(function, shards, upstream)
    assert out.placements == (out_placement,), out.placements
    assert torch.equal(out.full_tensor(), expected)
    for gradient, placement in zip(first, grad_placements, strict=True):
        assert gradient.placements == (placement,), gradient.placements
    for ours, theirs in zip((first, second), expected_gradients, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.full_tensor(), other, rtol=1e-12, atol=1e-12)


def main(meeting):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))

    x, y, w = normals(4, 6, 9), normals(4, 1, 4), normals(6, 3)
    for function in (gaunt.product, gaunt.cross):

        def call(x, y, w, function=function):
            return function(x, y, 2, 1, 2, w)

        check(call, mesh, (x, y, w), (ROWS, ROWS, WHOLE), ROWS, (ROWS, ROWS, SUM))
        check(call, mesh, (x, y, w), (CHANNELS, WHOLE, ROWS), CHANNELS, (CHANNELS, SUM, ROWS))

    def across(x, y):
        return gaunt.product(x, y, 2, 1, 2, layout="ir_mul")

    # The channels are the last dimension there.
    last = Shard(2)
    moved = normals(4, 9, 6), normals(4, 4, 1)
    check(across, mesh, moved, (last, WHOLE), last, (last, SUM))

    def paths(x, y, w):
        return gaunt.paths(x, y, w, 2, 1, 2)

    w = normals(len(gaunt.path_list(2, 1, 2)))
    check(paths, mesh, (x, y, w), (ROWS, ROWS, WHOLE), ROWS, (ROWS, ROWS, SUM))
    check(lambda x: gaunt.power(x, 3, 2, 2), mesh, (x,), (CHANNELS,), CHANNELS, (CHANNELS,))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
