"""The HTML page that `opq report` writes."""

import html
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import safetensors.numpy
from headless import chromium, serving, show

import opq
from opq.cli.main import main
from opq.natural_order import natural_key

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


class Page(HTMLParser):
    """What a page has: elements, ids, references, texts of table cells."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.references, self.cells, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.references += [attributes[name] for name in ("src", "href", "xlink:href", "action") if name in attributes]

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass


@pytest.fixture(scope="module")
def file(read_only_network, tmp_path_factory):
    """The path of a compressed network, in a folder with the dense one and a training."""
    path = tmp_path_factory.mktemp("file") / "network.opq"
    opq.compress(read_only_network, ratio=8).save(path)
    safetensors.numpy.save_file(read_only_network, path.with_name("dense.safetensors"))
    rows = [{"epoch": n, "loss": 1.0 / (n + 1), "seconds": 2.0, "accuracy": 90.0 + n} for n in range(4)]
    path.with_name("run").mkdir()
    (path.with_name("run") / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def text(file):
    """The page of the network, with all that a page may have."""
    dense, run = file.with_name("dense.safetensors"), file.with_name("run")
    return opq.report(file, dense=dense, run=run, curve=True).html


def test_numbers_are_those_of_the_file(file, network, text):
    """Bytes, zeros, ratio, errors and epochs are those that inspect, compare and the history give."""
    page, found, compared = Page(text), opq.inspect(file), opq.compare(file)
    assert html.escape(found.summary()) in text
    assert f"{found.file_ratio:.1f}x" in text
    for kind, size in found.bytes_by_kind.items():
        assert not size or (kind in page.cells and f"{size:,}" in page.cells)
    for tensor in found.tensors:
        assert tensor.name in page.cells
        assert tensor.kind == "auxiliary" or f"{tensor.bytes:,}" in page.cells
    for size in (compared.opq_bytes, *(size for size in (*compared.dense.values(), *compared.codes.values()) if size)):
        assert f"{size:,}" in page.cells
    assert {"0.25", "93"} <= set(page.cells)  # of the last epoch
    largest = max((t for t in found.tensors if t.kind == "weight"), key=lambda t: np.prod(t.shape)).name
    dense = network[largest].astype(np.float64)
    error = np.sum((opq.numpy.load_file(file)[largest] - dense) ** 2) / np.sum(dense**2)
    assert f"{100.0 * error:.3g}%" in page.cells


def test_the_page_needs_nothing_else(text):
    """No script, and nothing is fetched: every reference is to the page itself; ids are unique; policy forbids the rest."""
    page = Page(text)
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "iframe", "object", "img"} & {tag for tag, _ in page.elements}
    policies = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_every_picture_has_a_text_and_a_table(text):
    """Each picture is labelled, and has a table behind it."""
    page = Page(text)
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 6
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in pictures)
    assert sum(tag == "table" for tag, _ in page.elements) == len(pictures) + 1


def test_names_are_text(tmp_path):
    """Names with markup, formulas and control characters are shown, not obeyed."""
    names = ["<script>alert(1)</script>.weight", "a$x^2$&amp;.weight", 'q"uote\u202e.weight']
    state = {name: np.random.default_rng(0).laplace(size=(40, 50)).astype(np.float32) for name in names}
    opq.compress(state, ratio=6).save(tmp_path / "<b>.opq")
    text = opq.report(tmp_path / "<b>.opq").html
    assert "<script" not in text
    assert set(names) <= set(Page(text).cells)
    assert "&lt;b&gt;.opq" in text


def test_large_networks_have_small_pages(tmp_path):
    """Five hundred layers make a page of less than half a megabyte."""
    random = np.random.default_rng(0)
    state = {f"blocks.{n}.mlp.weight": random.laplace(size=(8, 8)).astype(np.float32) for n in range(500)}
    opq.compress(state, sparsity=0.5, bits=3).save(tmp_path / "n.opq")
    text = opq.report(tmp_path / "n.opq").html
    assert len(text.encode()) < 500_000
    assert "without 100 others" in text


@pytest.mark.parametrize("lossless", [True, False])
def test_networks_of_every_kind_have_a_report(tmp_path, lossless):
    """Weights with levels, scales, and files without weights have reports."""
    random = np.random.default_rng(0)
    levels = np.array([-1.5, 0.0, 0.25, 2.0], np.float32)
    state = {"table": levels[random.integers(0, 4, (60, 40))], "bias": random.normal(size=60).astype(np.float32)}
    if not lossless:
        state["embed.weight"] = random.laplace(size=(200, 40)).astype(np.float32)
    options = {"lossless": True} if lossless else {"ratio": 5, "scales": "rows"}
    opq.compress(state, **options).save(tmp_path / "n.opq")
    assert "<svg" in opq.report(tmp_path / "n.opq", dense=state).html
    opq.compress({"bias": state["bias"]}, lossless=True).save(tmp_path / "bias.opq")
    assert "<svg" in opq.report(tmp_path / "bias.opq").html


def test_the_command(file, text, network, tmp_path, capsys):
    """`opq report` writes the page of `opq.report`; mistakes end in one line and write nothing."""
    dense, run = file.with_name("dense.safetensors"), file.with_name("run")
    page = tmp_path / "report.html"
    arguments = ["report", str(file), "-o", str(page)]
    assert main([*arguments, "--dense", str(dense), "--run", str(run), "--curve"]) == 0
    assert "report.html: " in capsys.readouterr().out
    assert page.read_text() == text
    mistakes = [
        (arguments, "use --force"),
        ([*arguments, "--force", "--curve"], "give it as dense (--dense)"),
        ([*arguments, "--force", "--run", str(tmp_path / "none")], "it has no history of a training"),
        (["report", str(file), "-o", str(file), "--force"], "it is the source that is being read"),
        ([*arguments[:1], str(dense), *arguments[2:], "--force"], "expected b'OPQ'"),
    ]
    before = page.read_bytes()
    for given, message in mistakes:
        assert main(given) == 1
        assert message in capsys.readouterr().err
    assert page.read_bytes() == before
    safetensors.numpy.save_file({"other": network["fc.weight"]}, tmp_path / "other.safetensors")
    assert main([*arguments, "--force", "--dense", str(tmp_path / "other.safetensors")]) == 1
    assert "the dense checkpoint has no tensor" in capsys.readouterr().err


def test_natural_order():
    """Numbers in names are ordered by value."""
    names = ["layer.10.a", "layer.2.b", "layer.2.a", "conv", "10", "9", "", "layer"]
    assert sorted(names, key=natural_key) == ["", "9", "10", "conv", "layer", "layer.2.a", "layer.2.b", "layer.10.a"]


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="needs chromium")
def test_a_browser_shows_it(text, tmp_path):
    """Chromium shows the page and asks for nothing else; with pictures from elsewhere and no policy it would."""
    policy = re.search(r"<meta http-equiv[^>]*>", text)[0]
    pictures = '<img src="/other.png" alt=""><img src="http://elsewhere.example/far.png" alt="">'
    other = text.replace(policy, "").replace("<main>", f"<main>{pictures}")
    with serving(tmp_path, {"/report.html": text.encode(), "/other.html": other.encode()}) as server:
        assert show(server, "report.html", tmp_path / "profile").count("<svg") == 6
        assert [path for path in server.asked if not path.startswith("/time/")] == [
            "/report.html"
        ]  # Chromium asks for the time
        show(server, "other.html", tmp_path / "profile")
        assert {"/other.html", "/other.png", "/far.png"} <= set(server.asked)


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_an_error_that_names_the_extra(library, network, tmp_path, monkeypatch):
    """Without matplotlib or Jinja a report is an error in one line, with what to install."""
    path = tmp_path / "net.opq"
    opq.save(network, path, ratio=6, progress=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(opq.MissingExtraError, match=r"pip install 'opq\[report\]'"):
        _ = opq.report(path).html
