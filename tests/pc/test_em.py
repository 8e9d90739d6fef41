"""EM: the monotone likelihood, the update, whole runs, and resuming them."""

import copy
import functools
import itertools
import math

import house
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pc_cases import FP32, FP64, NAMES, Case, generator

from nnkernels import pc
from nnkernels.pc import ArgumentError, FormatError, SymbolRangeError, em, reference


def model_of(case) -> pc.HCLT:
    parameters = case.parameters()
    return pc.HCLT(*(parameters[name] for name in ("parent", *NAMES)))


@functools.cache
def mixture(N=600):
    """Samples of three clusters of 9 noisy binary variables each, and others like them."""
    draw = generator(11)
    centres = torch.randint(2, (3, 9), generator=draw)
    kind = torch.randint(3, (2 * N,), generator=draw)
    flips = torch.rand(2 * N, 9, generator=draw) < 0.1
    x = (centres[kind] ^ flips.long()).to(torch.uint8)
    return x[:N], x[N:]


def bits(model, x):
    return reference.bits_per_dimension(model.log_prob(x).detach(), model.D)


# ---- one step ----


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_em_never_lowers_the_likelihood(D, h, K, seed):
    case = Case(D=D, h=h, K=K, N=12, dtype=FP64, seed=seed, missing=0.2 if seed % 2 else None)
    model, x, mask = model_of(case), case.data(), case.mask()
    before = -math.inf
    for _ in range(6):
        ll = float(model.em_step(x, mask, pseudo_count=0).sum())
        assert ll >= before - 1e-6 * max(abs(ll), 1e-6)
        before = ll


def test_em_climbs(isa):
    x, _ = mixture()
    model = pc.HCLT.from_data(x, h=4, dtype=FP64)
    lls = [float(model.em_step(x, pseudo_count=0).sum()) for _ in range(30)]
    assert all(b >= a - 1e-6 * abs(a) for a, b in itertools.pairwise(lls))
    assert lls[-1] > lls[0] + 100


@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_the_update(dtype):
    case = Case(D=6, h=4, K=5, N=20, dtype=dtype, missing=0.2)
    model, x, mask = model_of(case), case.data(), case.mask()
    weights = torch.rand(20, generator=generator(1)).to(dtype)
    _, *counts = reference.flows(**case.inputs(), weights=weights)
    before = {name: getattr(model, name).detach().double().clone() for name in NAMES}
    ll = model.em_step(x, mask, weights=weights, pseudo_count=0.3, step=0.4)
    torch.testing.assert_close(ll.double(), reference.forward(**case.inputs())[0])
    assert not ll.requires_grad
    for name, count in zip(NAMES, counts, strict=True):
        width = count.shape[-1]
        target = (count + 0.3 / width) / (count.sum(-1, keepdim=True) + 0.3)
        want = 0.6 * before[name] + 0.4 * target
        if name == "A":
            want[model.order[0]] = before["A"][model.order[0]]
        got = getattr(model, name).detach().double()
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if dtype == FP32 else 1e-12)


def test_one_hidden_state_learns_the_marginals():
    x = Case(D=5, K=4, N=50).data()
    model = pc.HCLT.from_data(x, h=1, K=4, dtype=FP64)
    model.em_step(x, pseudo_count=0)
    for i in range(5):
        want = torch.bincount(x[:, i].long(), minlength=4) / 50.0
        torch.testing.assert_close(model.B[i, 0].detach(), want.double())
    model.em_step(x, pseudo_count=2.0)
    want = (torch.bincount(x[:, 0].long(), minlength=4) + 0.5) / 52.0
    torch.testing.assert_close(model.B[0, 0].detach(), want.double())


def test_rows_without_counts_stay():
    model = model_of(Case(D=3, h=2, K=3, dtype=FP64))
    with torch.no_grad():
        model.pi.copy_(torch.tensor([1.0, 0.0]))
    root = int(model.order[0])
    before = model.B[root, 1].clone()
    model.em_step(Case(D=3, K=3).data(), pseudo_count=0)
    assert house.same_bits(model.B[root, 1], before)
    assert not house.same_bits(model.B[root, 0], before)
    model.em_step(Case(D=3, K=3).data(), pseudo_count=1)
    assert (model.B[root, 1] == 1 / 3).all()


@pytest.mark.parametrize("dtype", [FP32, FP64])
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 1), (3, 17, 31), (40, 3, 256), (0, 4)], ids=str)
def test_updates_of_any_shape(shape, dtype, isa):
    theta = torch.rand(shape, generator=generator(0)).to(dtype)
    counts = torch.rand(shape, generator=generator(1)).to(dtype)
    if len(shape) == 3:
        counts[1, 2] = 0
    for pseudo_count, step in ((0.0, 1.0), (0.1, 0.3), (0.0, 0.01)):
        want = reference.em_update(theta.double(), counts.double(), pseudo_count, step)
        got = theta.clone()
        pc.em_update(got, counts.clone(), pseudo_count, step)
        torch.testing.assert_close(
            got.double(), want, rtol=1e-6 if dtype == FP32 else 1e-13, atol=0
        )


def test_samples_of_probability_zero_are_skipped():
    case = Case(D=4, h=3, K=3, N=12)
    model, x = model_of(case), case.data()
    with torch.no_grad():
        model.B[1, :, 2] = 0
        model.B.div_(model.B.sum(-1, keepdim=True))
    dead = x[:, 1] == 2
    other = copy.deepcopy(model)
    ll = model.em_step(x, pseudo_count=0)
    assert torch.equal(ll.isneginf(), dead)
    other.em_step(x[~dead], pseudo_count=0)
    for name in NAMES:
        torch.testing.assert_close(getattr(model, name), getattr(other, name))
    # What has no probability gets none from counts alone.
    report = model.fit(x, epochs=1, pseudo_count=0)[-1]
    assert report.skipped == int(dead.sum())
    assert math.isfinite(report.train_bpd)
    # Pseudo-counts give it some.
    model.fit(x, epochs=1, pseudo_count=0.1)
    assert model.fit(x, epochs=1)[-1].skipped == 0


def test_nothing_but_impossible_samples():
    model = model_of(Case(D=2, h=2, K=2))
    with torch.no_grad():
        model.B.copy_(torch.tensor([1.0, 0.0]))
    before = model.B.clone()
    x = torch.ones(3, 2, dtype=torch.uint8)
    report = model.fit(x, epochs=1, pseudo_count=0)[0]
    assert report.skipped == 3
    assert math.isnan(report.train_bpd)
    assert torch.equal(model.B, before)


# ---- whole runs ----


@pytest.mark.parametrize("h", [3, 8])
def test_fit_learns(h, isa):
    x, other = mixture()
    model = pc.HCLT.from_data(x, h=h)
    start = bits(model, other)
    reports = model.fit(x, valid=other, epochs=12, batch=50)
    assert len(reports) == 12
    # Independent variables cost about 0.88 bits each; the entropy of the clusters is 0.645.
    assert reports[-1].train_bpd < 0.68 < 0.84 < start
    assert bits(model, other) == min(report.valid_bpd for report in reports) < 0.69
    for name in NAMES:
        assert ((getattr(model, name).double().sum(-1) - 1).abs() <= 1e-6).all()


def test_one_batch_is_em():
    x, _ = mixture(100)
    model = pc.HCLT.from_data(x, h=3, dtype=FP64)
    other = copy.deepcopy(model)
    reports = model.fit(x, epochs=5, batch=512, pseudo_count=0.1)
    assert [report.step for report in reports] == [1.0] * 5
    for _ in range(5):
        other.em_step(x, pseudo_count=0.1)
    for name in NAMES:
        torch.testing.assert_close(getattr(model, name), getattr(other, name))


def test_fit_is_a_sequence_of_steps():
    """Pseudo-counts are per pass: each batch has its share; a short batch has a short step."""
    x, _ = mixture(100)
    model = pc.HCLT.from_data(x, h=3, dtype=FP64)
    other = copy.deepcopy(model)
    model.fit(x, epochs=2, batch=32, pseudo_count=3.0, steps=(0.5, 0.2))
    for epoch in range(2):
        order = torch.randperm(100, generator=em._generator(0, epoch))
        for index, rows in enumerate(order.split(32)):
            step = 0.5 - 0.3 * (4 * epoch + index) / 7
            share = len(rows) / 100
            other.em_step(x[rows], pseudo_count=3.0 * share, step=step * len(rows) / 32)
    for name in NAMES:
        torch.testing.assert_close(getattr(model, name), getattr(other, name), rtol=1e-9, atol=0)


def test_rows_keep_their_sum():
    # Thousands of small steps in float32.
    x, _ = mixture(600)
    model = pc.HCLT.from_data(x, h=5)
    model.fit(x, epochs=20, batch=5, steps=(0.05, 0.001))
    for name in NAMES:
        assert ((getattr(model, name).double().sum(-1) - 1).abs() <= 1e-6).all()


def test_batches_and_steps():
    x, _ = mixture(100)
    model = pc.HCLT.from_data(x, h=2)
    seen = []
    reports = model.fit(x, x[:10], 3, 32, callback=seen.append, steps=(0.4, 0.1))
    assert [r.samples for r in seen] == [32, 64, 96, 100] * 3
    assert [r.epoch for r in seen] == [1] * 4 + [2] * 4 + [3] * 4
    assert seen[3::4] == reports
    assert all((r.valid_bpd is None) == (r.samples < 100) for r in seen)
    np.testing.assert_allclose([r.step for r in seen], np.linspace(0.4, 0.1, 12))
    assert {r.of for r in seen} == {100}
    assert {r.epochs for r in seen} == {3}


def test_train_bpd_is_that_before_each_step():
    x, _ = mixture(64)
    model = pc.HCLT.from_data(x, h=2)
    want = bits(model, x)
    assert math.isclose(model.fit(x, epochs=1)[0].train_bpd, want, rel_tol=1e-6)


def test_masked_training():
    # Half of the values are missing, and what stands there is nonsense.
    x, other = mixture()
    mask = torch.rand(x.shape, generator=generator(2)) < 0.5
    spoiled = torch.where(mask, 255, x.int()).to(torch.uint8)
    tree = pc.structure.learn(x, 2)
    model = pc.HCLT.from_data(x, h=4, parent=tree.parent)
    start = bits(model, other)
    model.fit(spoiled, epochs=50, batch=1000, mask=mask)
    assert bits(model, other) < 0.72 < 0.85 < start


def test_a_held_out_share():
    x, _ = mixture(200)
    models = [pc.HCLT.from_data(x, h=2) for _ in range(2)]
    for model in models:
        reports = model.fit(x, valid=0.1, epochs=2, batch=50)
        assert reports[0].of == 180
        assert reports[0].valid_bpd is not None
    assert house.same_bits(models[0].B, models[1].B)


def test_the_best_parameters_are_kept_and_patience_ends():
    x, other = mixture(40)
    model = pc.HCLT.from_data(x, h=16)
    # Forty samples are soon learned by heart.
    reports = model.fit(x, other, epochs=60, batch=10, pseudo_count=0.001, patience=4)
    bpds = [report.valid_bpd for report in reports]
    assert len(reports) < 60
    assert len(bpds) - 1 - bpds.index(min(bpds)) == 4
    assert bits(model, other) == min(bpds) < bpds[-1]


@pytest.mark.parametrize("where", ["step", "epoch"])
def test_a_callback_may_stop(where):
    x, _ = mixture(100)
    model = pc.HCLT.from_data(x, h=2)
    last = 32 if where == "step" else 100

    def stop(report):
        return report.epoch == 2 and report.samples == last

    reports = model.fit(x, epochs=5, batch=32, callback=stop)
    assert len(reports) == (1 if where == "step" else 2)


def test_seeds():
    x, _ = mixture(100)
    fitted = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        model = pc.HCLT.from_data(x, h=3)
        model.fit(x, epochs=2, batch=32, seed=seed)
        fitted.append(model.B.detach())
    assert house.same_bits(fitted[0], fitted[1])
    assert not house.same_bits(fitted[0], fitted[2])


# ---- several processes ----


def test_counts_are_reduced():
    """Two shares of every batch, whose counts are added, make the same run."""
    x, _ = mixture(100)
    alone = pc.HCLT.from_data(x, h=3, dtype=FP64)
    model = copy.deepcopy(alone)
    options = (None, 2, 33, 0.1, None, None, (0.3, 0.1), 0, None, None, False)
    em.fit(alone, x, *options)
    calls = []

    def reduce(tensors):
        # The other process has the same parameters: its counts can be had from the whole batch.
        calls.append([t.shape for t in tensors])
        for t in tensors:
            t.mul_(2)

    # Every sample twice: both shares of a batch are alike.
    order = torch.randperm(100, generator=em._generator(0, 0))
    assert len(order) == 100
    twice = copy.deepcopy(model)
    em.em_step(twice, x[:20].repeat_interleave(2, 0), None, None, 0.1, 0.5)
    em.em_step(model, x[:20].repeat_interleave(2, 0)[0::2], None, None, 0.1, 0.5, reduce)
    for name in NAMES:
        torch.testing.assert_close(getattr(model, name), getattr(twice, name))
    assert calls == [[(2,), *(getattr(model, name).shape for name in NAMES)]]


def test_shares_of_a_batch():
    x, _ = mixture(50)
    seen = []
    for rank in range(3):
        model = pc.HCLT.from_data(x, h=2)
        sums = []
        em.fit(
            *(model, x, None, 1, 25, 0.1, None, None, (0.3, 0.1), 0, None, None, False),
            reduce=lambda tensors, sums=sums: sums.append(float(tensors[0][1])),
            share=(rank, 3),
        )
        seen.append(sums)
    assert seen == [[9, 9], [8, 8], [8, 8]]


# ---- checkpoints ----


@pytest.mark.parametrize("valid", [None, 0.2], ids=["all", "held-out"])
@pytest.mark.parametrize("stop", [1, 3])
def test_resuming_gives_the_same_bits(tmp_path, stop, valid):
    x, _ = mixture(120)
    options = {"epochs": 5, "batch": 32, "valid": valid, "pseudo_count": 0.01}
    whole = pc.HCLT.from_data(x, h=6)
    want = whole.fit(x, **options)
    path = tmp_path / "run.npz"
    first = pc.HCLT.from_data(x, h=6)

    def leave(report):
        # In the middle of an epoch: it is done again.
        return report.epoch == stop + 1 and report.samples == 64

    assert len(first.fit(x, **options, callback=leave, checkpoint=path)) == stop
    second = pc.HCLT.from_data(x, h=6, seed=5, parent=first.parent)
    assert second.fit(x, **options, checkpoint=path, resume=True) == want
    for name in NAMES:
        assert house.same_bits(getattr(second, name), getattr(whole, name))
    # A finished run has nothing left to do.
    again = pc.HCLT.from_data(x, h=6)
    assert again.fit(x, **options, checkpoint=path, resume=True) == want
    assert house.same_bits(again.B, whole.B)
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


def test_checkpoints_that_do_not_fit(tmp_path):
    x, _ = mixture(60)
    path = tmp_path / "run.npz"
    model = pc.HCLT.from_data(x, h=2)
    options = {"epochs": 1, "batch": 32, "checkpoint": path}
    model.fit(x, **options)
    resume = options | {"resume": True}
    for changes, message in (
        ({"epochs": 2}, "written with epochs=1, not 2"),
        ({"batch": 16}, "written with batch=32, not 16"),
        ({"pseudo_count": 1.0}, "written with pseudo_count=0.1, not 1.0"),
        ({"seed": 1}, "written with seed=0, not 1"),
        ({"steps": (0.1, 0.1)}, "written with steps="),
        ({"valid": 0.1}, "written with valid=False"),
    ):
        with pytest.raises(ArgumentError, match=rf"^HCLT.fit: .*{message}"):
            model.fit(x, **resume | changes)
    other = x.clone()
    other[0, 0] ^= 1
    with pytest.raises(ArgumentError, match=r"written with data="):
        model.fit(other, **resume)
    with pytest.raises(ArgumentError, match=r"has pi \[2\] float32, the model \[3\] float32"):
        pc.HCLT.from_data(x, h=3).fit(x, **resume)
    with pytest.raises(ArgumentError, match=r"has pi \[2\] float32, the model \[2\] float64"):
        pc.HCLT.from_data(x, h=2, dtype=FP64).fit(x, **resume)
    with pytest.raises(ArgumentError, match=r"belongs to another tree"):
        pc.HCLT.from_data(x, h=2, parent=pc.chain(9).parent).fit(x, **resume)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"\x80\x04N."])
def test_files_that_are_no_checkpoint(tmp_path, content):
    x, _ = mixture(60)
    path = tmp_path / "run.npz"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"^HCLT.fit: .* is no checkpoint of fit"):
        pc.HCLT.from_data(x, h=2).fit(x, checkpoint=path, resume=True)


def test_a_checkpoint_with_pickles_is_refused(tmp_path):
    x, _ = mixture(60)
    path = tmp_path / "run.npz"
    np.savez(path, state=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FormatError, match=r"no checkpoint"):
        pc.HCLT.from_data(x, h=2).fit(x, checkpoint=path, resume=True)


def test_numpy_numbers_are_numbers(tmp_path):
    x, _ = mixture(60)
    model = pc.HCLT.from_data(x, h=2)
    options = {"epochs": np.int64(1), "batch": np.int64(32), "pseudo_count": np.float32(0.5)}
    options |= {"steps": (np.float64(0.3), np.float64(0.1)), "checkpoint": tmp_path / "run.npz"}
    reports = model.fit(x, **options)
    assert model.fit(x, **options, resume=True) == reports


def test_a_run_may_be_resumed_before_its_first_epoch_is_over(tmp_path):
    x, _ = mixture(100)
    path = tmp_path / "run.npz"
    options = {"epochs": 2, "batch": 32, "checkpoint": path}
    pc.HCLT.from_data(x, h=2).fit(x, **options, callback=lambda report: True)
    resumed, whole = (pc.HCLT.from_data(x, h=2) for _ in range(2))
    resumed.fit(x, **options, resume=True)
    whole.fit(x, epochs=2, batch=32)
    assert house.same_bits(resumed.B, whole.B)


def test_a_missing_checkpoint(tmp_path):
    x, _ = mixture(60)
    seen = []
    with pytest.raises(FileNotFoundError):
        pc.HCLT.from_data(x, h=2).fit(x, checkpoint=tmp_path / "no" / "x", callback=seen.append)
    assert seen == []
    with pytest.raises(FileNotFoundError):
        pc.HCLT.from_data(x, h=2).fit(x, checkpoint=tmp_path / "none.npz", resume=True)


# ---- bad arguments ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"pseudo_count": -0.1}, "pseudo_count is -0.1, expected at least 0"),
        ({"pseudo_count": math.nan}, "pseudo_count is nan"),
        ({"steps": (0.5, 0.0)}, "step is 0.0, expected more than 0, at most 1"),
        ({"steps": (1.5, 0.5)}, "step is 1.5"),
        ({"steps": 0.5}, "steps is 0.5, expected the first and the last"),
        ({"valid": 1.0}, "valid is 1.0, expected a share"),
        ({"valid": 0.999}, "valid=0.999 of 20 samples leaves none"),
        ({"patience": 2}, "patience is 2, expected at least 1, and data in valid"),
        ({"resume": True}, "resume needs the checkpoint"),
    ],
)
def test_bad_options(options, message):
    x, _ = mixture(20)
    with pytest.raises(ArgumentError, match=f"^HCLT.fit: {message}"):
        pc.HCLT.from_data(x, h=2).fit(x, **options)


def test_bad_data():
    x, _ = mixture(20)
    model = pc.HCLT.from_data(x, h=2)
    with pytest.raises(ArgumentError, match=r"^HCLT.fit: x has no samples"):
        model.fit(x[:0])
    with pytest.raises(SymbolRangeError, match=r"^HCLT.fit: sample 3, variable 1 is 7"):
        model.fit(x.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(7).byte()))
    for step in (0, 1.1, math.nan):
        with pytest.raises(ArgumentError, match=r"^HCLT.em_step: step is"):
            model.em_step(x, step=step)
    with pytest.raises(TypeError, match=r"^HCLT.em_step: step must be a number"):
        model.em_step(x, step="1")
