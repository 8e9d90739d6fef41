"""One rank of test_distributed: `sharing_ranks.py FILE`, with RANK and WORLD_SIZE set."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

import pc_models

from nnkernels.distributed import pc_fit
from nnkernels.pc import HCLT, ArgumentError, command


def data(N=300, D=12, K=6, seed=4):
    return pc_models.samples(N, pc_models.tables(D, 3, K, seed=seed), seed=seed)


def check_training(rank, dtype, tolerance, batch, **options):
    """All ranks end with the parameters of one process on the same samples."""
    x, valid = data(), data(60, seed=4)
    # Ranks that begin apart end together: rank 0 begins.
    model = HCLT.from_data(x, 4, seed=rank, K=6, dtype=dtype)
    calls = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda *a, **k: calls.append(1) or all_reduce(*a, **k)
    reports = pc_fit(model, x, valid, epochs=3, batch=batch, seed=7, **options)
    dist.all_reduce = all_reduce
    assert len(calls) == 3 * -(-len(x) // batch), "one all-reduce a step"
    alone = HCLT.from_data(x, 4, seed=0, K=6, dtype=dtype)
    expected = alone.fit(x, valid, epochs=3, batch=batch, seed=7)
    for name in ("pi", "A", "B"):
        ours, theirs = getattr(model, name).data, getattr(alone, name).data
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        everywhere = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, ours)
        assert all(torch.equal(ours, other) for other in everywhere)
    for one, other in zip(reports, expected, strict=True):
        assert one.samples == other.samples
        assert abs(one.train_bpd - other.train_bpd) < 1e-5
        assert abs(one.valid_bpd - other.valid_bpd) < 1e-5


def check_different_data(rank):
    x = data(seed=4 + rank)
    model = HCLT.from_data(data(), 2, K=6)
    with pytest.raises(ArgumentError, match="different data"):
        pc_fit(model, x)


def check_files(rank, size, folder):
    """Every file is coded by one rank, and each rank does its part."""
    model = folder / "m.nnpm"
    sources = [folder / f"{number}.npy" for number in range(5)]
    if rank == 0:
        for number, source in enumerate(sources):
            np.save(source, data(20 + number).numpy())
        HCLT.from_data(data(), 2, K=6).freeze().save(model)
    dist.barrier()
    assert command.main(["compress", "-m", str(model), "--quiet", *map(str, sources)]) == 0
    own = [source.with_suffix(".npc") for source in sources][rank::size]
    assert all(path.exists() for path in own)
    dist.barrier()
    packed = [str(source.with_suffix(".npc")) for source in sources]
    back = folder / "back"
    back.mkdir(exist_ok=True)
    arguments = ["decompress", "-m", str(model), "--quiet", "--folder", str(back), *packed]
    assert command.main(arguments) == 0
    dist.barrier()
    for source in sources:
        assert np.array_equal(np.load(back / source.name), np.load(source))


def main(meeting):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    check_training(rank, torch.float64, 1e-12, batch=64)
    check_training(rank, torch.float32, 1e-4, batch=64)
    # One batch of all samples, and batches that some ranks find empty.
    check_training(rank, torch.float64, 1e-12, batch=300)
    check_training(rank, torch.float64, 1e-12, batch=299)
    check_different_data(rank)
    check_files(rank, size, Path(meeting).parent)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
