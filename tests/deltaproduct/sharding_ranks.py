"""One rank of test_sharding: `sharding_ranks.py FILE`, with RANK and WORLD_SIZE set."""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import nnkernels.distributed
from nnkernels import deltaproduct

# Where batch and heads stand in each argument.
BATCH = dict.fromkeys(("q", "k", "v", "g", "beta", "initial_state"), 0)
HEADS = {"q": 2, "k": 2, "v": 2, "g": 2, "beta": 2, "initial_state": 1}
B, T, N, HK, H, K, V = 2, 70, 2, 2, 4, 8, 6


def normals(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def inputs():
    return {
        "q": normals(B, T, HK, K),
        "k": normals(B, T * N, HK, K),
        "v": normals(B, T * N, H, V),
        "g": -normals(B, T, H).abs(),
        "beta": normals(B, T * N, H).sigmoid(),
        "initial_state": normals(B, H, K, V),
    }


def shard(values, mesh, dims):
    return {
        name: distribute_tensor(x, mesh, [Replicate() if dims is None else Shard(dims[name])])
        for name, x in values.items()
    }


def check_scan(mesh, dims, out_dim, state_dim, **options):
    """Sharded like this the results have the bits of the unsharded ones."""
    leaves = {name: x.requires_grad_() for name, x in inputs().items()}
    given = {"num_householder": N, "output_final_state": True, "use_qk_l2norm": True} | options
    o, state = deltaproduct.scan(**leaves, **given)
    g, g_state = normals(*o.shape), normals(*state.shape)
    torch.autograd.backward((o, state), (g, g_state))
    shards = {name: x.detach().requires_grad_() for name, x in shard(inputs(), mesh, dims).items()}
    out, out_state = deltaproduct.scan(**shards, **given)
    expected = Replicate() if dims is None else Shard(out_dim)
    assert out.placements == (expected,), out.placements
    assert torch.equal(out.full_tensor(), o)
    assert torch.equal(out_state.full_tensor(), state)
    with torch.no_grad():
        assert torch.equal(deltaproduct.scan(**shards, **given)[0].full_tensor(), o)
    upstream = [
        distribute_tensor(x, mesh, [Replicate() if dims is None else Shard(dim)])
        for x, dim in ((g, out_dim), (g_state, state_dim))
    ]
    torch.autograd.backward((out, out_state), upstream)
    for name, leaf in leaves.items():
        assert shards[name].grad.placements == shards[name].placements, name
        # Heads that share keys may be summed in another order.
        torch.testing.assert_close(
            shards[name].grad.full_tensor(), leaf.grad, rtol=1e-5, atol=1e-5, msg=name
        )


def check_map(mesh, dims, state_dim):
    names = ("k", "v", "g", "beta")
    values = {name: inputs()[name] for name in names}
    want = deltaproduct.state_map(**values, num_householder=N)
    got = deltaproduct.state_map(**shard(values, mesh, dims), num_householder=N)
    for a, b in zip(got, want, strict=True):
        assert a.placements == (Shard(state_dim),)
        assert torch.equal(a.full_tensor(), b)


def check_parts_of_time(rank, size, method, gated):
    """Every rank's tokens, outputs and gradients are its part of one call's."""
    values = inputs() | ({} if gated else {"g": None})
    leaves = {name: None if x is None else x.requires_grad_() for name, x in values.items()}
    options = {"num_householder": N, "use_qk_l2norm": True}
    o, state = deltaproduct.scan(**leaves, **options, output_final_state=True)
    g, g_state = normals(*o.shape), normals(*state.shape)
    torch.autograd.backward((o, state), (g, g_state))
    # Parts of different lengths.
    bounds = [0, *(20 + 15 * r for r in range(size - 1)), T]
    start, end = bounds[rank], bounds[rank + 1]

    def part(x, name):
        if name == "initial_state":
            return x
        rows = N if name in ("k", "v", "beta") else 1
        return x[:, start * rows : end * rows]

    own = {
        name: None if x is None else part(x, name).detach().clone().requires_grad_()
        for name, x in values.items()
    }
    out, after = nnkernels.distributed.deltaproduct_cp(
        **own, **options, output_final_state=True, method=method
    )
    torch.testing.assert_close(out, o[:, start:end], rtol=1e-4, atol=1e-5)
    last = rank == size - 1
    if last:
        torch.testing.assert_close(after, state, rtol=1e-4, atol=1e-5)
    upstream = (out, after), (g[:, start:end], g_state if last else torch.zeros_like(after))
    torch.autograd.backward(*upstream)
    for name, x in own.items():
        if x is None or (name == "initial_state" and rank > 0):
            continue
        want = part(leaves[name].grad, name)
        torch.testing.assert_close(x.grad, want, rtol=1e-3, atol=1e-4, msg=f"{method} {name}")
    with torch.no_grad():
        again, none = nnkernels.distributed.deltaproduct_cp(**own, **options, method=method)
    assert none is None
    assert torch.equal(again, out)


def main(meeting):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))

    for method in ("gather", "chain"):
        for gated in (True, False):
            check_parts_of_time(rank, size, method, gated)
    check_scan(mesh, BATCH, 0, 0)
    check_scan(mesh, HEADS, 2, 1)
    check_scan(mesh, None, 0, 0)
    check_map(mesh, BATCH, 0)
    check_map(mesh, HEADS, 1)

    # A state passes through time: sharded along it, the inputs are gathered.
    time = BATCH | {"q": 1, "k": 1, "v": 1, "g": 1, "beta": 1}
    values = inputs()
    out, _ = deltaproduct.scan(**shard(values, mesh, time), num_householder=N)
    assert isinstance(out, DTensor)
    assert torch.equal(out.full_tensor(), deltaproduct.scan(**values, num_householder=N)[0])

    # One packed row: heads alone.
    row = {name: x[:1] for name, x in values.items() if name != "initial_state"}
    cu_seqlens = torch.tensor([0, 30, T])
    want, state = deltaproduct.scan(
        **row, num_householder=N, cu_seqlens=cu_seqlens, output_final_state=True
    )
    packed = shard(row, mesh, HEADS)
    whole = distribute_tensor(cu_seqlens, mesh, [Replicate()])
    out, out_state = deltaproduct.scan(
        **packed, num_householder=N, cu_seqlens=whole, output_final_state=True
    )
    assert out.placements == (Shard(2),)
    assert torch.equal(out.full_tensor(), want)
    assert torch.equal(out_state.full_tensor(), state)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
