"""What the tests of every core share; tests/conftest.py makes fixtures of it."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch

from nnkernels import _host

SOURCE = Path(__file__).parents[1]

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler for CPU code",
)


# ---- the machine ----


@contextlib.contextmanager
def isa(name):
    """The CPU kernels use this instruction set."""
    before = _host.active_isa()
    _host.set_isa(name)
    try:
        yield name
    finally:
        _host.set_isa(before)


@contextlib.contextmanager
def threads(count):
    """torch's pool, and with it every kernel, uses this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


# ---- memory ----

_M_PERTURB = -6
# glibc fills new memory with the complement of the low byte, 0xFF: NaN in every float format.
_FILL_WITH_ONES = 0x100


@contextlib.contextmanager
def poisoned():
    """Fresh memory holds NaN, so a value read before it is written shows: in tensors anywhere,
    with glibc also in the kernels' own memory (but for small blocks a thread keeps at hand)."""
    before = torch.are_deterministic_algorithms_enabled()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    # Tensors are then filled: torch.utils.deterministic.fill_uninitialized_memory is on by default.
    torch.use_deterministic_algorithms(True, warn_only=True)
    mallopt(_M_PERTURB, _FILL_WITH_ONES)
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)
        torch.use_deterministic_algorithms(before)


def raw(tensor):
    """The bits of a tensor, for comparisons in which NaN equals NaN and -0 differs from +0."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(integers[tensor.element_size()])


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))


class Canaries:
    """Places tensors inside larger ones full of NaN and tells whether anything around changed."""

    def __init__(self):
        self._buffers = []

    def embed(self, tensor, step=1):
        """The same values as a view with an offset; `step` > 1 leaves gaps along the last dim."""
        sizes = [size + 4 for size in tensor.shape]
        if sizes:
            sizes[-1] = step * tensor.shape[-1] + 4
        buffer = torch.full(sizes, torch.nan).to(tensor.dtype)
        inside = buffer[tuple(slice(2, 2 + size) for size in tensor.shape[:-1])]
        if sizes:
            inside = inside[..., 2 : 2 + step * tensor.shape[-1] : step]
        inside.copy_(tensor)
        self._buffers.append((buffer, buffer.clone()))
        return inside

    def check(self):
        for buffer, before in self._buffers:
            assert same_bits(buffer, before), "an operator wrote to its inputs or around them"


# ---- operators ----


def check_op(op, *args, **kwargs):
    """Schema, fake kernel, autograd registration and AOT tracing agree with the kernel."""
    torch.library.opcheck(op, args, kwargs)


def _run(function, inputs, upstream):
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    out = function(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    if not wanted:
        return out, []
    g = torch.ones_like(out) if upstream is None else upstream
    return out.detach(), torch.autograd.grad(out, wanted, g)


def check_compiled(function, *inputs, backend="aot_eager", dynamic=None, upstream=None):
    """Compiles without a graph break, and forward and backward give the bits of eager mode."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    out, gradients = _run(compiled, inputs, upstream)
    expected, expected_gradients = _run(function, inputs, upstream)
    assert same_bits(out, expected)
    assert out.stride() == expected.stride()
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert same_bits(ours, theirs)
    return compiled


def check_exported(module, *inputs, dynamic_shapes=None):
    """torch.export, before and after its decompositions, gives the bits of eager mode."""
    program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)
    expected = module(*inputs)
    for exported in (program, program.run_decompositions()):
        assert same_bits(exported.module()(*inputs), expected)
    return program


def check_gradient(function, *inputs, step=2.0**-8, tolerance=1e-3):
    """Autograd against central differences; for functions affine within `step` of the inputs."""
    for position, x in enumerate(inputs):
        leaves = [y.detach().clone() for y in inputs]
        leaves[position].requires_grad_()
        (gradient,) = torch.autograd.grad(function(*leaves).double().sum(), leaves[position])
        for index in range(x.numel()):
            ends = []
            for sign in (1, -1):
                moved = [y.detach().clone() for y in inputs]
                moved[position].view(-1)[index] += sign * step
                ends.append(function(*moved).double().sum())
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(
                gradient.view(-1)[index].double(), slope, rtol=tolerance, atol=tolerance
            )


# ---- processes ----


def run_python(code, **environment):
    """Runs code in a new interpreter, in an empty folder: there the installed package is found."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=os.environ | environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )


# A rank ends without taking the interpreter down. DTensor's caches keep the process group, and so
# gloo's threads, beyond destroy_process_group; one that lets go of a tensor while the interpreter
# goes down aborts the process ("terminate called without an active exception").
_RANK = """
import os, runpy, sys
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
os._exit(0)
"""


def run_ranks(script, count=2, timeout=120):
    """Runs `script FILE` as ranks 0 to count-1 of a process group that meets at FILE."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", _RANK, str(script), str(Path(folder) / "meeting")],
                env=environment | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(count)
        ]
        try:
            outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, output
