"""The command line of pc: `python -m nnkernels.pc`; `nnkernels compress|decompress` are its too.

Exit codes: 0 done, 1 bad data or a model that does not fit, 2 a mistake in the command itself, 130
interrupted. Files appear whole under their names or not at all. Started by `torchrun`, the ranks
share the files (compress, decompress) or every batch (train).
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from nnkernels.pc import container, files, training
from nnkernels.pc.errors import ArgumentError, PCError
from nnkernels.pc.model import BLOCK, PCModel, Progress
from nnkernels.pc.progress import Line

# ---- options ----


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_positive, help="threads (torch's default)")
    parser.add_argument("--device", default="cpu", help="where to compute; only cpu so far")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, expected at least 1")
    return value


def _coding(parser: argparse.ArgumentParser, what: str, ending: str) -> None:
    parser.add_argument("sources", nargs="+", type=Path, metavar="FILE", help=what)
    parser.add_argument("--model", "-m", required=True, type=Path, help="model file")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--output", "-o", type=Path, help="the file to write, of one FILE")
    place.add_argument("--folder", type=Path, help="where to write (beside each FILE)")
    parser.set_defaults(ending=ending)
    _common(parser)


def add_coding(commands) -> None:
    """The parsers of compress and decompress."""
    parser = commands.add_parser("compress", help="code a file of samples with a model")
    _coding(parser, "samples: .npy, idx or idx.gz", ".npc")
    parser.add_argument("--lanes", type=_positive, help="coder states of a block (from the data)")
    parser.add_argument("--precision", type=int, default=20, help="bits, 12 to 24 (20)")
    parser.add_argument("--block", type=_positive, default=BLOCK, help=f"samples ({BLOCK})")
    parser.add_argument("--independent", action="store_true", help="one lane per sample")
    parser.set_defaults(run=run, work=_compress)

    parser = commands.add_parser("decompress", help="give back what compress coded")
    _coding(parser, "containers (.npc)", ".npy")
    parser.add_argument("--start", type=int, default=0, help="first sample (0)")
    parser.add_argument("--stop", type=int, help="the sample after the last one (all)")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="leave damaged blocks out"
    )
    parser.add_argument("--limit", type=_positive, default=1 << 40, help="most values to decode")
    parser.set_defaults(run=run, work=_decompress)


def _add_others(commands) -> None:
    _common(training.add_train(commands, run))

    parser = commands.add_parser("info", help="what a model file or a container holds")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(run=run, work=_info, device="cpu", threads=None)

    parser = commands.add_parser("verify", help="decode a container and compare, writing nothing")
    parser.add_argument("file", type=Path, metavar="FILE", help="container (.npc)")
    parser.add_argument("original", nargs="?", type=Path, help="what it must hold (its checksums)")
    parser.add_argument("--model", "-m", required=True, type=Path, help="model file")
    parser.add_argument("--limit", type=_positive, default=1 << 40, help="most values to decode")
    parser.set_defaults(run=run, work=_verify)
    _common(parser)


# ---- commands ----


def _share(sources: list[Path]) -> list[Path]:
    """This rank's files under torchrun, else all."""
    rank, size = training.rank_and_size()
    return sources[rank::size]


def _target(options: argparse.Namespace, source: Path) -> Path:
    if options.output is not None:
        return options.output
    name = source.name.removesuffix(".gz")
    for known in (".npy", ".npc", ".idx"):
        name = name.removesuffix(known)
    return (options.folder or source.parent) / (name + options.ending)


def _each(options: argparse.Namespace, work) -> None:
    """`work(model, source, target, progress)` for every file of this rank."""
    if options.output is not None and len(options.sources) > 1:
        raise ArgumentError(f"--output takes one FILE, got {len(options.sources)}; use --folder")
    targets = [_target(options, source) for source in options.sources]
    for target in targets:
        if targets.count(target) > 1:
            raise ArgumentError(f"{target} would be written {targets.count(target)} times")
    model = PCModel.load(options.model)
    for source in _share(options.sources):
        target = _target(options, source)
        if target.exists() and target.samefile(source):
            raise ArgumentError(f"{source} would be replaced by its own result; use --output")
        with _progress(source, model, options) as progress:
            work(model, source, target, progress)


@contextlib.contextmanager
def _progress(source: Path, model: PCModel, options: argparse.Namespace) -> Iterator[Progress]:
    line = Line(source.name, model.D * (1 if model.K <= 256 else 2), options.quiet)

    def progress(done: int, total: int, size: int) -> None:
        line.show(done, total, 8 * size / (done * model.D))

    try:
        yield progress
    finally:
        line.close()


def _compress(options: argparse.Namespace) -> int:
    def work(model, source, target, progress):
        model.compress_file(
            source,
            target,
            lanes=options.lanes,
            precision=options.precision,
            block=options.block,
            independent=options.independent,
            progress=progress,
        )

    _each(options, work)
    return 0


def _decompress(options: argparse.Namespace) -> int:
    def work(model, source, target, progress):
        model.decompress_file(
            source,
            target,
            start=options.start,
            stop=options.stop,
            on_error=options.on_error,
            limit=options.limit,
            progress=progress,
        )

    _each(options, work)
    return 0


def _verify(options: argparse.Namespace) -> int:
    model = PCModel.load(options.model)
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(container.mapped(options.file))
        header = container.Reader(str(options.file), data, options.limit).header
        original = None
        if options.original is not None:
            original = stack.enter_context(files.open_samples(options.original))
            _compare_kind(options, original, header)
        progress = stack.enter_context(_progress(options.file, model, options))
        for start, block in model.blocks(data, limit=options.limit):
            done = start + len(block)
            if original is not None:
                _compare(options, original.read(len(block)), block.numpy(), start)
            progress(done, header.N, len(data) * done // header.N)
    if not options.quiet:
        compared = "its checksums" if original is None else str(options.original)
        print(f"{options.file}: {header.N:,} samples agree with {compared}")
    return 0


def _compare_kind(options, original: files.Samples, header) -> None:
    want = original.count, list(original.shape), str(original.dtype)
    found = header.N, list(header.dims), header.dtype
    if want != found:
        raise PCError(
            "{}: holds {} samples of {} {}, {} {} of {} {}".format(
                options.file, *found, options.original, *want
            )
        )


def _compare(options, want: np.ndarray, found: np.ndarray, start: int) -> None:
    wrong = (want != found).reshape(len(want), -1)
    if wrong.any():
        n, i = np.argwhere(wrong)[0]
        raise PCError(
            f"{options.file}: sample {start + n}, variable {i} differs from {options.original}"
        )


def _info(options: argparse.Namespace) -> int:
    size = options.file.stat().st_size
    with open(options.file, "rb") as file:
        magic = file.read(4)
    if magic == b"NNPM":
        model = PCModel.load(options.file)
        found = {
            "kind": "model",
            "variables": model.D,
            "values": model.K,
            "hidden states": model.h,
            "weights": sum(table.numel() for table in model.tables[:3]),
            "model_id": model.model_id,
        }
    else:
        with container.mapped(options.file) as data:
            header = container.Reader(str(options.file), data, 1 << 62).header
        found = {
            "kind": "container",
            "version": header.version,
            "arith": header.arith,
            "samples": header.N,
            "shape": "x".join(map(str, header.dims)) or "single values",
            "dtype": header.dtype,
            "variables": header.D,
            "values": header.K,
            "precision": header.precision,
            "block": header.block,
            "blocks": header.blocks,
            "lanes": header.lanes,
            "model_id": header.model_id.hex(),
            "bits/dimension": f"{8 * size / max(header.N * header.D, 1):.4f}",
        }
    for key, value in ({"file": options.file, "bytes": size} | found).items():
        print(f"{key:15} {value}")
    return 0


# ---- running ----


def run(options: argparse.Namespace) -> int:
    """Runs a parsed command; its errors become one line and an exit code."""
    if options.device != "cpu":
        return _fail(2, f"--device {options.device}: this build codes on the CPU only")
    before = signal.signal(signal.SIGTERM, _terminate)
    threads = torch.get_num_threads()
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        return options.work(options)
    except ArgumentError as error:
        return _fail(2, str(error))
    except PCError as error:
        return _fail(1, str(error))
    except OSError as error:
        return _fail(2, f"{error.filename or ''}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        return _fail(1, f"{type(error).__name__}: {error}".splitlines()[0])
    except KeyboardInterrupt:
        return _fail(130, "interrupted; what was not finished is not there")
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, before)


def _terminate(_number, _frame):
    # As Ctrl-C: unfinished files go away.
    raise KeyboardInterrupt


def _fail(code: int, text: str) -> int:
    print(f"nnkernels.pc: {text}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m nnkernels.pc",
        description="Trains probabilistic circuits and codes data with them, losslessly.",
    )
    commands = found.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_others(commands)
    add_coding(commands)
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return options.run(options)
