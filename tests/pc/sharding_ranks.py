"""One rank of test_sharding: `sharding_ranks.py FILE`, with RANK and WORLD_SIZE set."""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import nnkernels.distributed  # noqa: F401
from nnkernels import pc

N, D, H, K = 24, 5, 4, 6
PARAMETERS = ("pi", "A", "B")


def model():
    x = torch.randint(K, (N, D), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    circuit = pc.HCLT.from_data(x, H, K=K)
    mask = torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.2
    given = {name: getattr(circuit, name).detach() for name in (*PARAMETERS, "parent", "order")}
    return {"x": x, **given, "mask": mask}, circuit.freeze()


def place(values, mesh, sharded):
    """Tensors by name, sharded by samples or whole."""
    return {
        name: distribute_tensor(value, mesh, [Shard(0) if name in sharded else Replicate()])
        for name, value in values.items()
    }


def check_forward(mesh, sharded):
    values, _ = model()
    leaves = {name: values[name].clone().requires_grad_() for name in PARAMETERS}
    ll, u = pc.forward(**values | leaves)
    upstream = torch.linspace(1, 2, N)
    ll.backward(upstream)
    given = place(values, mesh, sharded)
    for name in PARAMETERS:
        given[name] = given[name].detach().requires_grad_()
    out, out_u = pc.forward(**given)
    assert out.placements == ((Shard(0),) if sharded else (Replicate(),)), out.placements
    assert out_u.placements == ((Shard(1),) if sharded else (Replicate(),))
    torch.testing.assert_close(out.full_tensor(), ll)
    torch.testing.assert_close(out_u.full_tensor(), u)
    with torch.no_grad():
        alone, none = pc.forward(**given, save_u=False)
        torch.testing.assert_close(alone.full_tensor(), ll)
        assert none.shape == (0,)
    out.backward(distribute_tensor(upstream, mesh, out.placements))
    for name in PARAMETERS:
        got = given[name].grad
        got = got.full_tensor()
        torch.testing.assert_close(got, leaves[name].grad, rtol=1e-4, atol=1e-4, msg=name)


def check_flows(mesh):
    values, _ = model()
    weights = torch.linspace(0.5, 1, N)
    want = pc.flows(**values, weights=weights)
    given = place(values | {"weights": weights}, mesh, ("x", "mask", "weights"))
    got = pc.flows(**given)
    assert got[0].placements == (Shard(0),)
    for a in got[1:]:
        assert a.placements == (Partial(),), a.placements
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.full_tensor(), b, rtol=1e-4, atol=1e-4)


def check_codec(mesh):
    values, frozen = model()
    x = values["x"]
    tables = frozen.tables
    whole = [distribute_tensor(table, mesh, [Replicate()]) for table in tables]
    shards = distribute_tensor(x, mesh, [Shard(0)])
    for got, want in zip(pc.intervals(shards, whole), pc.intervals(x, tables), strict=True):
        assert got.placements == (Shard(0),)
        assert torch.equal(got.full_tensor(), want)
    cdf = pc.conditional_cdf(shards, whole, 2)
    assert cdf.placements == (Shard(0),)
    assert torch.equal(cdf.full_tensor(), pc.conditional_cdf(x, tables, 2))
    # Lanes take samples from everywhere: the samples are gathered.
    words, counts = pc.encode(shards, whole, 3)
    for got, want in zip((words, counts), pc.encode(x, tables, 3), strict=True):
        assert torch.equal(got.full_tensor(), want)
    assert torch.equal(pc.decode(words, counts, N, whole).full_tensor(), x)


def check_rans(mesh):
    """Words belong to lanes: a step of decoding is sharded by them, the rest is gathered."""
    lanes = 4
    cdf = torch.tensor([0, 300_000, 400_000, 2**20], dtype=torch.int32)
    x = torch.randint(3, (N, D), generator=torch.Generator().manual_seed(2))
    low, width = cdf[x], cdf[x + 1] - cdf[x]
    words, counts = pc.rans_encode(low, width, lanes)
    shards = [distribute_tensor(value, mesh, [Shard(0)]) for value in (low, width)]
    for got, want in zip(pc.rans_encode(*shards, lanes), (words, counts), strict=True):
        assert torch.equal(got.full_tensor(), want)
    by_lanes = [distribute_tensor(value, mesh, [Shard(0)]) for value in (words, counts)]
    whole = distribute_tensor(cdf.expand(D, 4).contiguous(), mesh, [Replicate()])
    assert torch.equal(pc.rans_decode(*by_lanes, whole, N).full_tensor(), x.int())
    state, position = (
        distribute_tensor(torch.zeros(lanes, dtype=torch.int64), mesh, [Shard(0)]) for _ in range(2)
    )
    rows = distribute_tensor(cdf.expand(lanes, 4).contiguous(), mesh, [Shard(0)])
    for sample in range(N // lanes):
        for variable in range(D):
            symbol = pc.rans_decode_step(state, position, *by_lanes, rows)
            assert symbol.placements == (Shard(0),)
            want = x[sample * lanes : (sample + 1) * lanes, variable].int()
            assert torch.equal(symbol.full_tensor(), want)
    assert (state.full_tensor() == 2**32).all()


def main(meeting):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    check_forward(mesh, ())
    check_forward(mesh, ("x", "mask"))
    check_flows(mesh)
    check_codec(mesh)
    check_rans(mesh)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
