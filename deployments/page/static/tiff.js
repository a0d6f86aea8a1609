// Writes greyscale TIFFs of 16 bits: one strip of deflated rows, the lowest byte first.

const SHORT = 3;
const LONG = 4;
const HEADER_BYTES = 8;

// values: width × height numbers, row by row.
export async function greyTiff(width, height, values) {
  const pixels = new DataView(new ArrayBuffer(2 * values.length));
  values.forEach((value, index) => pixels.setUint16(2 * index, value, true));
  const packed = new Blob([pixels]).stream().pipeThrough(new CompressionStream("deflate"));
  const strip = await new Response(packed).arrayBuffer();
  const padding = strip.byteLength % 2;
  const tags = [
    [256, LONG, width],
    [257, LONG, height],
    [258, SHORT, 16], // bits of a sample
    [259, SHORT, 8], // compression: deflate
    [262, SHORT, 1], // 0 is black
    [273, LONG, HEADER_BYTES], // where the strip begins
    [277, SHORT, 1], // samples of a pixel
    [278, LONG, height], // rows of a strip
    [279, LONG, strip.byteLength],
  ];
  const header = new DataView(new ArrayBuffer(HEADER_BYTES));
  header.setUint32(0, 0x002a4949, true);
  header.setUint32(4, HEADER_BYTES + strip.byteLength + padding, true);
  const directory = new DataView(new ArrayBuffer(2 + 12 * tags.length + 4));
  directory.setUint16(0, tags.length, true);
  tags.forEach(([tag, type, value], index) => {
    const at = 2 + 12 * index;
    directory.setUint16(at, tag, true);
    directory.setUint16(at + 2, type, true);
    directory.setUint32(at + 4, 1, true);
    directory.setUint32(at + 8, value, true);
  });
  return new Blob([header, strip, new Uint8Array(padding), directory], { type: "image/tiff" });
}
