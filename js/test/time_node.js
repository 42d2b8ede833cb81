/** node time_node.js FILE...: seconds of decoding each file, and of inflating each that ends with .br. */

import { readFile } from "node:fs/promises";
import { brotliDecompressSync } from "node:zlib";

import { secondsOfAll } from "./time.js";

const paths = process.argv.slice(2);
const seconds = await secondsOfAll(paths.filter((path) => path.endsWith(".opq")), readFile);
for (const path of paths.filter((path) => path.endsWith(".br"))) {
  const bytes = await readFile(path);
  brotliDecompressSync(bytes);
  const start = performance.now();
  brotliDecompressSync(bytes);
  seconds[path] = (performance.now() - start) / 1000;
}
console.log(JSON.stringify(seconds));
