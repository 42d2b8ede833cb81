/** node run_node.js FILE SHAPE: the output of the network in a .opq file for an input of ones, as JSON; onnxruntime-web runs it. */

import { readFileSync } from "node:fs";

import * as ort from "onnxruntime-web";

import { open } from "../opq.js";

const [path, shape] = [process.argv[2], JSON.parse(process.argv[3])];
const file = await open(readFileSync(path));
const session = await ort.InferenceSession.create(file.toOnnx());
const ones = new Float32Array(shape.reduce((count, size) => count * size, 1)).fill(1);
const results = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", ones, shape) });
console.log(JSON.stringify([...results[session.outputNames[0]].data]));
