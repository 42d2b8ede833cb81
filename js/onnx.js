/** The ONNX model of a file that was made from one: docs/format.md, "Graphs of ONNX models". Nothing here runs a graph.
 *
 * A model is a message of protocol buffers: fields of a number, a wire type and a content, which may be a message. Fields that stay
 * as they are keep their bytes, so the result has those that onnx writes. */

export const GRAPH = "__onnx_graph__";

const VARINT = 0, FIXED64 = 1, BYTES = 2, GROUP = 3, END_OF_GROUP = 4, FIXED32 = 5; // wire types
const MODEL = { graph: 7, functions: 25 };
const NODES = { graph: 1, function: 7 };
const INITIALIZER = 5;
const NODE = { output: 2, operator: 4, attribute: 5 };
const ATTRIBUTE = { name: 1, tensor: 5, graph: 6, graphs: 11 };
const TENSOR = { dims: 1, type: 2, raw: 9, external: 13, location: 14 };
const ENTRY = { key: 1, value: 2 }; // of TENSOR.external
const EXTERNAL = 1; // of TENSOR.location

/** {number of a type in ONNX: [name, bytes of an element]} of those that files have. */
const TYPES = {
  1: ["float32", 4], 2: ["uint8", 1], 3: ["int8", 1], 4: ["uint16", 2], 5: ["int16", 2], 6: ["int32", 4], 7: ["int64", 8],
  9: ["bool", 1], 10: ["float16", 2], 11: ["float64", 8], 12: ["uint32", 4], 13: ["uint64", 8], 14: ["complex64", 8],
  15: ["complex128", 16], 16: ["bfloat16", 2], 17: ["float8_e4m3fn", 1], 18: ["float8_e4m3fnuz", 1], 19: ["float8_e5m2", 1],
  20: ["float8_e5m2fnuz", 1], 24: ["float8_e8m0fnu", 1],
};

const LARGEST_COUNT = 2 ** 18; // nodes and attributes
const DEEPEST = 100; // messages in messages
const LARGEST_MODEL = 2 ** 31 - 1; // bytes that protocol buffers can have

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** What is wrong with a graph. */
export class GraphError extends Error {}

/** Reads the fields of a message. Numbers above 2^53 are rounded: they are only compared with smaller ones. */
class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  varint() {
    for (let value = 0, scale = 1, length = 0; length < 10 && this.at < this.bytes.length; scale *= 128, length++) {
      const byte = this.bytes[this.at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw new GraphError("not an ONNX model, or a damaged one");
  }

  take(length) {
    if (length > this.bytes.length - this.at) throw new GraphError("not an ONNX model, or a damaged one");
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  /** The next field: where it starts and ends, its number, and its content as a number or bytes. */
  field(depth = 0) {
    const start = this.at;
    const key = this.varint();
    const number = Math.floor(key / 8), wire = key % 8;
    if (number < 1 || number >= 2 ** 29 || depth > DEEPEST) throw new GraphError("not an ONNX model, or a damaged one");
    let content;
    if (wire === VARINT) content = this.varint();
    else if (wire === FIXED64) content = this.take(8);
    else if (wire === FIXED32) content = this.take(4);
    else if (wire === BYTES) content = this.take(this.varint());
    else if (wire === GROUP) {
      let inner;
      do inner = this.field(depth + 1);
      while (inner.wire !== END_OF_GROUP);
      if (inner.number !== number) throw new GraphError("not an ONNX model, or a damaged one");
    } else if (wire !== END_OF_GROUP || depth === 0) throw new GraphError("not an ONNX model, or a damaged one");
    return { number, wire, content, start, end: this.at };
  }
}

function* fieldsOf(message) {
  for (const reader = new Reader(message); reader.at < message.length; ) yield reader.field();
}

/** The contents of the fields of a number and a wire type. */
function contentsOf(message, number, wire) {
  const found = [];
  for (const field of fieldsOf(message)) if (field.number === number && field.wire === wire) found.push(field.content);
  return found;
}

/** A field that occurs once. As in protocol buffers, the last counts. */
function contentOf(message, number, wire) {
  return contentsOf(message, number, wire).at(-1);
}

function textOf(message, number) {
  return utf8.decode(contentOf(message, number, BYTES) ?? new Uint8Array());
}

function varintBytes(value) {
  const bytes = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Uint8Array.of(...bytes, value);
}

/** Bytes in parts: each a Uint8Array, other Parts, or a tensor whose data are decoded when they are written. */
class Parts {
  parts = [];
  size = 0;

  push(part) {
    this.parts.push(part);
    this.size += part.size ?? part.length;
  }

  pushField(number, content) {
    this.push(varintBytes(number * 8 + BYTES));
    this.push(varintBytes(content.size));
    this.push(content);
  }

  write(output, at, file) {
    for (const part of this.parts) {
      if (part instanceof Parts) part.write(output, at, file);
      else output.set(part instanceof Uint8Array ? part : dataOf(file, part), at);
      at += part.size ?? part.length;
    }
  }
}

/** A message with the contents of some fields changed; null if none changes.
 *
 * @param rules {number: content => Parts, or null to keep it}. */
function rewritten(message, rules) {
  const result = new Parts();
  let kept = 0;
  for (const { number, wire, content, start, end } of fieldsOf(message)) {
    const changed = wire === BYTES ? rules[number]?.(content) : null;
    if (!changed) continue;
    result.push(message.subarray(kept, start));
    result.pushField(number, changed);
    kept = end;
  }
  if (!result.size) return null;
  result.push(message.subarray(kept));
  return result;
}

/** Puts the tensors of a file into its graph. */
class Model {
  #file;
  #names;
  #used = new Set();
  #count = 0;

  constructor(file) {
    this.#file = file;
    this.#names = new Set(file.names);
  }

  model(message) {
    if (!contentsOf(message, MODEL.graph, BYTES).length) throw new GraphError("an ONNX model without a graph");
    const rules = { [MODEL.graph]: (graph) => this.#graph(graph, 1), [MODEL.functions]: (body) => this.#function(body) };
    return rewritten(message, rules) ?? message;
  }

  #graph(message, depth) {
    if (depth > DEEPEST) throw new GraphError("not an ONNX model, or a damaged one");
    const node = (content) => this.#node(content, depth + 1);
    return rewritten(message, { [NODES.graph]: node, [INITIALIZER]: (tensor) => this.#tensor(tensor) });
  }

  #function(message) {
    return rewritten(message, { [NODES.function]: (node) => this.#node(node, 2) });
  }

  #node(message, depth) {
    this.#count += 1 + contentsOf(message, NODE.attribute, BYTES).length;
    if (this.#count > LARGEST_COUNT) throw new GraphError("it has more than 262,144 nodes and attributes");
    const isConstant = textOf(message, NODE.operator) === "Constant" && contentsOf(message, NODE.output, BYTES).length > 0;
    return rewritten(message, { [NODE.attribute]: (attribute) => this.#attribute(attribute, isConstant, depth + 1) });
  }

  #attribute(message, isConstant, depth) {
    const graph = (content) => this.#graph(content, depth + 1);
    const rules = { [ATTRIBUTE.graph]: graph, [ATTRIBUTE.graphs]: graph };
    if (isConstant && textOf(message, ATTRIBUTE.name) === "value") rules[ATTRIBUTE.tensor] = (tensor) => this.#tensor(tensor);
    return rewritten(message, rules);
  }

  /** A TensorProto with its data in place of the reference to them. */
  #tensor(message) {
    if (contentOf(message, TENSOR.location, VARINT) !== EXTERNAL) return null;
    const data = this.#data(message);
    const result = new Parts();
    let isPut = false;
    const put = () => {
      if (!isPut) result.pushField(TENSOR.raw, data);
      isPut = true;
    };
    for (const { number, start, end } of fieldsOf(message)) {
      if (number > TENSOR.raw) put();
      if (![TENSOR.raw, TENSOR.external, TENSOR.location].includes(number)) result.push(message.subarray(start, end));
    }
    put();
    return result;
  }

  /** The data that a TensorProto refers to, of its type and dimensions. */
  #data(message) {
    const entries = contentsOf(message, TENSOR.external, BYTES);
    const keys = new Map(entries.map((entry) => [textOf(entry, ENTRY.key), textOf(entry, ENTRY.value)]));
    const name = keys.get("location") ?? "";
    const quoted = JSON.stringify(name.slice(0, 80));
    if (this.#used.has(name)) throw new GraphError(`it refers twice to the tensor ${quoted}`);
    if (!this.#names.has(name)) throw new GraphError(`it refers to a tensor ${quoted}, which the file does not have`);
    this.#used.add(name);
    const { dtype, shape, count } = this.#file.tensor(name);
    const dims = dimensions(message);
    const number = contentOf(message, TENSOR.type, VARINT) ?? 0;
    const [expected, itemSize] = TYPES[number] ?? [`number ${number}`, 0];
    const transposed = keys.has("transposed");
    const merged = dims.length === 3 ? [dims[0] * dims[1], dims[2]] : dims;
    const allowed = !transposed ? [dims, merged] : dims.length === 2 ? [[...dims].reverse()] : [];
    if (dtype !== expected || !allowed.some((sizes) => String(sizes) === String(shape))) {
      const sizes = [shape, dims].map((list) => `(${list.slice(0, 32).join(", ")})`);
      throw new GraphError(`tensor ${quoted} is ${dtype} ${sizes[0]}, but the graph has ${expected} ${sizes[1]}`);
    }
    return { name, itemSize, rows: transposed ? shape[0] : 1, size: count * itemSize };
  }
}

/** The dimensions of a TensorProto, each a field, or several in one. */
function dimensions(message) {
  const dims = [];
  for (const { number, wire, content } of fieldsOf(message)) {
    if (number !== TENSOR.dims) continue;
    if (wire === VARINT) dims.push(content);
    if (wire === BYTES) for (const reader = new Reader(content); reader.at < content.length; ) dims.push(reader.varint());
  }
  return dims;
}

/** The bytes of a tensor, transposed from `rows` rows to as many columns. */
function dataOf(file, { name, itemSize, rows }) {
  const { buffer } = file.read(name);
  if (rows === 1) return new Uint8Array(buffer);
  const Words = itemSize % 4 === 0 ? Uint32Array : itemSize === 2 ? Uint16Array : Uint8Array;
  const from = new Words(buffer), to = new Words(from.length), width = itemSize / Words.BYTES_PER_ELEMENT;
  const columns = from.length / width / rows;
  for (let row = 0, at = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      for (let word = 0; word < width; word++) to[(column * rows + row) * width + word] = from[at++];
    }
  }
  return new Uint8Array(to.buffer);
}

/** The bytes of the model; null if it has too many for a file of ONNX.
 *
 * @throws GraphError if the graph is damaged, or does not fit to the tensors of the file. */
export function onnxModel(file, graph) {
  const whole = new Parts();
  whole.push(new Model(file).model(graph));
  if (whole.size > LARGEST_MODEL) return null;
  const output = new Uint8Array(whole.size);
  whole.write(output, 0, file);
  return output;
}
