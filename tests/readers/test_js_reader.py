"""The reader for JavaScript, js/opq.js: it reads and refuses the files that the Python reader does, in Node and in Chromium."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from headless import chromium, serving, visit
from thoroughness import some
from vectors import JS, all_differences, run_reader, vectors

import opq
import opq.numpy

pytestmark = pytest.mark.slow  # a compiler takes seconds


def run_script(node: str, package: Path, script: str) -> object:
    """What a module prints as JSON; it may import ./opq.js."""
    path = package / "script.mjs"
    path.write_text(script)
    done = subprocess.run([node, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_node_reads_and_refuses_what_python_does(node, package, tmp_path):
    """Every file gives the same names, dtypes, shapes, values and codes as in Python, or is refused for the same part."""
    files = vectors(changed=some(30, 100), corpus=4)  # the C reader, which is the same code, reads all
    found = run_reader([node, package / "test" / "dump_node.js"], files, tmp_path)
    assert not (wrong := all_differences(files, found)), wrong


def test_chromium_reads_and_refuses_what_python_does(package, tmp_path):
    """The same in a browser."""
    if chromium() is None:
        pytest.skip("chromium is not here")
    files = vectors(changed=some(30, 100), corpus=4)  # the C reader, which is the same code, reads all
    data = b"".join(len(data).to_bytes(4, "little") + data for data in files.values())
    with serving(package, {"/vectors.bin": data}) as server:
        result = visit(server, "test/dump.html", tmp_path / "profile")
    assert not result.startswith("failed"), result
    found = [json.loads(line) for line in result.splitlines()]
    assert not (wrong := all_differences(files, found)), wrong


def test_urls_are_fetched_with_progress(node, package, network):
    """A URL is fetched; progress ends with all bytes; codes come in the smallest type that holds them."""
    data = opq.compress(network, ratio=6).data
    with serving(package, {"/model.opq": data}) as server:
        script = f"""
            import {{ open }} from "./opq.js";
            const seen = [];
            const file = await open("{server.url}/model.opq", {{ onProgress: (progress) => seen.push(progress) }});
            const codes = file.codes("layer1.conv.weight");
            console.log(JSON.stringify({{
              names: file.names, last: seen.at(-1), bytes: file.fileBytes, kind: codes.constructor.name,
              step: file.tensor("layer1.conv.weight").step, codes: [...codes], values: [...file.float32("layer1.conv.weight")],
            }}));
        """
        found = run_script(node, package, script)
    arrays = opq.numpy.load(data)
    assert found["names"] == list(arrays)
    assert found["last"] == {"loaded": len(data), "total": len(data)}
    assert found["bytes"] == len(data)
    assert found["kind"] == "Int8Array"
    assert found["values"] == arrays["layer1.conv.weight"].reshape(-1).tolist()
    assert [found["step"] * code for code in found["codes"]] == pytest.approx(found["values"], rel=1e-6)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ("open(new Uint8Array(20))", "invalid", "not a valid .opq file: start: expected OPQ"),
        (
            "open(data, {maxBytes: 10})",
            "invalid",
            "not a valid .opq file: header: the tensors have too many bytes; see max_bytes",
        ),
        ("open(data, {maxBytes: 'x'})", "misuse", "maxBytes must be a number of bytes, at least 1, got x"),
        ("(await open(data)).read('none')", "misuse", 'the file has no tensor "none"'),
        ("(await open(data)).codes('fc.bias')", "misuse", "the tensor has no codes"),
        ("(() => {file.close(); return file.read('fc.bias')})()", "misuse", "the file is closed"),
    ],
)
def test_errors_have_a_kind_and_one_line(node, package, network, call, kind, message):
    """A refused file, a tensor that is not there and a closed file are an OpqError that says so."""
    (package / "model.opq").write_bytes(opq.compress(network, ratio=6).data)
    script = f"""
        import {{ readFileSync }} from "node:fs";
        import {{ open, OpqError }} from "./opq.js";
        const data = readFileSync(new URL("model.opq", import.meta.url)), file = await open(data);
        try {{ await {call}; console.log("null"); }}
        catch (error) {{ console.log(JSON.stringify([error instanceof OpqError, error.kind, error.message])); }}
    """
    assert run_script(node, package, script) == [True, kind, message]


def test_types_name_what_the_package_exports(node, package):
    """opq.d.ts declares each export of opq.js, and package.json has the version of opq."""
    exported = run_script(node, package, 'import * as opq from "./opq.js"; console.log(JSON.stringify(Object.keys(opq)));')
    declared = (JS / "opq.d.ts").read_text()
    assert exported == ["OpqError", "open"]
    assert "export class OpqError" in declared
    assert "export function open(" in declared
