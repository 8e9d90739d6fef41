"""Build backend: setuptools, building against the torch of the target environment.

With build isolation pip runs this in a fresh environment without torch, and asking for torch there
would download a second copy, maybe of another version than the one the package will meet. So the
environment that is installed into is asked first; only where it has no torch in the supported range
is one requested for the build.
"""

import importlib.util
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import setuptools.build_meta as _setuptools
from setuptools.build_meta import build_sdist, get_requires_for_build_sdist  # noqa: F401

TORCH = "torch>=2.11,<2.14"

# Run with -I, which ignores the PYTHONPATH that pip's isolation works through: the answer is that
# of the target environment.
_LOCATE = (
    "import importlib.metadata as m, importlib.util as u;"
    "print(m.version('torch'), u.find_spec('torch').submodule_search_locations[0], sep='\\n')"
)


def _supported(torch_version):
    release = tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2])
    return (2, 11) <= release < (2, 14)


def find_torch():
    """Folder of a torch to build against: this environment's, else the target's; else None."""
    try:
        if _supported(version("torch")):
            return importlib.util.find_spec("torch").submodule_search_locations[0]
    except (PackageNotFoundError, AttributeError):
        pass
    answer = subprocess.run([sys.executable, "-I", "-c", _LOCATE], capture_output=True, text=True)
    if answer.returncode == 0:
        torch_version, folder = answer.stdout.splitlines()
        if _supported(torch_version):
            return folder
    return None


def _with_torch(requirements):
    return requirements if find_torch() else [*requirements, TORCH]


def get_requires_for_build_wheel(config_settings=None):
    return _with_torch(_setuptools.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None):
    return _with_torch(_setuptools.get_requires_for_build_editable(config_settings))


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    # What an earlier build left there would enter the wheel, modules since deleted included.
    for folder in Path("build").glob("lib*"):
        shutil.rmtree(folder)
    return _setuptools.build_wheel(wheel_directory, config_settings, metadata_directory)


build_editable = _setuptools.build_editable
prepare_metadata_for_build_wheel = _setuptools.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _setuptools.prepare_metadata_for_build_editable
