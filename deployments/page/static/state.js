// The state of the page that its modules share.

import { History } from "./history.js";
import { View } from "./view.js";

export const $ = (id) => document.getElementById(id);

export const view = new View($("stage"));

export const page = {
  session: null, // the image at the service, see Session; null without an image
  fileName: "image.png",
  history: new History(),
  modelId: "",
  preview: null, // the candidate under the pointer
};
