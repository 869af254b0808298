/** Pixels onto canvases. */

/** Pixels (H, W, C) in [0, 1] as ImageData: grey, RGB or RGBA; of other channels their mean, as grey. */
export function picture(values, [height, width, channels]) {
  const image = new ImageData(width, height);
  const colours = channels === 3 || channels === 4;
  for (let i = 0, from = 0; i < image.data.length; i += 4, from += channels) {
    if (colours) {
      for (let c = 0; c < 3; c++) image.data[i + c] = Math.round(values[from + c] * 255);
    } else {
      let sum = 0;
      for (let c = 0; c < channels; c++) sum += values[from + c];
      image.data[i] = image.data[i + 1] = image.data[i + 2] = Math.round((sum / channels) * 255);
    }
    image.data[i + 3] = channels === 4 ? Math.round(values[from + 3] * 255) : 255;
  }
  return image;
}

/** Draw pixels on a canvas of their own size. */
export function paint(canvas, values, shape) {
  [canvas.height, canvas.width] = shape;
  canvas.getContext("2d").putImageData(picture(values, shape), 0, 0);
}

/** A canvas for a row of images, and how to fill one of its places. */
export function strip(canvas, count, shape, columns = count) {
  const [height, width] = shape;
  canvas.width = columns * width;
  canvas.height = Math.ceil(count / columns) * height;
  const context = canvas.getContext("2d");
  return (index, values) => {
    const [x, y] = [(index % columns) * width, Math.floor(index / columns) * height];
    context.putImageData(picture(values, shape), x, y);
  };
}

/** The thumbnails of test images: `draw(canvas, index)`. They are there a moment after the page. */
export function thumbnails({ type, data, width, height, columns }, bytesOf) {
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([bytesOf(data)], { type }));
  const ready = image.decode();
  return {
    async draw(canvas, index) {
      canvas.dataset.index = index;
      await ready;
      if (canvas.dataset.index !== String(index)) return;
      [canvas.width, canvas.height] = [width, height];
      const [x, y] = [(index % columns) * width, Math.floor(index / columns) * height];
      canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
    },
  };
}

const TEN = "#4e79a7 #f28e2b #e15759 #76b7b2 #59a14f #edc948 #b07aa1 #ff7b9c #9c755f #8a8f98".split(
  " ",
);

/** A colour for each of some classes. */
export function palette(count) {
  if (count <= TEN.length) return TEN.slice(0, count);
  return Array.from(
    { length: count },
    (_, i) => `hsl(${(i * 137.5) % 360} 60% ${45 + (i % 3) * 10}%)`,
  );
}
