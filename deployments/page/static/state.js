// The state of the page that its modules share.

import { History } from "./history.js";
import { View } from "./view.js";

export const $ = (id) => document.getElementById(id);

export const view = new View($("stage"));

export const page = {
  session: null, // the image at the service, or the video's present frame, see Picture; null without an image
  video: null, // {file: VideoFile, facts, tracks: Tracks}; null without a video
  fileName: "image.png",
  history: new History(),
  modelId: "",
  preview: null, // the candidate under the pointer
};
