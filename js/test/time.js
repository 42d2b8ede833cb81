/** Seconds that decoding a file to float32 takes, from its bytes in memory. */

import { open } from "../opq.js";

export async function secondsOf(bytes) {
  const start = performance.now();
  const file = await open(bytes);
  for (const name of file.names) {
    if (file.tensor(name).dtype.startsWith("float")) file.float32(name);
    else file.read(name);
  }
  file.close();
  return (performance.now() - start) / 1000;
}

/** {path: seconds} of files that `read` gives, the second time that each is decoded. */
export async function secondsOfAll(paths, read) {
  const seconds = {};
  for (const path of paths) {
    const bytes = await read(path);
    await secondsOf(bytes);
    seconds[path] = await secondsOf(bytes);
  }
  return seconds;
}
