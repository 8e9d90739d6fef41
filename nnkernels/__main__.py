"""Command line: `nnkernels`, the same as `python -m nnkernels`."""

import argparse
import subprocess
import sys
from pathlib import Path

import nnkernels
from nnkernels import demo
from nnkernels.pc import command


def _info(_arguments):
    for key, value in nnkernels.build_info().items():
        print(f"{key:18} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def _demo(arguments):
    return demo.run(arguments.core, data=arguments.data)


def _bench(arguments):
    script = Path("bench") / f"{arguments.core}.py"
    if not script.exists():
        print(
            f"nnkernels bench: {script} is not here; run it in a checkout of the source, whose "
            "bench folder is not part of the installed package",
            file=sys.stderr,
        )
        return 2
    return subprocess.run([sys.executable, str(script), *arguments.options]).returncode


def _parser():
    parser = argparse.ArgumentParser(
        prog="nnkernels",
        description="PyTorch kernels for arithmetic that stock PyTorch only composes. Without a "
        "command: build information, then every core on real input, each with its check.",
    )
    parser.add_argument("--version", action="version", version=nnkernels.__version__)
    parser.set_defaults(run=_demo, core=None, data=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    info = commands.add_parser("info", help="what this installation is and which backends it has")
    info.set_defaults(run=_info)

    show = commands.add_parser("demo", help="run one core, or all, on real input")
    show.add_argument("core", nargs="?", choices=demo.CORES, help="default: all")
    show.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with mnist/*.gz to use instead of scikit-learn's digits",
    )
    show.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="time one core against its peers (in a checkout)")
    bench.add_argument("core", nargs="?", choices=demo.CORES, default=demo.CORES[0])
    bench.add_argument(
        "options", nargs=argparse.REMAINDER, help="passed on to bench/CORE.py; see its --help"
    )
    bench.set_defaults(run=_bench)

    command.add_coding(commands)
    return parser


def main(argv=None):
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except demo.DataError as error:
        print(f"nnkernels demo: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
