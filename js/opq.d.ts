/** Why a call failed: the bytes are not a valid .opq file, memory is exhausted, or there is no such tensor or conversion. */
export type ErrorKind = "invalid" | "memory" | "misuse";

export class OpqError extends Error {
  readonly kind: ErrorKind;
}

export type DType =
  | "bool" | "uint8" | "int8" | "uint16" | "int16" | "uint32" | "int32" | "uint64" | "int64"
  | "float16" | "bfloat16" | "float32" | "float64"
  | "float8_e4m3fn" | "float8_e5m2" | "float8_e8m0fnu" | "float8_e4m3fnuz" | "float8_e5m2fnuz"
  | "float4_e2m1fn" | "float6_e2m3fn" | "float6_e3m2fn" | "complex64" | "complex128";

export type Storage = "exact" | "float16" | "codes" | "levels" | "linear8" | "relative8" | "scaled";

/** Elements in their own dtype, row-major. float16, bfloat16, float8, float6 and float4 are given as their bits; a complex number as
 * its real and its imaginary part. */
export type Elements =
  | Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array | BigUint64Array | BigInt64Array
  | Float32Array | Float64Array;

export interface Tensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Number of elements. */
  readonly count: number;
  /** How the file holds it. Those of codes, scaled and levels are weights. */
  readonly storage: Storage;
  /** The value of code 1 with "codes", and with "scaled" where scales are 0; null for other storages. */
  readonly step: number | null;
}

/** An open file. Each read decodes one tensor to an array of its own. */
export class OpqFile {
  /** Names in ascending order of their UTF-8 bytes. */
  readonly names: readonly string[];
  readonly metadata: ReadonlyMap<string, string>;
  /** Size of the file in bytes. */
  readonly fileBytes: number;
  tensor(name: string): Tensor;
  /** Values in the tensor's own dtype. */
  read(name: string): Elements;
  /** Values as float32, of all real dtypes up to float64. */
  float32(name: string): Float32Array;
  /** Integer codes of a weight, in the smallest of these types that holds them. */
  codes(name: string): Int8Array | Int16Array | Int32Array;
  /** The ONNX model that the file was made from, with the values of the file: what `opq expand` writes, for `InferenceSession.create`
   * of onnxruntime-web.
   * @throws OpqError: "misuse" if the file has no graph or the model takes 2 GiB; "invalid" if the graph does not fit the tensors. */
  toOnnx(): Uint8Array;
  /** Frees the memory. Later calls fail. */
  close(): void;
}

export interface Options {
  /** Largest allowed sum of the tensors' sizes in bytes; by default 64 MiB plus 4096 times the file's size. */
  maxBytes?: number;
  /** Called while a URL is fetched; total is null if the server does not say it. */
  onProgress?: (progress: { loaded: number; total: number | null }) => void;
  /** Aborts the download. */
  signal?: AbortSignal;
  /** Where the WebAssembly module is, if it is not beside opq.js: its URL, its bytes or the compiled module. */
  wasm?: string | URL | BufferSource | WebAssembly.Module;
}

/** Opens a file: its bytes, or the URL that they are fetched from.
 * @throws OpqError if it is not a valid .opq file or cannot be fetched. */
export function open(source: string | URL | ArrayBuffer | ArrayBufferView, options?: Options): Promise<OpqFile>;
