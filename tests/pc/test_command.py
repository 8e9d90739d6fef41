"""The command line: what it writes, what it says, its exit codes; nothing half done is left."""

import gzip
import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pc_models
import pytest
import torch

from nnkernels import __main__ as nnkernels_command
from nnkernels.pc import PCModel, command


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """m.nnpm, and x.npy with 40 samples of 2 x 3."""
    monkeypatch.chdir(tmp_path)
    tables = pc_models.tables(6, 3, 9, seed=2)
    PCModel(*tables).save("m.nnpm")
    np.save("x.npy", pc_models.samples(40, tables, seed=2).reshape(40, 2, 3).numpy())
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- what it does ----


def test_there_and_back(folder, capsys):
    assert run("compress", "-m", "m.nnpm", "x.npy") == 0
    assert run("verify", "-m", "m.nnpm", "x.npc", "x.npy") == 0
    assert run("decompress", "-m", "m.nnpm", "x.npc", "-o", "y.npy") == 0
    assert np.array_equal(np.load("y.npy"), np.load("x.npy"))
    told = capsys.readouterr()
    assert "40/40 samples" in told.err
    for unit in ("samples/s", "MB/s", "bpd", "s left"):
        assert unit in told.err
    assert told.out == "x.npc: 40 samples agree with x.npy\n"
    assert names(folder) == ["m.nnpm", "x.npc", "x.npy", "y.npy"]


def test_quiet(folder, capsys):
    assert run("compress", "--quiet", "-m", "m.nnpm", "x.npy", "--threads", "2") == 0
    assert run("verify", "--quiet", "-m", "m.nnpm", "x.npc") == 0
    assert run("decompress", "--quiet", "-m", "m.nnpm", "x.npc", "-o", "y.npy") == 0
    assert capsys.readouterr() == ("", "")


def test_options_reach_the_container(folder, capsys):
    options = ["--lanes", 3, "--precision", 16, "--block", 16]
    assert run("compress", "--quiet", "-m", "m.nnpm", "x.npy", *options) == 0
    model = PCModel.load("m.nnpm")
    x = torch.from_numpy(np.load("x.npy"))
    data = (folder / "x.npc").read_bytes()
    assert data == model.compress(x, lanes=3, precision=16, block=16)
    assert run("info", "x.npc") == 0
    told = capsys.readouterr().out
    for key, value in {
        "samples": 40,
        "shape": "2x3",
        "dtype": "uint8",
        "precision": 16,
        "lanes": 3,
        "blocks": 3,
        "model_id": model.model_id,
    }.items():
        assert f"{key:15} {value}\n" in told
    assert run("compress", "--quiet", "-m", "m.nnpm", "x.npy", "--independent") == 0
    span = ["--start", 5, "--stop", 9, "-o", "y.npy"]
    assert run("decompress", "--quiet", "-m", "m.nnpm", "x.npc", *span) == 0
    assert np.array_equal(np.load("y.npy"), x[5:9].numpy())


def test_info_of_a_model(folder, capsys):
    assert run("info", "m.nnpm") == 0
    told = capsys.readouterr().out
    assert f"model_id        {PCModel.load('m.nnpm').model_id}" in told
    assert "hidden states   3" in told


def test_idx_files_and_folders(folder):
    x = np.load("x.npy")
    head = struct.pack(">HBB3I", 0, 8, 3, *x.shape)
    (folder / "a-idx3.gz").write_bytes(gzip.compress(head + x.tobytes()))
    (folder / "b.idx").write_bytes(head + x.tobytes())
    (folder / "out").mkdir()
    common = ["--quiet", "-m", "m.nnpm", "--folder", "out"]
    assert run("compress", *common, "a-idx3.gz", "b.idx", "x.npy") == 0
    assert names(folder / "out") == ["a-idx3.npc", "b.npc", "x.npc"]
    assert run("decompress", *common, "out/a-idx3.npc", "out/b.npc") == 0
    for name in ("a-idx3.npy", "b.npy"):
        assert np.array_equal(np.load(folder / "out" / name), x)


def test_nnkernels_compresses_too(folder, capsys):
    assert nnkernels_command.main(["compress", "--quiet", "-m", "m.nnpm", "x.npy"]) == 0
    arguments = ["decompress", "--quiet", "-m", "m.nnpm", "x.npc", "-o", "y.npy"]
    assert nnkernels_command.main(arguments) == 0
    assert np.array_equal(np.load("y.npy"), np.load("x.npy"))
    assert nnkernels_command.main(["decompress", "-m", "m.nnpm", "y.npy", "-o", "z.npy"]) == 1
    assert "NNPC" in capsys.readouterr().err


def test_train(folder, capsys):
    tables = pc_models.tables(6, 3, 9, seed=2)
    np.save("train.npy", pc_models.samples(400, tables, seed=3).numpy())
    options = ["--states", 3, "--epochs", 2, "--values", 9, "--checkpoint", "state.npz"]
    assert run("train", "train.npy", "-m", "t.nnpm", *options, "--valid", "x.npy") == 0
    told = capsys.readouterr()
    assert "epoch 2/2, valid" in told.err
    assert "PCModel(D=6, h=3, K=9" in told.out
    assert "best of held-out samples" in told.out
    model = PCModel.load("t.nnpm")
    assert (model.D, model.h, model.K) == (6, 3, 9)
    assert (folder / "state.npz").exists()
    assert run("compress", "--quiet", "-m", "t.nnpm", "x.npy") == 0
    assert run("verify", "--quiet", "-m", "t.nnpm", "x.npc", "x.npy") == 0


def test_training_is_resumed_where_it_was(folder, capsys):
    options = ["--states", 2, "--values", 9, "--batch", 10, "--valid", 0.25, "--quiet"]
    assert run("train", "x.npy", "-m", "a.nnpm", "--epochs", 3, *options) == 0
    # Stopped after two of three epochs: by a file with the checkpoint of the second.
    from nnkernels.pc import HCLT, training

    x = training.flat_samples("x.npy")
    model = HCLT.from_data(x, 2, K=9, init="clusters")
    model.fit(
        x,
        0.25,
        epochs=3,
        batch=10,
        steps=(0.2, 0.005),
        checkpoint="state.npz",
        callback=lambda r: r.epoch == 2 and r.valid_bpd is not None,
    )
    again = ["--epochs", 3, "--checkpoint", "state.npz", "--resume", *options]
    assert run("train", "x.npy", "-m", "b.nnpm", *again) == 0
    assert PCModel.load("a.nnpm").model_id == PCModel.load("b.nnpm").model_id


def test_minutes_become_epochs(folder, capsys):
    options = ["--states", 2, "--minutes", 0.01, "--batch", 40]
    assert run("train", "x.npy", "-m", "t.nnpm", *options) == 0
    epochs = int(capsys.readouterr().err.rsplit("epoch ", 1)[1].split("/")[1].split(":")[0])
    assert epochs >= 1


# ---- what it refuses ----


def bad_block(folder):
    from nnkernels import _host

    assert run("compress", "--quiet", "-m", "m.nnpm", "x.npy", "--block", 16, "-o", "bad.npc") == 0
    data = bytearray((folder / "bad.npc").read_bytes())
    start = _host.container_offsets(_host.ContainerHeader.parse(data), data)[1]
    data[int(start) + 20] ^= 1
    (folder / "bad.npc").write_bytes(data)


def other_model(folder):
    PCModel(*pc_models.tables(6, 3, 9, seed=5)).save("m.nnpm")


def bad_symbol(folder):
    x = np.load("x.npy")
    x[7, 1, 1] = 200
    np.save("x.npy", x)


COMMANDS = {
    "compress": ["compress", "-m", "m.nnpm", "x.npy", "-o", "new.npc"],
    "decompress": ["decompress", "-m", "m.nnpm", "good.npc", "-o", "new.npy"],
    "damaged": ["decompress", "-m", "m.nnpm", "bad.npc", "-o", "new.npy"],
    "verify": ["verify", "-m", "m.nnpm", "good.npc", "x.npy"],
    "verify damaged": ["verify", "-m", "m.nnpm", "bad.npc"],
    "info": ["info", "x.npy"],
    "train": ["train", "x.npy", "-m", "new.nnpm"],
}

BAD = {
    "symbol": ("compress", bad_symbol, 1, "x.npy: sample 7, variable 4 is 200"),
    "model": ("compress", lambda f: (f / "m.nnpm").write_bytes(b"junk" * 20), 1, "b'NNPM'"),
    "short model": ("compress", lambda f: os.truncate("m.nnpm", 100), 1, "ends at byte 100"),
    "foreign data": ("compress", lambda f: (f / "x.npy").write_text("a,b\n1,2"), 1, ".npy file"),
    "float": ("compress", lambda f: np.save("x.npy", np.ones((4, 6))), 1, "float64"),
    "shape": ("compress", lambda f: np.save("x.npy", np.ones((4, 5), "u1")), 1, "D=6"),
    "other model": ("decompress", other_model, 1, "was coded with model"),
    "damaged": ("damaged", bad_block, 1, "block 1"),
    "verify damaged": ("verify damaged", bad_block, 1, "block 1"),
    "verify other": ("verify", bad_symbol, 1, "sample 7, variable 4 differs from x.npy"),
    "verify shape": ("verify", lambda f: np.save("x.npy", np.ones((4, 6), "u1")), 1, "40 samples"),
    "info": ("info", lambda f: None, 1, "NNPC"),
    "no model": ("compress", lambda f: (f / "m.nnpm").unlink(), 2, "m.nnpm: No such file"),
    "no data": ("compress", lambda f: (f / "x.npy").unlink(), 2, "x.npy: No such file"),
    "train float": ("train", lambda f: np.save("x.npy", np.ones((4, 6))), 1, "float64"),
    "train nothing": ("train", lambda f: np.save("x.npy", np.ones((0, 6), "u1")), 2, "no samples"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_line(folder, capsys, case):
    name, damage, code, message = BAD[case]
    assert run("compress", "--quiet", "-m", "m.nnpm", "x.npy", "-o", "good.npc") == 0
    damage(folder)
    before = names(folder)
    assert run(*COMMANDS[name], *([] if name == "info" else ["--quiet"])) == code
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.err
    assert names(folder) == before


def test_damaged_blocks_can_be_left_out(folder, capsys):
    bad_block(folder)
    arguments = ["-m", "m.nnpm", "bad.npc", "-o", "y.npy", "--on-error", "skip", "--quiet"]
    with pytest.warns(RuntimeWarning, match="samples 16 to 31"):
        assert run("decompress", *arguments) == 0
    x = np.load("x.npy")
    assert np.array_equal(np.load("y.npy"), np.concatenate([x[:16], x[32:]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "-m", "m.nnpm", "x.npy", "--precision", "9"], "precision is 9"),
        (["compress", "-m", "m.nnpm", "x.npy", "--device", "cuda"], "--device cuda"),
        (["compress", "-m", "m.nnpm", "x.npy", "x.npy", "-o", "y"], "--output takes one FILE"),
        (["compress", "-m", "m.nnpm", "x.npy", "out/x.npy", "--folder", "."], "2 times"),
        (["compress", "-m", "m.nnpm", "x.npy", "-o", "x.npy"], "replaced by its own result"),
        (["compress", "-m", "m.nnpm", "x.npy", "-o", "none/x.npc"], "No such file"),
        (["train", "x.npy", "-m", "t.nnpm", "--states", "0"], "h is 0"),
        (["train", "x.npy", "-m", "t.nnpm", "--epochs", "0"], "epochs is 0"),
        (["train", "x.npy", "-m", "t.nnpm", "--resume"], "resume"),
    ],
)
def test_mistakes_of_the_caller_give_exit_code_2(folder, capsys, arguments, message):
    before = names(folder)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert names(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compress"],
        ["compress", "x.npy"],
        ["pack"],
        ["compress", "-m", "m", "x", "--lanes", "0"],
    ],
)
def test_unreadable_commands_give_exit_code_2(folder, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_no_file(folder, number):
    tables = pc_models.tables(200, 16, 16, seed=1)
    PCModel(*tables).save("large.nnpm")
    x = pc_models.samples(64, tables)
    np.save("large.npy", np.tile(x.numpy(), (5000, 1)))
    arguments = ["compress", "-m", "large.nnpm", "large.npy", "--block", "64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nnkernels.pc", *arguments], stderr=subprocess.PIPE, cwd=folder
    )
    try:
        end = time.monotonic() + 60
        while not list(folder.glob(".large.npc*")) and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"interrupted" in told
    assert b"Traceback" not in told
    assert not list(folder.glob("*large.npc*"))
    assert not list(folder.glob(".large*"))
