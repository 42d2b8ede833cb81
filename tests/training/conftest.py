"""Tests of training need PyTorch; on small networks one thread is fastest."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

# If torchvision was built for another version of torch, its own operators do not load. Its networks still do, once these two
# are declared.
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor d, Tensor s, float t) -> Tensor"):
    with contextlib.suppress(RuntimeError):  # they are there
        LIBRARY.define(schema)


@pytest.fixture(autouse=True)
def one_thread():
    """One thread, so that two trainings of the same network give the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
