/** node dump_node.js VECTORS: prints what the reader gives for each file. */

import { readFileSync } from "node:fs";

import { dumpAll } from "./dump.js";

process.stdout.write(await dumpAll(readFileSync(process.argv[2])));
