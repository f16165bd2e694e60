"""What a handler's annotations say of its payload, as JSON Schema: for `workers.payload_schema`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

MOST_BYTES = 32 * 1024
"""A larger schema is not kept: any payload passes until the attempt."""


def payload_schema(fields: type[BaseModel] | None) -> dict[str, Any]:
    """Return the schema of the payloads that fit a handler's fields; the empty one where any payload will do."""
    if fields is None:
        return {}
    from jobrunner.runtime.sure_schemas import SureSchema  # noqa: PLC0415 - it loads pydantic, a tenth of a second

    try:
        schema = SureSchema(by_alias=True).generate(fields.__pydantic_core_schema__)
        text = json.dumps(schema, allow_nan=False)
    except Exception:  # noqa: BLE001 - a type that pydantic can read, and has no schema for
        return {}
    found: dict[str, Any] = json.loads(text)
    return found if len(text) <= MOST_BYTES else {}
