/**
 * What tests/readers/vectors.py expects of every reader: an object for each file, with text and data in hexadecimal, or the CRC-32
 * of long data.
 */

import { open } from "../opq.js";

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

function hex(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (const byte of bytes) text += HEX[byte];
  return text;
}

const LONG = 1 << 16;

const REMAINDERS = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

function crc32(array) {
  let crc = ~0;
  for (const byte of new Uint8Array(array.buffer, array.byteOffset, array.byteLength))
    crc = REMAINDERS[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

const hexOfText = (text) => hex(new TextEncoder().encode(text));

/** Data as hexadecimal, or {crc32}; {error}; or null if there is no such conversion. */
function attempt(read) {
  try {
    const array = read();
    return array.byteLength > LONG ? { crc32: crc32(array) } : hex(array);
  } catch (error) {
    if (!("kind" in error)) throw error;
    return error.kind === "misuse" ? null : { error: hexOfText(error.message) };
  }
}

async function dump(bytes) {
  let file;
  try {
    file = await open(bytes);
  } catch (error) {
    if (!("kind" in error)) throw error;
    return { error: hexOfText(error.message) };
  }
  const metadata = [...file.metadata].map(([key, value]) => ({ key: hexOfText(key), value: hexOfText(value) }));
  const tensors = file.names.map((name) => {
    const { dtype, shape, step } = file.tensor(name);
    return {
      name: hexOfText(name),
      dtype,
      step: step === null ? 0 : Number(step.toPrecision(9)),
      shape,
      bytes: attempt(() => file.read(name)),
      float32: attempt(() => file.float32(name)),
      codes: attempt(() => Int32Array.from(file.codes(name))),
    };
  });
  file.close();
  return { metadata, tensors };
}

/** Lines of JSON for files, each after its size in four bytes. */
export async function dumpAll(vectors) {
  const lines = [];
  for (let at = 0; at < vectors.length; ) {
    const size = new DataView(vectors.buffer, vectors.byteOffset + at).getUint32(0, true);
    lines.push(JSON.stringify(await dump(vectors.slice(at + 4, at + 4 + size))));
    at += 4 + size;
  }
  return lines.join("\n") + "\n";
}
