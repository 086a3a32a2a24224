"""Settings for all tests."""

import os

import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_kit_settings():
    """`make test` sets KIT_PROFILE for the notebooks that nbval runs in this same process."""
    names = [name for name in os.environ if name.startswith("KIT_") and name != "KIT_CACHE"]
    settings = {name: os.environ.pop(name) for name in names}
    yield
    os.environ.update(settings)
