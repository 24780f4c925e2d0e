// Draws a picture twice: as a thumbnail, and as the input of the neural network.
//
// The second drawing follows service/decoding/picture.py: the center square on white, reduced by
// averaging, then by Pillow's bicubic filter. A test compares the results.

const SIDE = 32; // pixels of the network's input
const FILTER_SIDE = 6 * SIDE; // maximum input of the bicubic filter, which is slow
const THUMBNAIL = 256;

/** Draws `file` on both canvases. Returns false if the browser cannot decode the file. */
export async function draw(file, thumbnail, input) {
  let picture;
  try {
    // As the service decodes: with the EXIF orientation applied, and color profiles ignored.
    picture = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
  } catch {
    return false;
  }
  drawThumbnail(picture, thumbnail);
  input.getContext("2d").putImageData(filter(centerSquare(picture)), 0, 0);
  picture.close();
  return true;
}

function drawThumbnail(picture, canvas) {
  const scale = Math.min(1, THUMBNAIL / Math.max(picture.width, picture.height));
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  whiteContext(canvas).drawImage(picture, 0, 0, canvas.width, canvas.height);
}

/** The pixels of the center square, halved until it has at most FILTER_SIDE pixels per side. */
function centerSquare(picture) {
  const side = Math.min(picture.width, picture.height);
  let square = crop(picture, (picture.width - side) / 2, (picture.height - side) / 2, side);
  while (square.width > FILTER_SIDE) square = crop(square, 0, 0, square.width);
  return square.getContext("2d").getImageData(0, 0, square.width, square.width);
}

/** A canvas with a square of `source`, at half its size if the square exceeds FILTER_SIDE. */
function crop(source, left, upper, side) {
  // A larger reduction in one step would skip pixels: browsers average neighboring pixels only.
  const target = side > FILTER_SIDE ? Math.ceil(side / 2) : side;
  const canvas = new OffscreenCanvas(target, target);
  whiteContext(canvas).drawImage(source, left, upper, side, side, 0, 0, target, target);
  return canvas;
}

function whiteContext(canvas) {
  const context = canvas.getContext("2d", { alpha: false });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return context;
}

function filter({ data, width }) {
  const weights = bicubic(width);
  const pixels = reduceAndTranspose(reduceAndTranspose(data, weights), weights);
  return new ImageData(Uint8ClampedArray.from(pixels), SIDE, SIDE);
}

/** Reduces each row to SIDE pixels and transposes the result. Two calls restore the orientation. */
function reduceAndTranspose(pixels, weights) {
  const width = weights[0].length;
  const height = pixels.length / (4 * width);
  const result = new Float32Array(4 * SIDE * height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < SIDE; x += 1) {
      for (let from = 0; from < width; from += 1) {
        const weight = weights[x][from];
        if (weight === 0) continue;
        for (let sample = 0; sample < 4; sample += 1) {
          result[4 * (x * height + y) + sample] += weight * pixels[4 * (y * width + from) + sample];
        }
      }
    }
  }
  return result;
}

/** For each of SIDE output pixels, the weights of `size` input pixels. */
function bicubic(size) {
  const scale = size / SIDE;
  return Array.from({ length: SIDE }, (_, x) => {
    const center = (x + 0.5) * scale;
    const distance = (from) => Math.abs(from + 0.5 - center) / Math.max(1, scale);
    const weights = Array.from({ length: size }, (_, from) => cubic(distance(from)));
    const sum = weights.reduce((total, weight) => total + weight);
    return weights.map((weight) => weight / sum);
  });
}

function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return -0.5 * (((x - 5) * x + 8) * x - 4);
  return 0;
}
