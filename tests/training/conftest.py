"""Tests of training need PyTorch, one thread, and networks of torchvision and timm."""

import pytest

pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _settings(one_thread, torchvision):
    """One thread, and torchvision's operators declared."""
