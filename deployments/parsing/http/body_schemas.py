"""Describes bodies in the OpenAPI document: beside each form of FastAPI's, the same as JSON and urlencoded."""

from typing import Any

from deployments.parsing.http.field_names import PROMPT_NAMES
from deployments.parsing.http.form import JSON, MULTIPART, URLENCODED

Schema = dict[str, Any]

AS_BASE64 = " In JSON the file is base64, alone or as a `data:` URL."


def with_all_bodies(document: Schema) -> Schema:
    """Adds the other kinds of body to each operation that takes a form, in place; returns the document."""
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            if MULTIPART in content:
                name = content[MULTIPART]["schema"]["$ref"].rpartition("/")[2]
                content |= _other_bodies(document["components"]["schemas"][name])
    return document


def _other_bodies(form: Schema) -> Schema:
    files = {name for name, field in form["properties"].items() if _is_file(field)}
    required = set(form.get("required", ()))
    fields = {name: _in_json(name, field) for name, field in form["properties"].items()}
    bodies = {JSON: {"schema": {**form, "properties": fields}}}
    if not files & required:
        texts = {name: field for name, field in form["properties"].items() if name not in files}
        bodies[URLENCODED] = {"schema": {**form, "properties": texts}}
    return bodies


def _is_file(field: Schema) -> bool:
    return "contentMediaType" in field


def _in_json(name: str, field: Schema) -> Schema:
    if _is_file(field):
        description = field.get("description", "") + AS_BASE64
        return {"title": field["title"], "type": "string", "contentEncoding": "base64", "description": description}
    if name in PROMPT_NAMES:
        array = {"type": "array", "description": "The same as in the text."}
        return {**field, "anyOf": [array, *field.get("anyOf", [{"type": "string"}])]}
    return field
