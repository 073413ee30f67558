"""The OpenAPI description of the server, made of the routes and the structs on the wire."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

import msgspec

import gemirec
from gemirec.serving import wire, wire_explorer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gemirec.serving.routes import Route

_WIRE = (wire, wire_explorer)
_ERRORS = {
    "400": "The body is not JSON in UTF-8, or a header is wrong",
    "401": "No, a wrong or an expired API key",
    "403": "The API key does not allow it, or there are no keys and the request comes by another name than localhost",
    "408": "The body did not arrive in time",
    "409": "A reload is under way",
    "413": "The body is too large",
    "415": "The body is not application/json as it is",
    "422": "A field or value is wrong",
    "429": "Too much waits; ask again after Retry-After seconds",
    "503": "A disk or another service that is needed cannot be used",
    "504": "No answer before the deadline",
}
_OF_BODIES = ("400", "408", "413", "415", "422", "429", "503", "504")
_OF_QUERIES = ("400", "422", "429", "503", "504")
_DEADLINE = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "required": False,
    "description": "Milliseconds until the answer is worth nothing; then the work is dropped and 504 is answered.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


def openapi(routes: Iterable[Route], *, keys: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description.

    Args:
        routes: What there is.
        keys: Whether API keys are asked for.
    """
    routes = list(routes)
    structs = {each for route in routes for each in (route.body, route.answer) if isinstance(each, type)}
    _, components = msgspec.json.schema_components(
        [*sorted(structs, key=lambda struct: struct.__name__), wire.ErrorBody],
        ref_template="#/components/schemas/{name}",
    )
    _describe(components)
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, keys=keys)
    out: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "gemirec", "version": gemirec.__version__, "summary": "Multi-interest candidate retrieval"},
        "paths": paths,
        "components": {"schemas": components},
    }
    if keys:
        bearer, plain = {"type": "http", "scheme": "bearer"}, {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        out["components"]["securitySchemes"] = {"bearer": bearer, "key": plain}
    return out


def _operation(route: Route, *, keys: bool) -> dict[str, Any]:
    """Return the description of one route."""
    codes = ["403", *(_OF_BODIES if route.body else ()), *(["503"] if route.name == "readyz" else [])]
    codes += _OF_QUERIES if route.query and not route.body else ()
    codes += ["401"] * (keys and route.scope is not None) + ["409"] * (route.name == "reload")
    responses: dict[str, Any] = {
        "200": {"description": "Done", "content": _content(route.answer, route.example_answer)}
    }
    for code in sorted(set(codes)):
        responses[code] = {"description": _ERRORS[code], "content": _content(wire.ErrorBody, None)}
    out: dict[str, Any] = {"operationId": route.name, "summary": route.summary, "responses": responses}
    if route.body is not None:
        out["requestBody"] = {"required": True, "content": _content(route.body, route.example)}
    if route.body is not None or route.query is not None:
        out["parameters"] = [_DEADLINE, *_parameters(route.query)]
    if keys and route.scope is not None:
        out["security"] = [{"bearer": []}, {"key": []}]
        out["description"] = f"Needs a key with the scope `{route.scope}`."
    return out


def _parameters(query: type | None) -> list[dict[str, Any]]:
    """Return the parameters of a query."""
    if query is None:
        return []
    _, components = msgspec.json.schema_components([query])
    _describe(components)
    found = []
    for name, schema in components[query.__name__]["properties"].items():
        described = {"schema": schema, "description": schema.pop("description", "")}
        found.append({"name": name, "in": "query", "required": False, **described})
    return found


def _content(answer: type | str | None, example: dict[str, Any] | None) -> dict[str, Any]:
    """Return the content of a body."""
    if isinstance(answer, str):
        return {answer: {"schema": {"type": "object" if answer.endswith("json") else "string"}}}
    assert answer is not None
    body: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{answer.__name__}"}}
    if example is not None:
        body["example"] = example
    return {"application/json": body}


def _describe(components: dict[str, Any]) -> None:
    """Give every field the text that stands below it in the source, its own or that of the class it comes from."""
    texts: dict[str, dict[str, str]] = {}
    for node in (node for each in _WIRE for node in ast.parse(inspect.getsource(each)).body):
        if isinstance(node, ast.ClassDef):
            found = dict(texts.get(ast.unparse(node.bases[0]), {})) if node.bases else {}
            for line, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[ast.unparse(line.target)] = " ".join(str(ast.literal_eval(below.value)).split())
            texts[node.name] = found
    for name, schema in components.items():
        struct = next(getattr(each, name) for each in _WIRE if hasattr(each, name))
        for field in msgspec.structs.fields(struct):
            text = texts[name].get(field.name)
            if text and field.encode_name in schema["properties"]:
                schema["properties"][field.encode_name]["description"] = text
