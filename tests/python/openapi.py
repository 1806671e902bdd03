"""Holds exchanges against an OpenAPI 3.1 description: `openapi.py DESCRIPTION EXCHANGES`.

An exchange is a line of JSON: method, path, status, headers (lower case) and body (Base64). Prints each difference, and
what the description has that no exchange showed. Nothing here knows tollgate: statuses, headers, types and members come
from the description, and what it does not name is a difference. Its extensions are `x-itemSchema` for the lines of
NDJSON, and the responses `NotFound` and `MethodNotAllowed` for paths and methods that it does not have.
"""

import base64
import copy
import json
import re
import sys

from openapi_schema_validator import OAS31Validator, oas31_format_checker
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

description = json.load(open(sys.argv[1], encoding="utf-8"))
exchanges = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
METHODS = {"get", "head", "post", "put", "delete", "patch", "options", "trace"}
# Of HTTP itself.
OF_EVERY_ANSWER = {"date", "content-length", "content-type", "transfer-encoding", "connection"}

differences = [f"the description: {error.message}" for error in OpenAPIV31SpecValidator(description).iter_errors()]


def closed(schema):
    """The same schema, and no member that it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "additionalProperties" not in schema:
        schema["unevaluatedProperties"] = False
    return schema


strict = copy.deepcopy(description)
strict["components"]["schemas"] = closed(strict["components"]["schemas"])
HERE = "urn:description"
registry = Registry().with_resource(HERE, Resource.from_contents(strict, default_specification=DRAFT202012))


def resolved(part):
    while "$ref" in part:
        target = description
        for name in part["$ref"].removeprefix("#/").split("/"):
            target = target[name.replace("~1", "/").replace("~0", "~")]
        part = target
    return part


def absolute(schema):
    """The same schema outside of the description, to which its references lead."""
    if isinstance(schema, list):
        return [absolute(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: HERE + part if name == "$ref" else absolute(part) for name, part in schema.items()}


def wrong(schema, value):
    validator = OAS31Validator(absolute(schema), registry=registry, format_checker=oas31_format_checker)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(value)]


def value_of(schema, text):
    """A header's value as its schema has it."""
    return int(text) if schema.get("type") == "integer" and re.fullmatch("[0-9]+", text) else text


def matches(template, path):
    # The last parameter may have slashes: the description says so of topics.
    pattern = "".join(".*" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{[^}]*\})", template))
    return re.fullmatch(pattern, path)


def item_of(path):
    path = path.split("?")[0]
    exact = description["paths"].get(path)
    if exact is not None:
        return path, exact
    return next(((t, item) for t, item in description["paths"].items() if "{" in t and matches(t, path)), (None, None))


def response_of(exchange):
    template, item = item_of(exchange["path"])
    responses = description["components"]["responses"]
    if item is None:
        return ("any path", "any", "404"), responses["NotFound"] if exchange["status"] == 404 else None
    method, status = exchange["method"].lower(), str(exchange["status"])
    if method not in item:
        allowed = {m.upper() for m in item if m in METHODS}
        given = {m.strip() for m in exchange["headers"].get("allow", "").split(",")}
        if given != allowed:
            differences.append(f"{exchange['method']} {template}: Allow has {given}, and not {allowed}")
        return (template, "any", "405"), responses["MethodNotAllowed"] if status == "405" else None
    response = item[method]["responses"].get(status)
    return (template, method, status), response and resolved(response)


def problem_types(schema):
    """Types and statuses that a schema of problems names."""
    found = set()
    for part in schema.get("allOf", []):
        for name in part.get("properties", {}).get("type", {}).get("enum", []):
            found.add(name)
    return found


seen, seen_types = set(), set()
for exchange in exchanges:
    key, response = response_of(exchange)
    what = " ".join(key)
    body = base64.b64decode(exchange["body"])
    if response is None:
        differences.append(f"{what}: status {exchange['status']} is not described: {body[:300]}")
        continue
    seen.add(key)
    headers = exchange["headers"]
    described = {name.lower(): resolved(header) for name, header in response.get("headers", {}).items()}
    for name in headers.keys() - described.keys() - OF_EVERY_ANSWER:
        differences.append(f"{what}: the header {name} is not described")
    for name, header in described.items():
        if name in headers:
            schema = header["schema"]
            differences += [f"{what}: {name}: {error}" for error in wrong(schema, value_of(schema, headers[name]))]
        elif header.get("required"):
            differences.append(f"{what}: the header {name} is missing")
    content = response.get("content")
    if content is None or exchange["method"] == "HEAD":
        if body:
            differences.append(f"{what}: there is a body: {body[:300]}")
        continue
    kind = headers.get("content-type")
    if kind not in content:
        differences.append(f"{what}: the type {kind} is not described: {body[:300]}")
        continue
    media = content[kind]
    if "x-itemSchema" in media:
        for line in body.decode().splitlines():
            line = json.loads(line)
            seen_types.add((line.get("type"), line["httpStatus"]))
            differences += [f"{what}: {error} in {line}" for error in wrong(media["x-itemSchema"], line)]
        continue
    value = json.loads(body) if "json" in kind else body.decode()
    if kind == "application/problem+json":
        seen_types.add((value.get("type"), exchange["status"]))
    differences += [f"{what}: {error} in {value}" for error in wrong(media["schema"], value)]

unseen = {("any path", "any", "404")} | {(template, "any", "405") for template in description["paths"]}
types = set()
for template, item in description["paths"].items():
    for method in METHODS & item.keys():
        for status, response in item[method]["responses"].items():
            unseen.add((template, method, status))
            for media in resolved(response).get("content", {}).values():
                types |= {(name, int(status)) for name in problem_types(media.get("schema", {}))}
print(json.dumps({
    "exchanges": len(exchanges),
    "differences": differences,
    "unseen": sorted(" ".join(key) for key in unseen - seen),
    "unseen_types": sorted(name.removeprefix("urn:tollgate:") for name, status in types - seen_types),
}))
