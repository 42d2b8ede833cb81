"""Tests of the zoo need PyTorch, one thread, and torchvision's operators declared."""

import pytest

pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _settings(one_thread, torchvision):
    """One thread, and torchvision's operators declared."""
