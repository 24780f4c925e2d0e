// Draws a picture twice: small, and as the network sees it.
//
// The second follows service/decoding/picture.py, which is the truth: the middle square on white, averaged
// down, then Pillow's bicubic filter. A test compares the two.

const SIDE = 32;
const FEW = 6 * SIDE; // pixels across that the filter works on, so that it is quick
const THUMBNAIL = 256;

/** False where the browser cannot read the file as a picture. */
export async function draw(file, thumbnail, seen) {
  let picture;
  try {
    // As the service decodes: upright, and whatever colour profile it carries passed over.
    picture = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
  } catch {
    return false;
  }
  drawWhole(picture, thumbnail);
  seen.getContext("2d").putImageData(filter(middle(picture)), 0, 0);
  picture.close();
  return true;
}

function drawWhole(picture, canvas) {
  const scale = Math.min(1, THUMBNAIL / Math.max(picture.width, picture.height));
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  brush(canvas).drawImage(picture, 0, 0, canvas.width, canvas.height);
}

/** The pixels of the middle square, halved until they are few. */
function middle(picture) {
  const side = Math.min(picture.width, picture.height);
  let square = cut(picture, (picture.width - side) / 2, (picture.height - side) / 2, side);
  while (square.width > FEW) square = cut(square, 0, 0, square.width);
  return square.getContext("2d").getImageData(0, 0, square.width, square.width);
}

/** A canvas with a square of `source`: as it is, or half as large where that is still enough. */
function cut(source, left, upper, side) {
  // By half at most: browsers look at close neighbours only, and would skip pixels otherwise.
  const target = side > FEW ? Math.ceil(side / 2) : side;
  const canvas = new OffscreenCanvas(target, target);
  brush(canvas).drawImage(source, left, upper, side, side, 0, 0, target, target);
  return canvas;
}

function brush(canvas) {
  const context = canvas.getContext("2d", { alpha: false });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return context;
}

function filter({ data, width }) {
  const weights = bicubic(width);
  const seen = narrow(narrow(data, weights), weights);
  return new ImageData(Uint8ClampedArray.from(seen), SIDE, SIDE);
}

/** Makes SIDE pixels of each row, and a column of each row: after two times it is upright again. */
function narrow(pixels, weights) {
  const width = weights[0].length;
  const height = pixels.length / (4 * width);
  const turned = new Float32Array(4 * SIDE * height);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < SIDE; x += 1) {
      for (let from = 0; from < width; from += 1) {
        const weight = weights[x][from];
        if (weight === 0) continue;
        for (let sample = 0; sample < 4; sample += 1) {
          turned[4 * (x * height + y) + sample] += weight * pixels[4 * (y * width + from) + sample];
        }
      }
    }
  }
  return turned;
}

/** For each of SIDE pixels, what it takes of each of `size`. */
function bicubic(size) {
  const scale = size / SIDE;
  return Array.from({ length: SIDE }, (_, x) => {
    const centre = (x + 0.5) * scale;
    const distance = (from) => Math.abs(from + 0.5 - centre) / Math.max(1, scale);
    const weights = Array.from({ length: size }, (_, from) => cubic(distance(from)));
    const sum = weights.reduce((one, other) => one + other);
    return weights.map((weight) => weight / sum);
  });
}

function cubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return -0.5 * (((x - 5) * x + 8) * x - 4);
  return 0;
}
