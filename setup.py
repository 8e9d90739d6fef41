"""Drives CMakeLists.txt, which holds the list of sources; the metadata is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc" / "packaging"))
from build_backend import TORCH, find_torch  # noqa: E402


class CMakeBuild(build_ext):
    """Configures and builds the libraries straight into the package folder."""

    def run(self):
        torch_folder = find_torch()
        if torch_folder is None:
            raise RuntimeError(
                f"nnkernels needs {TORCH} to build; install it first or build with isolation"
            )
        import pybind11

        if self.inplace:
            package, build = ROOT / "nnkernels", ROOT / "build" / "editable"
        else:
            package, build = Path(self.build_lib).resolve() / "nnkernels", Path(self.build_temp)
        configure = [
            *("cmake", "--fresh", "-S", str(ROOT), "-B", str(build)),
            f"-DNNKERNELS_OUTPUT_DIR={package}",
            f"-DNNKERNELS_TORCH_DIR={torch_folder}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


setup(
    ext_modules=[Extension("nnkernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
