"""Parts of request bodies in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TEXT = {"schema": {"type": "string"}}
# the documentation page needs `format` to show a file chooser, generators of clients need `contentMediaType`
FILE = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}


def field(kind: str, description: str, **more: Any) -> dict[str, Any]:
    """Describe a field by its JSON type and what it means; `more` are further keywords of JSON Schema."""
    return {"type": kind, "description": description, **more}


def file_field(description: str) -> dict[str, Any]:
    """Describe a field that takes a file."""
    return {**FILE, "description": description}


def object_content(properties: dict[str, Any], required: list[str], one_of: Sequence[str] = ()) -> dict[str, Any]:
    """Describe an object as the content of a body; exactly one field of `one_of` must be sent."""
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if one_of:
        schema["oneOf"] = [{"required": [name]} for name in one_of]
    return {"schema": schema}


NAME_PATTERN = "^[a-z0-9][a-z0-9_-]{0,63}$"
CATEGORY = field(
    "string", "what the pictures show; letters a-z, digits, - and _", pattern=NAME_PATTERN, examples=["dog"]
)


def request_body(content: dict[str, Any]) -> dict[str, Any]:
    """Describe a required body by its content of each media type."""
    return {"requestBody": {"required": True, "content": content}}


def form_body(properties: dict[str, Any], required: list[str], one_of: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a body that is a multipart form."""
    return request_body({"multipart/form-data": object_content(properties, required, one_of)})


def etag_header(description: str) -> dict[str, Any]:
    """Describe the header ETag of a response."""
    return {"ETag": {"description": description, **TEXT}}
