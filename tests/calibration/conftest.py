"""One thread: networks here are small, and the tests run side by side."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """As the fixture that it requests, in every test of this folder."""
