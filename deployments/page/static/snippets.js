// A prompt as a program. A file's name may be hostile: it is quoted for the language that it is put into.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// A string, a list of strings or a dictionary of them is written the same in JSON and in Python.
const python = (value) => JSON.stringify(value);

// In curl's -F a quoted name may hold any character; after "./", the name "-" is not read as stdin.
const curlFile = (name) => `@"./${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

// steps: [{fields, picked}], the prompts that led to a mask, each with the candidate that the next went on from.
export function curl({ url, fileName, modelId, needsToken, steps }) {
  const lines = [`curl -s -X POST ${shell(url)}`];
  if (needsToken) lines.push('-H "Authorization: Bearer $AUTH_TOKEN"');
  lines.push(`-F image=${shell(curlFile(fileName))}`);
  const fields = { model_id: modelId, ...steps.at(-1).fields, response_format: "rle" };
  for (const [name, value] of Object.entries(fields)) lines.push(`--form-string ${name}=${shell(value)}`);
  const command = lines.join(" \\\n    ");
  if (steps.length === 1) return command;
  return `# The page also sends the logits of the answer before as mask_input: see Python.\n${command}`;
}

function opening({ url, fileName, needsToken }) {
  return `${needsToken ? "import os\n\n" : ""}import requests

url = ${python(url)}
headers = ${needsToken ? '{"Authorization": "Bearer " + os.environ["AUTH_TOKEN"]}' : "{}"}
image = open(${python(fileName)}, "rb").read()
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
