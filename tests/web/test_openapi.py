"""The document and the application say the same: both are made from one table."""

from __future__ import annotations

import re

from jobrunner.web.api.openapi import document
from jobrunner.web.api.table import ROUTES
from tests.web.conftest import Web


async def test_every_route_is_described_and_every_description_is_a_route(web: Web):
    app = web.console()
    async with web.client(app) as client:
        said = (await client.get("/api/openapi.json")).json()
    described = {(method.upper(), path) for path, methods in said["paths"].items() for method in methods}
    served = {
        (method, path.path.replace(":int", ""))
        for path in app.paths
        if path.path.startswith("/api/") and path.path != "/api/openapi.json"
        for method in set(path.methods or ()) - {"HEAD"}
    }
    assert described == served
    assert said["openapi"].startswith("3.1.")


def test_each_operation_names_its_fields_and_has_a_name_of_its_own():
    paths = document(ROUTES, "")["paths"]
    names = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        in_path = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", route.path))
        fields = {field.name for field in route.fields}
        if route.method == "GET":
            assert {each["name"] for each in operation["parameters"] if each["in"] == "query"} == fields
        elif fields:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            assert set(body["properties"]) == fields


async def test_a_field_that_the_document_does_not_name_is_refused(web: Web):
    async with web.client() as client:
        for route in ROUTES:
            if route.method == "GET":
                response = await client.get(route.path.format(name="mail", id=1), params={"no_such": 1})
                assert response.status_code == 400, route.path


def test_the_schemas_are_those_of_json_schema():
    from jsonschema import Draft202012Validator

    for route in ROUTES:
        for field in route.fields:
            Draft202012Validator.check_schema(field.schema)
