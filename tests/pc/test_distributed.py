"""EM and coding by two processes and by three, over gloo."""

import subprocess
import sys
from pathlib import Path

import house
import numpy as np
import pc_models
import pytest

from nnkernels.distributed import pc_fit
from nnkernels.pc import HCLT, PCModel


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_train_as_one_and_share_files(count):
    house.run_ranks(Path(__file__).with_name("sharing_ranks.py"), count)


def test_without_a_process_group():
    x = pc_models.samples(9, pc_models.tables(3, 2, 4))
    with pytest.raises(RuntimeError, match="call init_process_group first"):
        pc_fit(HCLT.from_data(x, 2, K=4), x)


def test_train_under_torchrun(tmp_path):
    x = pc_models.samples(200, pc_models.tables(10, 3, 5, seed=2))
    np.save(tmp_path / "x.npy", x.numpy())
    options = ["train", "x.npy", "--states", "3", "--epochs", "2", "--batch", "50", "--values", "5"]
    alone = [sys.executable, "-m", "nnkernels.pc", *options, "-m", "alone.nnpm"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together = [*torchrun, "-m", "nnkernels.pc", *options, "-m", "together.nnpm"]
    for run in (alone, together):
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "PCModel(D=10, h=3, K=5" in done.stdout
    one, two = (PCModel.load(tmp_path / f"{name}.nnpm") for name in ("alone", "together"))
    assert one.log_prob(x).mean() == pytest.approx(float(two.log_prob(x).mean()), rel=1e-4)
