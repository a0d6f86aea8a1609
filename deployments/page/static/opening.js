// Opens what the user chose, dropped or pasted: an image or a video.

import { openImage } from "./images.js";
import { openVideo } from "./video.js";

export const EXAMPLES = [
  { file: "page/examples/drawn.png", text: "Drawn things on a table" },
  { file: "page/examples/photograph.jpg", text: "A photograph of a man with a camera" },
  { file: "page/examples/clip.mp4", picture: "page/examples/clip.jpg", text: "A video: a pear and a ball pass each other" },
];

// Browsers name the type of those that they know; the service reads more.
const VIDEO_NAME = /\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|ts|mts|flv|ogv|wmv|asf|mxf|zip)$/i;

export const isVideo = ({ name, type }) => type.startsWith("video/") || VIDEO_NAME.test(name);

export async function open(file) {
  if (file) await (isVideo(file) ? openVideo : openImage)(file);
}

export async function openExample(file) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
  const blob = await answer.blob();
  await open(new File([blob], file.split("/").at(-1), { type: blob.type }));
}
