"""One rank of test_sharding: `sharding_ranks.py FILE`, with RANK and WORLD_SIZE set."""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import nnkernels.distributed  # noqa: F401, registers the sharding rules
from nnkernels import lmul

ROWS, COLUMNS, LAST, WHOLE, SUM = Shard(0), Shard(1), Shard(2), Replicate(), Partial()


def normals(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def check(function, mesh, values, placements, out_placement, grad_placements):
    """Sharded like this the result has the bits of the unsharded one, forward and backward."""
    leaves = [value.clone().requires_grad_() for value in values]
    expected = function(*leaves)
    g = normals(*expected.shape)
    expected.backward(g)
    shards = [
        distribute_tensor(value, mesh, [placement]).requires_grad_()
        for value, placement in zip(values, placements, strict=True)
    ]
    out = function(*shards)
    assert out.placements == (out_placement,), out.placements
    assert torch.equal(out.full_tensor(), expected)
    with torch.no_grad():
        assert torch.equal(function(*shards).full_tensor(), expected)
    out.backward(distribute_tensor(g, mesh, [out_placement]))
    for leaf, shard, placement in zip(leaves, shards, grad_placements, strict=True):
        assert shard.grad.placements == (placement,), shard.grad.placements
        full = shard.grad.full_tensor()
        if placement is SUM:
            torch.testing.assert_close(full, leaf.grad, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(full, leaf.grad)


def main(meeting):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))

    x, row = normals(4, 6), normals(6)
    check(lmul.mul, mesh, (x, row), (ROWS, WHOLE), ROWS, (ROWS, SUM))
    check(lmul.mul, mesh, (x, row), (COLUMNS, ROWS), COLUMNS, (COLUMNS, ROWS))

    a, b = normals(4, 6), normals(6, 8)
    check(lmul.matmul, mesh, (a, b), (ROWS, WHOLE), ROWS, (ROWS, SUM))
    check(lmul.matmul, mesh, (a, b), (WHOLE, COLUMNS), COLUMNS, (SUM, COLUMNS))

    a3, b3 = normals(2, 4, 6), normals(2, 6, 8)
    check(lmul.bmm, mesh, (a3, b3), (ROWS, ROWS), ROWS, (ROWS, ROWS))
    check(lmul.bmm, mesh, (a3, b3), (COLUMNS, WHOLE), COLUMNS, (COLUMNS, SUM))
    check(lmul.bmm, mesh, (a3, b3), (WHOLE, LAST), LAST, (SUM, LAST))

    x3, w, bias = normals(2, 4, 6), normals(8, 6), normals(8)
    check(lmul.linear, mesh, (x3, w, bias), (ROWS, WHOLE, WHOLE), ROWS, (ROWS, SUM, SUM))
    check(lmul.linear, mesh, (x3, w, bias), (WHOLE, ROWS, ROWS), LAST, (SUM, ROWS, ROWS))
    check(lmul.linear, mesh, (x3, w), (COLUMNS, WHOLE), COLUMNS, (COLUMNS, SUM))

    q, k, v = normals(2, 4, 5, 8), normals(2, 2, 6, 8), normals(2, 2, 6, 8)
    for placement in (ROWS, COLUMNS):
        check(lmul.attention, mesh, (q, k, v), [placement] * 3, placement, [placement] * 3)
    mask = normals(2, 1, 5, 6)

    def masked(q, k, v):
        sharded = isinstance(q, torch.distributed.tensor.DTensor)
        return lmul.attention(
            q, k, v, attn_mask=distribute_tensor(mask, mesh, [ROWS]) if sharded else mask
        )

    check(masked, mesh, (q, k, v), [ROWS] * 3, ROWS, [ROWS] * 3)
    # Ranks with 3 and 3 query heads need other key heads than 2 and 1: the inputs are gathered.
    q, k = normals(2, 6, 5, 8), normals(2, 3, 6, 8)
    keys = distribute_tensor(k, mesh, [COLUMNS])
    out = lmul.attention(distribute_tensor(q, mesh, [COLUMNS]), keys, keys)
    assert torch.equal(out.full_tensor(), lmul.attention(q, k, k))

    # Sharded along the sum they are gathered: the order of the sum is promised.
    out = lmul.matmul(distribute_tensor(a, mesh, [COLUMNS]), distribute_tensor(b, mesh, [ROWS]))
    assert not out.placements[0].is_partial()
    assert torch.equal(out.full_tensor(), lmul.matmul(a, b))

    packed = lmul.pack(distribute_tensor(w, mesh, [ROWS]))
    out = lmul.linear(
        distribute_tensor(x3, mesh, [ROWS]), distribute_tensor(w, mesh, [WHOLE]), w_packed=packed
    )
    assert torch.equal(out.full_tensor(), lmul.linear(x3, w))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
