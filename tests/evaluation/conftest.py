"""Tests of evaluation need PyTorch and one thread."""

import pytest

pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _settings(one_thread):
    """One thread."""
