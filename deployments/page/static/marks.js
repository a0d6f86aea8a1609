// Marks: the points and boxes of a prompt and the keyboard's cross, drawn at the screen's resolution.

const SVG = "http://www.w3.org/2000/svg";

// svg: the element that is filled. toStage(x, y): a point of the image as [x, y] on the stage.
//   points: [{x, y, label}]. box: the prompt's, drawn: one that the user is drawing; both [x0, y0, x1, y1] or null.
//   cross: {x, y} or null.
export function drawMarks(svg, toStage, { points, box, drawn, cross }) {
  const marks = [];
  const add = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    marks.push(element);
  };
  const addBox = (corners, kind) => {
    const [left, top] = toStage(corners[0], corners[1]);
    const [right, bottom] = toStage(corners[2], corners[3]);
    add("rect", { class: `box ${kind}`, x: left, y: top, width: right - left, height: bottom - top });
  };
  if (box) addBox(box, "");
  if (drawn) addBox(drawn, "drawn");
  for (const { x, y, label } of points) {
    const [cx, cy] = toStage(x, y);
    add("circle", { class: label ? "foreground" : "background", cx, cy, r: 7 });
    // A plus or minus, too, for users who do not tell red from green.
    add("path", { class: "sign", d: `M${cx - 3.5} ${cy}h7${label ? `M${cx} ${cy - 3.5}v7` : ""}` });
  }
  if (cross) {
    const [x, y] = toStage(cross.x, cross.y);
    add("path", { class: "cross", d: `M${x - 14} ${y}h28M${x} ${y - 14}v28`, fill: "none" });
  }
  svg.replaceChildren(...marks);
}
