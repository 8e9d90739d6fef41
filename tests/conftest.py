"""Fixtures and settings for all tests.

Hypothesis runs the profile "default": few examples, the same every time. `pytest
--hypothesis-profile=deep` searches longer.
"""

import house
import hypothesis
import pytest
import torch

from nnkernels import _host

hypothesis.settings.register_profile(
    "default", max_examples=50, derandomize=True, deadline=None, database=None
)
hypothesis.settings.register_profile("deep", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device and a torch built with CUDA")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every test runs with fresh memory full of NaN."""
    with house.poisoned():
        yield


@pytest.fixture(params=_host.isa_names())
def isa(request):
    """Runs the test with every instruction set that this machine has."""
    with house.isa(request.param) as name:
        yield name


@pytest.fixture
def canaries():
    """A `house.Canaries` that is checked when the test ends."""
    guard = house.Canaries()
    yield guard
    guard.check()
