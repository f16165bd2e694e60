"""The OpenAPI 3.1 document, made from the table of routes."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobrunner.web.api.fields import Field
    from jobrunner.web.api.table import Route

_PARAMETER = re.compile(r"{(\w+)}")
_ERRORS = {
    "400": "a field cannot be used",
    "401": "no token, or one that is wrong",
    "403": "the token may not do this, or another site's page sent it",
    "404": "there is no such worker, run, letter or limit",
    "503": "the database or its schema cannot be used now, or the answer took too long",
}
_ERRORS_OF_VERBS = {
    "409": "the state of things forbids it; nothing was changed",
    "413": "the body is too large",
    "422": "it does not fit the worker: its payload, or its definition",
}


def document(routes: Sequence[Route], root: str) -> dict[str, Any]:
    """Return the document; `root` is the prefix under which the application is mounted."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jobrunner",
            "version": installed_version(),
            "description": "Rows have the names of the database's columns; times are ISO 8601 in UTC.",
        },
        "servers": [{"url": root or "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
            },
        },
    }


def installed_version() -> str:
    """Return jobrunner's version."""
    try:
        return version("jobrunner")
    except PackageNotFoundError:  # run from its sources
        return "0"


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.about,
        "description": f"Needs the level `{route.level.name.lower()}`.",
        "parameters": [_path_parameter(name) for name in _PARAMETER.findall(route.path)],
        "responses": {"200": _success(route), **_failures(route)},
    }
    if route.method == "GET":
        operation["parameters"] += [_query_parameter(field) for field in route.fields]
    elif route.fields:
        operation["requestBody"] = _body(route.fields)
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    kind = "integer" if name == "id" else "string"
    return {"name": name, "in": "path", "required": True, "schema": {"type": kind}}


def _query_parameter(field: Field) -> dict[str, Any]:
    return {"name": field.name, "in": "query", "description": field.about, "schema": field.schema}


def _body(fields: Sequence[Field]) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {field.name: {"description": field.about, **field.schema} for field in fields},
    }
    required = [field.name for field in fields if field.is_required]
    if required:
        schema["required"] = required
    kinds = ("application/json", "application/x-www-form-urlencoded")
    return {"required": bool(required), "content": {kind: {"schema": schema} for kind in kinds}}


def _success(route: Route) -> dict[str, Any]:
    row = {"type": "object"}
    schema: dict[str, Any] = {"type": "array", "items": row} if route.is_list else row
    response: dict[str, Any] = {"description": route.about, "content": {"application/json": {"schema": schema}}}
    if route.is_list:
        link = {"description": 'the next page: `<?…>; rel="next"`', "schema": {"type": "string"}}
        response["headers"] = {"Link": link}
    return response


def _failures(route: Route) -> dict[str, Any]:
    errors = _ERRORS if route.method == "GET" else {**_ERRORS, **_ERRORS_OF_VERBS}
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": about, "content": body} for status, about in sorted(errors.items())}
