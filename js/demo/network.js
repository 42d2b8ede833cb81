/** The network of train.py, in plain JavaScript: its tensors come from the .opq file, and images are arrays of 28 x 28 numbers. */

import { open } from "../opq.js";

export const SIZE = 28;

/** Fetches and decodes the network. */
export async function loadNetwork(url, onProgress) {
  const file = await open(url, { onProgress });
  const layers = [0, 3, 7].map((number) => ({
    shape: file.tensor(`${number}.weight`).shape,
    weight: file.float32(`${number}.weight`),
    bias: file.float32(`${number}.bias`),
  }));
  const { fileBytes } = file;
  file.close();
  return { layers, fileBytes };
}

/** A 3x3 convolution with a border of zeros, then max(0, x): (inputs, size, size) -> (outputs, size, size). */
function convolve(image, size, { shape, weight, bias }) {
  const [outputs, inputs] = shape;
  const result = new Float32Array(outputs * size * size);
  for (let o = 0; o < outputs; o++) {
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        let sum = bias[o];
        for (let i = 0; i < inputs; i++) {
          for (let dy = Math.max(-1, -y); dy <= Math.min(1, size - 1 - y); dy++) {
            for (let dx = Math.max(-1, -x); dx <= Math.min(1, size - 1 - x); dx++) {
              sum += weight[((o * inputs + i) * 3 + dy + 1) * 3 + dx + 1] * image[(i * size + y + dy) * size + x + dx];
            }
          }
        }
        result[(o * size + y) * size + x] = Math.max(0, sum);
      }
    }
  }
  return result;
}

/** The largest of each 2x2 pixels. */
function pool(image, size) {
  const half = size / 2;
  return Float32Array.from({ length: image.length / 4 }, (_, k) => {
    const at = Math.floor(k / half) * 2 * size + (k % half) * 2;
    return Math.max(image[at], image[at + 1], image[at + size], image[at + size + 1]);
  });
}

/** The ten outputs for an image with values in 0..1. */
export function outputs({ layers }, image) {
  const first = pool(convolve(image, SIZE, layers[0]), SIZE);
  const second = pool(convolve(first, SIZE / 2, layers[1]), SIZE / 2);
  const { weight, bias } = layers[2];
  return Array.from(bias, (start, o) => second.reduce((sum, value, k) => sum + value * weight[o * second.length + k], start));
}

/** Probabilities of outputs. */
export function softmax(values) {
  const largest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}
