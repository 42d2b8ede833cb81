"""js/demo: it computes what PyTorch computes, writes nothing to the console, asks no other server, fits phones."""

from __future__ import annotations

import importlib.util
import json
from urllib.parse import quote

import numpy as np
import pytest
from headless import chromium, serving, visit
from vectors import JS

import opq

DEMO = JS / "demo"
STROKES = {
    "1": [[[0.5, 0.15], [0.5, 0.5], [0.5, 0.85]]],
    "7": [[[0.25, 0.2], [0.5, 0.2], [0.75, 0.2], [0.6, 0.5], [0.45, 0.85]]],
}


@pytest.mark.slow
@pytest.mark.parametrize("digit", sorted(STROKES))
def test_the_page_computes_what_pytorch_computes(package, tmp_path, digit):
    """In a page as wide as a phone: outputs as in PyTorch to float rounding; a drawn digit is recognized, and cleared again."""
    if chromium() is None:
        pytest.skip("chromium is not here")
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("demo_train", DEMO / "train.py")
    training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(training)
    network = training.make_network()
    opq.load(network, DEMO / "digits.opq")
    images = np.random.default_rng(0).random((8, 1, 28, 28), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()

    with serving(package, {"/images.bin": images.tobytes()}) as server:
        log = tmp_path / "log"
        result = visit(server, f"test/demo.html?strokes={quote(json.dumps(STROKES[digit]))}", tmp_path / "profile", log=log)
        asked = {path.split("?")[0] for path in server.asked}
    assert not result.startswith("failed"), result
    found = json.loads(result)
    np.testing.assert_allclose(found["found"], expected, rtol=1e-4, atol=1e-4)
    assert found["digit"] == digit
    assert found["cleared"] == ""
    assert found["scrollWidth"] <= 360
    said = [line for line in log.read_text(errors="replace").splitlines() if "CONSOLE" in line]
    assert ["the harness speaks" in line for line in said] == [True], said
    page = {f"/demo/{name}" for name in ("index.html", "demo.css", "demo.js", "network.js", "digits.opq")}
    assert asked == {*page, "/onnx.js", "/opq.js", "/opq.wasm", "/test/demo.html", "/images.bin"}


def test_the_network_is_small():
    """The network of the demo takes less than 10 kB."""
    assert 0 < (DEMO / "digits.opq").stat().st_size < 10_000
