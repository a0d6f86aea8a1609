// Writes PNGs of one channel, greyscale of 8 or 16 bits or with a palette; a canvas only writes four channels.

const CRCS = Uint32Array.from({ length: 256 }, (_, start) => {
  let value = start;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

export function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRCS[(value ^ byte) & 0xff] ^ (value >>> 8);
  return ~value >>> 0;
}

function chunk(name, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

// values: width × height numbers, row by row; 16 bits if one of them is above 255.
export function greyPng(width, height, values) {
  return png(width, height, values, values.some((value) => value > 255) ? 16 : 8);
}

// values: width × height numbers up to 255, row by row. palette: 768 bytes, red, green and blue of each number.
export function palettePng(width, height, values, palette) {
  return png(width, height, values, 8, palette);
}

async function png(width, height, values, depth, palette) {
  const rowBytes = (width * depth) / 8 + 1;
  const rows = new Uint8Array(rowBytes * height);
  for (let y = 0; y < height; y++) {
    let at = y * rowBytes + 1; // The byte before a row names its filter: 0, none.
    for (let x = 0; x < width; x++) {
      const value = values[y * width + x];
      if (depth === 16) rows[at++] = value >> 8;
      rows[at++] = value;
    }
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = depth;
  header[9] = palette ? 3 : 0; // the kind of colours: by a palette, or greyscale
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const colours = palette ? [chunk("PLTE", palette)] : [];
  const chunks = [chunk("IHDR", header), ...colours, chunk("IDAT", data), chunk("IEND", new Uint8Array())];
  return new Blob([signature, ...chunks], { type: "image/png" });
}
