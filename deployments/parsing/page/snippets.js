// The current prompt as a program. A name of a file is somebody's text: it is quoted for the language that it comes to
// stand in.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// JSON is a literal of Python too, for texts and lists.
const python = (value) => JSON.stringify(value);

// In curl's -F, a quoted name may hold anything; a leading - or / is no option there.
const curlFile = (name) => `"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

// What a request says besides the image: an object's prompt, as text fields.
export function fieldsOf({ points, box }, several) {
  const fields = {};
  if (points.length) {
    fields.point_coords = JSON.stringify(points.map(({ x, y }) => [x, y]));
    fields.point_labels = JSON.stringify(points.map(({ label }) => label));
  }
  if (box) fields.box = JSON.stringify(box);
  if (!several) fields.multimask_output = "false";
  return fields;
}

export function curl({ url, fileName, modelId, needsToken, steps }) {
  const lines = [`curl -s -X POST ${shell(url)}`];
  if (needsToken) lines.push('-H "Authorization: Bearer $AUTH_TOKEN"');
  lines.push(`-F image=@${shell(curlFile(fileName))}`, `-F model_id=${shell(modelId)}`);
  for (const [name, value] of Object.entries(steps.at(-1).fields)) lines.push(`-F ${name}=${shell(value)}`);
  lines.push("-F response_format=rle");
  const command = lines.join(" \\\n    ");
  if (steps.length === 1) return command;
  return `# The page sends the logits of the answer before as mask_input, too: see Python.\n${command}`;
}

export function pythonProgram({ url, fileName, modelId, needsToken, steps }) {
  const authorization = needsToken ? '{"Authorization": "Bearer " + os.environ["AUTH_TOKEN"]}' : "{}";
  const written = steps.map(({ fields, picked }) => `    (${python(fields)}, ${picked}),`).join("\n");
  return `import json
${needsToken ? "import os\n" : ""}
import requests

url = ${python(url)}
image = open(${python(fileName)}, "rb").read()
# Each prompt, and which of its masks the next one goes on from.
prompts = [
${written}
]
logits = None
for fields, picked in prompts:
    data = {"model_id": ${python(modelId)}, "response_format": "rle", "return_logits": "true", **fields}
    if logits is not None:
        data["mask_input"] = json.dumps(logits)
    answer = requests.post(url, files={"image": image}, data=data, headers=${authorization})
    answer.raise_for_status()
    masks = answer.json()["masks"]
    logits = masks[picked]["logits"]

mask = masks[picked]  # pycocotools.mask.decode(mask["segmentation"]) is an array
print(mask["score"], mask["area"], mask["bbox"])
`;
}
