// Writes zips of files that are packed already: stored as they are. The format is that of PKWARE's APPNOTE.TXT.

import { crc32 } from "./png.js";

const JANUARY_1980 = (1 << 5) | 1; // MS-DOS's date: the same content is the same file
const MOST_FILES = 0xffff;
const MOST_BYTES = 0xffffffff;
const VERSION = 20; // of the format that a reader must know, times ten

// Fields are [number, bytes], the lowest byte first.
function written(...fields) {
  const bytes = new DataView(new ArrayBuffer(fields.reduce((sum, [, width]) => sum + width, 0)));
  let at = 0;
  for (const [number, width] of fields) {
    if (width === 2) bytes.setUint16(at, number, true);
    else bytes.setUint32(at, number, true);
    at += width;
  }
  return bytes.buffer;
}

export class Zip {
  constructor() {
    this._parts = []; // Blobs: the browser may keep them on disk
    this._directory = [];
    this._bytes = 0;
  }

  // content: a Blob.
  async add(name, content) {
    if (this._directory.length === MOST_FILES) throw new Error(`A zip holds at most ${MOST_FILES} files.`);
    const bytes = new Uint8Array(await content.arrayBuffer());
    const encoded = new TextEncoder().encode(name);
    const size = bytes.length;
    const facts = [[0, 2], [0, 2], [0, 2], [JANUARY_1980, 2], [crc32(bytes), 4], [size, 4], [size, 4], [encoded.length, 2]];
    const head = written([0x04034b50, 4], [VERSION, 2], ...facts, [0, 2]);
    // No extra field, no comment, the first disk, attributes of two kinds, and where the file is.
    const after = [[0, 2], [0, 2], [0, 2], [0, 2], [0, 4], [this._bytes, 4]];
    this._directory.push(new Blob([written([0x02014b50, 4], [VERSION, 2], [VERSION, 2], ...facts, ...after), encoded]));
    this._parts.push(new Blob([head, encoded, content]));
    this._bytes += head.byteLength + encoded.length + size;
    if (this._bytes > MOST_BYTES) throw new Error("A zip holds at most 4 GB.");
  }

  blob() {
    const count = this._directory.length;
    const directory = new Blob(this._directory);
    const sizes = [[count, 2], [count, 2], [directory.size, 4], [this._bytes, 4]];
    const end = written([0x06054b50, 4], [0, 2], [0, 2], ...sizes, [0, 2]);
    return new Blob([...this._parts, directory, end], { type: "application/zip" });
  }
}
