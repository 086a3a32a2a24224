"""Settings for the tests of this room."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """On matrices this small a second thread mostly waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
