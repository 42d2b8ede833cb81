/** The page: a drawing becomes an image as those of MNIST, and its digit is shown. */

import { SIZE, loadNetwork, outputs, softmax } from "./network.js";

const canvas = document.getElementById("drawing");
const context = canvas.getContext("2d", { willReadFrequently: true });
const status = document.getElementById("status");
const bars = Array.from({ length: 10 }, (_, digit) => {
  const item = document.createElement("li");
  item.innerHTML = `<span>${digit}</span><meter min="0" max="1"></meter><span></span>`;
  document.getElementById("bars").append(item);
  return item;
});
let network;
let last;

function clear() {
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  show(null);
}

/** Probabilities as bars; null for none. */
function show(probabilities) {
  const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  for (const [digit, item] of bars.entries()) {
    const share = probabilities ? probabilities[digit] : 0;
    item.classList.toggle("best", digit === best);
    item.querySelector("meter").value = share;
    item.lastElementChild.textContent = probabilities ? `${Math.round(100 * share)} %` : "";
  }
  document.body.dataset.digit = best < 0 ? "" : best;
}

/** The drawing as MNIST has its digits: in a box of 20 x 20 pixels, whose centre of mass is in the middle of 28 x 28. */
function imageOf() {
  const { width, height } = canvas;
  const { data } = context.getImageData(0, 0, width, height);
  let [left, top, right, bottom, mass, sumX, sumY] = [width, height, -1, -1, 0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = data[4 * (y * width + x)];
      if (!value) continue;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
      mass += value;
      sumX += value * x;
      sumY += value * y;
    }
  }
  if (!mass) return null;
  const scale = 20 / (Math.max(right - left, bottom - top) + 1);
  const small = new OffscreenCanvas(SIZE, SIZE).getContext("2d", { willReadFrequently: true });
  small.imageSmoothingQuality = "high";
  small.drawImage(canvas, SIZE / 2 - (scale * sumX) / mass, SIZE / 2 - (scale * sumY) / mass, scale * width, scale * height);
  const pixels = small.getImageData(0, 0, SIZE, SIZE).data;
  return Float32Array.from({ length: SIZE * SIZE }, (_, k) => (pixels[4 * k] / 255) * (pixels[4 * k + 3] / 255));
}

function recognize() {
  const image = network && imageOf();
  if (image) show(softmax(outputs(network, image)));
}

function position(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
}

function draw(event) {
  const [x, y] = position(event);
  context.strokeStyle = "#fff";
  context.lineWidth = 22;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...last);
  context.lineTo(x, y);
  context.stroke();
  last = [x, y];
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
  last = position(event);
  draw(event);
});
canvas.addEventListener("pointermove", (event) => last && draw(event));
for (const type of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(type, () => {
    last = undefined;
    recognize();
  });
}
document.getElementById("clear").addEventListener("click", clear);
clear();

try {
  network = await loadNetwork(new URL("digits.opq", import.meta.url), ({ loaded }) => {
    status.textContent = `Loading the network: ${loaded.toLocaleString("en")} bytes`;
  });
  status.textContent = `The network takes ${network.fileBytes.toLocaleString("en")} bytes.`;
  document.body.dataset.ready = "";
  recognize();
} catch (error) {
  status.textContent = error.message;
}
