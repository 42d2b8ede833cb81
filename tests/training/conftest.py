"""Tests of training need PyTorch; on small networks one thread is fastest."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

# Where torchvision's own operators do not load, because it was built for another build of torch, its networks still do, once
# these two are declared.
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor d, Tensor s, float t) -> Tensor"):
    with contextlib.suppress(RuntimeError):  # it has them
        LIBRARY.define(schema)


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, so that what is trained twice is trained the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
