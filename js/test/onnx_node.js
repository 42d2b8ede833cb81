/** node onnx_node.js VECTORS: prints a line of JSON for each file: its ONNX model in hexadecimal, or the kind and text of the error. */

import { readFileSync } from "node:fs";

import { open } from "../opq.js";

const vectors = readFileSync(process.argv[2]);
for (let at = 0; at < vectors.length; ) {
  const size = vectors.readUInt32LE(at);
  const file = await open(vectors.subarray(at + 4, at + 4 + size));
  at += 4 + size;
  let result;
  try {
    result = { model: Buffer.from(file.toOnnx()).toString("hex") };
  } catch (error) {
    if (!("kind" in error)) throw error;
    result = { kind: error.kind, error: error.message };
  }
  process.stdout.write(JSON.stringify(result) + "\n");
  file.close();
}
