"""The codec: the exact reference's integers, round trips, the same bytes everywhere, file sizes."""

import hashlib
import itertools

import house
import pc_models
import pytest
import torch

from nnkernels import pc
from nnkernels.pc import PCModel, reference_codec

# D, h, K: every vector width and its remainders, both dtypes, one of everything.
SHAPES = [
    (1, 1, 1),
    (1, 1, 2),
    (1, 5, 256),
    (2, 2, 3),
    (3, 16, 16),
    (5, 7, 2),
    (8, 8, 17),
    (17, 5, 256),
    (17, 4, 1),
    (19, 33, 10),
    (30, 64, 5),
    (6, 17, 257),
    (4, 3, 4096),
    (100, 3, 4),
]
TINY = [
    *((1, 1, 2), (1, 3, 4), (2, 2, 3), (3, 5, 2), (5, 2, 16), (9, 4, 5)),
    *((4, 2, 1), (7, 9, 3), (2, 17, 20), (3, 2, 300)),
]


def ids(shape):
    return "D{}-h{}-K{}".format(*shape)


def model_and_data(shape, N, seed=1):
    tables = pc_models.tables(*shape, seed=seed)
    return PCModel(*tables), pc_models.samples(N, tables, seed=seed)


def unsigned(words):
    return [[word % (1 << 32) for word in lane] for lane in words]


# ---- the exact reference ----


@pytest.mark.parametrize("precision", [14, 20, 24])
@pytest.mark.parametrize("shape", TINY, ids=ids)
def test_intervals_are_those_of_exact_arithmetic(shape, precision, isa):
    model, x = model_and_data(shape, 5)
    low, width = pc.intervals(x, model.tables, precision)
    want = reference_codec.intervals(x, model.tables, precision)
    assert low.tolist() == [[pair[0] for pair in row] for row in want]
    assert width.tolist() == [[pair[1] for pair in row] for row in want]


@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("shape", TINY, ids=ids)
def test_words_are_those_of_exact_arithmetic(shape, lanes, isa):
    model, x = model_and_data(shape, 6)
    words, counts = pc.encode(x, model.tables, lanes, 20)
    want = reference_codec.encode(x, model.tables, lanes, 20)
    found = [lane[:count] for lane, count in zip(words.tolist(), counts.tolist(), strict=True)]
    assert unsigned(found) == want
    for lane, count in zip(words, counts, strict=True):
        assert not lane[count:].any()
    assert torch.equal(pc.decode(words, counts, len(x), model.tables, 20), x)


@pytest.mark.parametrize("shape", TINY, ids=ids)
def test_conditional_cdfs_are_those_of_exact_arithmetic(shape, isa):
    model, x = model_and_data(shape, 3)
    tables = reference_codec._Tables(model.tables)
    ours = {i: pc.conditional_cdf(x, model.tables, i, 20).tolist() for i in range(model.D)}
    for n, sample in enumerate(x.tolist()):

        def compare(i, cdf, n=n, sample=sample):
            assert ours[i][n] == cdf
            return sample[i]

        reference_codec.walk(tables, 20, compare)


@pytest.mark.parametrize("precision", [20, 24])
def test_models_made_by_freezing_code_by_the_rule_too(isa, precision):
    """Weights down to 2^-30, rows of float32 that are no round numbers."""
    x = pc_models.samples(40, pc_models.tables(6, 3, 20, seed=8))
    circuit = pc.HCLT.from_data(x, 4, seed=2, K=24)
    circuit.fit(x, epochs=3, pseudo_count=0.0)
    model = circuit.freeze()
    # What training never saw costs most.
    new = torch.full((2, 6), 23, dtype=torch.uint8)
    both = torch.cat([x[:4], new])
    words, counts = pc.encode(both, model.tables, 2, precision)
    want = reference_codec.encode(both, model.tables, 2, precision)
    found = [lane[:count] for lane, count in zip(words.tolist(), counts.tolist(), strict=True)]
    assert unsigned(found) == want
    assert torch.equal(pc.decode(words, counts, len(both), model.tables, precision), both)


# ---- round trips ----


@pytest.mark.parametrize("N", [0, 1, 7, 65])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_round_trip(shape, N, isa):
    model, x = model_and_data(shape, N)
    for lanes, precision in ((None, 20), (1, 14), (4, 24)):
        data = model.compress(x, lanes=lanes, precision=precision, block=32)
        found = model.decompress(data)
        assert found.dtype == x.dtype
        assert torch.equal(found, x)


@pytest.mark.parametrize("precision", range(12, 25))
def test_every_precision(precision):
    model, x = model_and_data((9, 6, 200), 50)
    assert torch.equal(model.decompress(model.compress(x, precision=precision)), x)


@pytest.mark.parametrize("lanes", [1, 2, 3, 15, 16, 17, 40, 64, 100])
def test_every_number_of_lanes(lanes, isa):
    model, x = model_and_data((11, 16, 30), 100)
    assert torch.equal(model.decompress(model.compress(x, lanes=lanes, block=128)), x)


@pytest.mark.parametrize("values", ["least likely", "random"])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_data_the_model_does_not_expect(shape, values):
    model, x = model_and_data(shape, 33)
    if values == "random":
        draws = pc_models.random_integers(5, *x.shape).astype("int64") >> 8
        x = (torch.from_numpy(draws) % model.K).to(x.dtype)
    else:
        x = model.tables[2].sum(1).argmin(-1).to(x.dtype).expand(33, -1)
    assert torch.equal(model.decompress(model.compress(x, lanes=5)), x)


@pytest.mark.parametrize(
    "x",
    [
        lambda x: x.view(12, 2, 3, 1),
        lambda x: x.short(),
        lambda x: x.numpy(),
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat([x, x], 1)[:, :6],
        lambda x: x[:1].expand(9, -1),
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: torch.nn.Buffer(x),
    ],
    ids=["4d", "int16", "numpy", "transposed", "sliced", "expanded", "strided", "subclass"],
)
def test_any_layout_and_shape(x):
    model, plain = model_and_data((6, 4, 9), 12)
    given = x(plain)
    before = torch.as_tensor(given).clone()
    found = model.decompress(model.compress(given))
    assert found.dtype == before.dtype
    assert torch.equal(found, before)
    assert torch.equal(torch.as_tensor(given), before)


def test_one_value_a_sample_may_stand_without_a_dimension():
    model, x = model_and_data((1, 3, 9), 12)
    found = model.decompress(model.compress(x[:, 0]))
    assert found.shape == (12,)
    assert torch.equal(found, x[:, 0])


# ---- the same bytes ----


@pytest.fixture(scope="module")
def case():
    model, x = model_and_data((40, 16, 60), 150, seed=6)
    return model, x, model.compress(x, lanes=7, block=64)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bytes_do_not_depend_on_threads_or_instructions(case, isa, threads):
    model, x, data = case
    with house.threads(threads):
        assert model.compress(x, lanes=7, block=64) == data
        assert torch.equal(model.decompress(data), x)


def test_bytes_do_not_depend_on_flushed_denormals(case, isa):
    model, x, data = case
    assert torch.set_flush_denormal(True)
    try:
        assert model.compress(x, lanes=7, block=64) == data
        assert torch.equal(model.decompress(data), x)
        # The codec gives the setting back.
        assert float(torch.tensor(1e-40) * 1.0) == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert float(torch.tensor(1e-40) * 1.0) > 0.0


def test_every_instruction_set_reads_what_every_other_wrote():
    from nnkernels import _host

    model, x = model_and_data((17, 33, 256), 40)
    for writer, reader in itertools.product(_host.isa_names(), repeat=2):
        with house.isa(writer):
            data = model.compress(x)
        with house.isa(reader):
            assert torch.equal(model.decompress(data), x)


def test_a_fresh_process_writes_the_same(case, tmp_path):
    model, x, data = case
    model.save(tmp_path / "m.nnpm")
    torch.save(x, tmp_path / "x.pt")
    (tmp_path / "x.npc").write_bytes(data)
    for name in ("scalar", "avx2"):
        done = house.run_python(
            f"""
            import hashlib, torch
            from nnkernels.pc import PCModel
            model = PCModel.load({str(tmp_path / "m.nnpm")!r})
            x = torch.load({str(tmp_path / "x.pt")!r})
            assert torch.equal(model.decompress(open({str(tmp_path / "x.npc")!r}, "rb").read()), x)
            print(hashlib.sha256(model.compress(x, lanes=7, block=64)).hexdigest())
            """,
            NNKERNELS_CPU_ISA=name,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("part", [1, 3, 16, 47, 149])
def test_integers_do_not_depend_on_the_batch(case, part, isa):
    model, x, _ = case
    low, width = pc.intervals(x, model.tables)
    parts = [pc.intervals(piece, model.tables) for piece in x.split(part)]
    assert torch.equal(torch.cat([piece[0] for piece in parts]), low)
    assert torch.equal(torch.cat([piece[1] for piece in parts]), width)


def test_lanes_do_not_depend_on_each_other(case):
    model, x, _ = case
    words, counts = pc.encode(x, model.tables, 7)
    for lane in range(7):
        alone, count = pc.encode(x[lane::7], model.tables, 1)
        assert count == counts[lane]
        assert torch.equal(alone[0, :count], words[lane, :count])


def test_encode_is_intervals_and_rans(case, isa):
    model, x, _ = case
    words, counts = pc.encode(x, model.tables, 5)
    other, other_counts = pc.rans_encode(*pc.intervals(x, model.tables), 5)
    assert torch.equal(counts, other_counts)
    assert torch.equal(words, other)


def test_two_runs_are_equal(case):
    model, x, data = case
    assert model.compress(x, lanes=7, block=64) == data


# ---- size ----


@pytest.mark.parametrize("block", [50, 4096])
@pytest.mark.parametrize(("precision", "share"), [(20, 0.001), (16, 0.003), (24, 0.001)])
def test_the_file_is_as_small_as_the_model_says(precision, share, block):
    model, x = model_and_data((60, 8, 64), 400, seed=3)
    nll = pc.bits(model, x)
    for lanes in (1, 16, 64):
        lanes = min(lanes, block)
        blocks = -(-len(x) // block)
        size = len(model.compress(x, lanes=lanes, precision=precision, block=block))
        assert 8 * size <= (1 + share) * nll + 8 * (11 * lanes * blocks + 128 + 32 * blocks)
        assert 8 * size >= nll


def test_bits_is_the_cost_of_the_intervals():
    model, x = model_and_data((30, 5, 20), 50)
    _, width = pc.intervals(x, model.tables, 24)
    exact = float((24 - width.double().log2()).sum())
    assert pc.bits(model, x) == pytest.approx(exact, rel=1e-4)


def lanes_of(data):
    from nnkernels import _host

    return _host.ContainerHeader.parse(data).lanes


def test_default_lanes_take_half_a_percent_of_the_data():
    model, _ = model_and_data((60, 8, 64), 1, seed=3)
    seen = []
    for N in (1, 2, 3, 10, 100, 1000):
        _, x = model_and_data((60, 8, 64), N, seed=3)
        lanes = lanes_of(model.compress(x))
        coded = pc.bits(model, x) / 8
        assert lanes == 1 or 8 * lanes <= 0.005 * coded
        assert lanes in (64, N) or 16 * lanes > 0.005 * coded
        seen.append(lanes)
    assert seen[0] == 1
    assert seen[-1] >= 16
    assert lanes_of(model.compress(x[:10], lanes=8)) == 8


def test_independent_samples_have_a_lane_each():
    model, x = model_and_data((60, 8, 64), 40, seed=3)
    data = model.compress(x, independent=True, block=16)
    assert lanes_of(data) == 16
    assert torch.equal(model.decompress(data), x)
