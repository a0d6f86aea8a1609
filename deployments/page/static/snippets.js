// A prompt as a program. A file's name may be hostile: it is quoted for the language that it is put into.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// A string, a list of strings or a dictionary of them is written the same in JSON and in Python.
const python = (value) => JSON.stringify(value);

// In curl's -F a quoted name may hold any character; after "./", the name "-" is not read as stdin.
const curlFile = (name) => `@"./${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

// The beginning of a command of curl. option: those that come first; kind: the file's field.
function curlWith({ url, fileName, needsToken }, option, kind, fields) {
  const lines = [`curl ${option} -X POST ${shell(url)}`];
  if (needsToken) lines.push('-H "Authorization: Bearer $AUTH_TOKEN"');
  lines.push(`-F ${kind}=${shell(curlFile(fileName))}`);
  for (const [name, value] of Object.entries(fields)) lines.push(`--form-string ${name}=${shell(value)}`);
  return lines.join(" \\\n    ");
}

// steps: [{fields, picked}], the prompts that led to a mask, each with the candidate that the next went on from.
export function curl({ steps, ...facts }) {
  const fields = { model_id: facts.modelId, ...steps.at(-1).fields, response_format: "rle" };
  const command = curlWith(facts, "-s", "image", fields);
  if (steps.length === 1) return command;
  return `# The page also sends the logits of the answer before as mask_input: see Python.\n${command}`;
}

// fields: those of the request that follows objects through the video.
export const curlOfVideo = ({ fields, ...facts }) =>
  curlWith(facts, "-sN", "video", { model_id: facts.modelId, ...fields });

function opening({ url, fileName, needsToken }, kind = "image") {
  return `${needsToken ? "import os\n\n" : ""}import requests

url = ${python(url)}
headers = ${needsToken ? '{"Authorization": "Bearer " + os.environ["AUTH_TOKEN"]}' : "{}"}
${kind} = open(${python(fileName)}, "rb").read()
`;
}

const CLOSING = `print(mask["area"], mask["bbox"])  # pycocotools.mask.decode(mask["segmentation"]) is an array
`;

export function pythonProgram(facts) {
  const written = facts.steps.map(({ fields, picked }) => `    (${python(fields)}, ${picked}),`).join("\n");
  return `import json
${opening(facts)}# Each prompt, and the index of the mask that the next one goes on from.
prompts = [
${written}
]
logits = None
for fields, picked in prompts:
    data = {"model_id": ${python(facts.modelId)}, "response_format": "rle", "return_logits": "true", **fields}
    if logits is not None:
        data["mask_input"] = json.dumps(logits)
    answer = requests.post(url, files={"image": image}, data=data, headers=headers)
    answer.raise_for_status()
    mask = answer.json()["masks"][picked]
    logits = mask["logits"]

${CLOSING}`;
}

// everything: {fields, index}, the request that found everything, and the object's place in its answer.
export function everythingProgram({ everything: { fields, index }, ...facts }) {
  return `${opening(facts)}data = ${python({ model_id: facts.modelId, ...fields })}
answer = requests.post(url, files={"image": image}, data=data, headers=headers)
answer.raise_for_status()
mask = answer.json()["masks"][${index}]
${CLOSING}`;
}

export function pythonOfVideo({ fields, ...facts }) {
  return `import json
${opening(facts, "video")}data = ${python({ model_id: facts.modelId, ...fields })}
with requests.post(url, files={"video": video}, data=data, headers=headers, stream=True) as answer:
    answer.raise_for_status()
    for line in map(json.loads, answer.iter_lines()):
        for one in line.get("objects", []) if "frame_index" in line else []:
            # pycocotools.mask.decode(one["segmentation"]) is an array.
            print(line["frame_index"], one["object_id"], one["present"], one["area"], one["bbox"])
assert line.get("done"), line
`;
}
