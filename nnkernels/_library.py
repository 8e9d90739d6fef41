"""Loads the compiled libraries and tells what they are."""

import os
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent
_CUDA_LIBRARY = _FOLDER / "_C_cuda.so"

BACKENDS = ("cuda", "triton", "reference")


if not (_FOLDER / "_C.so").exists() or find_spec("nnkernels._host") is None:
    raise ImportError(
        f"nnkernels is imported from {_FOLDER}, which holds no extension built for this Python. In "
        "a source checkout, either leave the checkout's folder so that the installed package is "
        "found, or build in place: pip install --no-build-isolation -e ."
    )

from nnkernels import _host  # noqa: E402

version = _host.version


def has_cuda_library():
    """Whether this build has CUDA kernels and this torch can load them."""
    return torch.version.cuda is not None and _CUDA_LIBRARY.exists()


def load():
    """Registers the operators torch.ops.nnkernels.*; called once at import."""
    torch.ops.load_library(str(_FOLDER / "_C.so"))
    if has_cuda_library():
        torch.ops.load_library(str(_CUDA_LIBRARY))
    # What the environment asks for must be possible.
    forced_backend()
    _host.active_isa()


def forced_backend():
    """The backend that NNKERNELS_BACKEND forces, or None; RuntimeError if it cannot run here."""
    name = os.environ.get("NNKERNELS_BACKEND")
    if not name:
        return None
    if name not in BACKENDS:
        raise RuntimeError(f"NNKERNELS_BACKEND={name!r} is not one of {', '.join(BACKENDS)}")
    if name == "cuda" and not has_cuda_library():
        raise RuntimeError(
            "NNKERNELS_BACKEND=cuda, but this build has no CUDA library: it is built where torch "
            "has CUDA and nvcc is found"
        )
    if name == "triton" and find_spec("triton") is None:
        raise RuntimeError("NNKERNELS_BACKEND=triton, but Triton is not installed")
    return name


def _triton_version():
    if find_spec("triton") is None:
        return None
    try:
        return installed_version("triton")
    except PackageNotFoundError:
        return "of unknown version"


def build_info():
    """What this installation is and which backends it has, as a flat dictionary.

    Keys: version, compiler, torch, threads, cpu_isa (in use), cpu_isa_available (ascending),
    cuda_library, cuda_device, triton (version or None), backend (forced by NNKERNELS_BACKEND, or
    "auto").
    """
    return {
        "version": version,
        "compiler": _host.compiler,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_isa": _host.active_isa(),
        "cpu_isa_available": _host.isa_names(),
        "cuda_library": has_cuda_library(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "triton": _triton_version(),
        "backend": forced_backend() or "auto",
    }
