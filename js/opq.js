/** Reads .opq files with the C reader, compiled to WebAssembly. opq.d.ts documents what is exported. */

import { GRAPH, GraphError, onnxModel } from "./onnx.js";

const KINDS = [, "invalid", "memory", "misuse"];
const STORAGES = ["exact", "float16", "codes", "levels", "linear8", "relative8", "scaled"];
const ARRAYS = {
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  uint64: BigUint64Array,
  int64: BigInt64Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  float32: Float32Array,
  float64: Float64Array,
  complex64: Float32Array,
  complex128: Float64Array,
}; // of all others Uint8Array

const text = new TextDecoder("utf-8", { ignoreBOM: true });

export class OpqError extends Error {
  constructor(kind, message) {
    super(message);
    this.name = "OpqError";
    this.kind = kind;
  }
}

/** An instance of the module, whose memory is that of one file. It grows, so views are made anew for each use. */
class Reader {
  constructor(exports) {
    this.calls = exports;
  }

  bytes(at, length) {
    return new Uint8Array(this.calls.memory.buffer, at, length);
  }

  text(at, length) {
    return text.decode(this.bytes(at, length));
  }

  textToZero(at) {
    const whole = new Uint8Array(this.calls.memory.buffer, at);
    return text.decode(whole.subarray(0, whole.indexOf(0)));
  }

  words(at, count) {
    return new Uint32Array(this.calls.memory.buffer, at, count);
  }

  error() {
    return new OpqError(KINDS[this.calls.error_status()], this.textToZero(this.calls.error_message() >>> 0));
  }

  allocate(size) {
    const at = this.calls.opq_malloc(size) >>> 0;
    if (!at) throw new OpqError("memory", `memory is exhausted: ${size} more bytes are needed`);
    return at;
  }
}

class OpqFile {
  #reader;
  #file;
  #data;
  #numbers = new Map();

  constructor(reader, file, data, fileBytes) {
    this.#reader = reader;
    this.#file = file;
    this.#data = data;
    this.fileBytes = fileBytes;
    const { calls } = reader;
    for (let k = 0; k < calls.count(file); k++) {
      this.#numbers.set(reader.text(calls.name(file, k) >>> 0, calls.name_length(file, k)), k);
    }
    this.names = Object.freeze([...this.#numbers.keys()]);
    this.metadata = new Map();
    for (let k = 0; k < calls.metadata_count(file); k++) {
      const [key, keyLength, value, valueLength] = reader.words(calls.metadata(file, k) >>> 0, 4);
      this.metadata.set(reader.text(key, keyLength), reader.text(value, valueLength));
    }
  }

  #number(name) {
    if (!this.#reader) throw new OpqError("misuse", "the file is closed");
    const number = this.#numbers.get(name);
    if (number === undefined) throw new OpqError("misuse", `the file has no tensor ${JSON.stringify(name)}`);
    return number;
  }

  tensor(name) {
    const number = this.#number(name);
    const { calls } = this.#reader;
    const storage = STORAGES[calls.storage(this.#file, number)];
    const shape = [...this.#reader.words(calls.shape(this.#file, number) >>> 0, calls.rank(this.#file, number))];
    return {
      name,
      dtype: this.#reader.textToZero(calls.dtype_name(calls.dtype(this.#file, number)) >>> 0),
      shape,
      count: calls.elements(this.#file, number) >>> 0,
      storage,
      step: storage === "codes" || storage === "scaled" ? calls.step(this.#file, number) : null,
    };
  }

  /** A copy of what `call` writes to `count` items of `size` bytes. */
  #decode(call, number, count, size, ArrayType) {
    const reader = this.#reader;
    const at = reader.allocate(count * size);
    try {
      if (reader.calls[call](this.#file, number, at, count)) throw reader.error();
      return new ArrayType(reader.calls.memory.buffer.slice(at, at + count * size));
    } finally {
      reader.calls.opq_free(at);
    }
  }

  read(name) {
    const number = this.#number(name);
    const size = this.#reader.calls.bytes(this.#file, number);
    return this.#decode("read", number, size, 1, ARRAYS[this.tensor(name).dtype] ?? Uint8Array);
  }

  float32(name) {
    const number = this.#number(name);
    return this.#decode("read_float32", number, this.tensor(name).count, 4, Float32Array);
  }

  codes(name) {
    const number = this.#number(name);
    const codes = this.#decode("read_codes", number, this.tensor(name).count, 4, Int32Array);
    let outside = 0; // bits of a code, or of its complement if it is negative
    for (const code of codes) outside |= code ^ (code >> 31);
    return outside < 2 ** 7 ? Int8Array.from(codes) : outside < 2 ** 15 ? Int16Array.from(codes) : codes;
  }

  /** The graph of an ONNX model. */
  #graph() {
    const packed = new Uint8Array(this.read(GRAPH).buffer);
    const { calls } = this.#reader;
    const from = this.#reader.allocate(packed.length);
    this.#reader.bytes(from, packed.length).set(packed);
    const at = calls.inflate_graph(from, packed.length) >>> 0;
    calls.opq_free(from);
    if (!at) throw this.#reader.error();
    const graph = this.#reader.bytes(at, calls.inflated_size()).slice();
    calls.opq_free(at);
    return graph;
  }

  toOnnx() {
    if (this.#reader && !this.#numbers.has(GRAPH)) {
      throw new OpqError("misuse", "the file holds no ONNX graph, because it was not made from an ONNX model");
    }
    try {
      const model = onnxModel(this, this.#graph());
      if (!model) throw new OpqError("misuse", "the model takes 2 GiB or more, which one ONNX file cannot hold; use opq expand");
      return model;
    } catch (error) {
      if (!(error instanceof GraphError)) throw error;
      throw new OpqError("invalid", `not a valid .opq file: the ONNX graph: ${error.message}`);
    }
  }

  close() {
    if (!this.#reader) return;
    this.#reader.calls.close(this.#file);
    this.#reader.calls.opq_free(this.#data);
    this.#reader = undefined;
  }
}

let ownModule;

async function compile(wasm) {
  if (wasm instanceof WebAssembly.Module) return wasm;
  if (wasm instanceof ArrayBuffer || ArrayBuffer.isView(wasm)) return WebAssembly.compile(wasm);
  return WebAssembly.compile(joined((await download(new URL(wasm, import.meta.url))).parts));
}

/** The module beside this file, compiled once; after a failure it is tried again. */
function compileOwn() {
  ownModule ??= compile("opq.wasm").catch((error) => {
    ownModule = undefined;
    throw error;
  });
  return ownModule;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

/** The bytes of a URL, in parts. */
async function download(url, { onProgress, signal } = {}) {
  if (url instanceof URL && url.protocol === "file:" && typeof process !== "undefined") {
    const { readFile } = await import("node:fs/promises");
    return { parts: [await readFile(url, { signal })] };
  }
  const response = await fetch(url, { signal });
  if (!response.ok) throw new OpqError("misuse", `${url}: the server answered ${response.status} ${response.statusText}`.trim());
  const length = response.headers.get("content-length");
  const total = length === null || response.headers.get("content-encoding") ? null : Number(length);
  const parts = [];
  const body = response.body.getReader();
  for (let loaded = 0; ; ) {
    const { done, value } = await body.read();
    if (done) return { parts };
    parts.push(value);
    loaded += value.length;
    onProgress?.({ loaded, total });
  }
}

async function partsOf(source, options) {
  if (source instanceof ArrayBuffer) return [new Uint8Array(source)];
  if (ArrayBuffer.isView(source)) return [new Uint8Array(source.buffer, source.byteOffset, source.byteLength)];
  return (await download(source, options)).parts;
}

export async function open(source, options = {}) {
  const { maxBytes, wasm } = options;
  if (maxBytes !== undefined && !(maxBytes >= 1 && maxBytes <= Number.MAX_SAFE_INTEGER)) {
    throw new OpqError("misuse", `maxBytes must be a number of bytes, at least 1, got ${maxBytes}`);
  }
  const [parts, module] = await Promise.all([partsOf(source, options), wasm === undefined ? compileOwn() : compile(wasm)]);
  const reader = new Reader((await WebAssembly.instantiate(module)).exports);
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  const data = reader.allocate(size);
  let at = data;
  for (const part of parts) {
    reader.bytes(at, part.length).set(part);
    at += part.length;
  }
  const file = reader.calls.open(data, size, maxBytes ?? 0);
  if (!file) throw reader.error();
  return new OpqFile(reader, file, data, size);
}
