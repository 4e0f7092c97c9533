"""The files that a browser gets: the page at /, and /docs, which is made from the OpenAPI document
without a script.

Everything comes from this package: nothing is loaded from elsewhere, and nothing but these files is
served.
"""

import html
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from fastapi.responses import Response

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def page_files() -> dict[str, Response]:
    """The page's files by path; index.html is at /."""
    found = {}
    for file in sorted(
        files("specrej.server").joinpath("page").iterdir(), key=lambda file: file.name
    ):
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            found["/" if file.name == "index.html" else f"/{file.name}"] = _uncached(
                file.read_bytes(), kind
            )
    return found


def docs_page(openapi: Mapping[str, Any]) -> Response:
    """The OpenAPI document as a page to read."""
    return _uncached("".join(_docs(openapi)).encode(), _TYPES["html"])


def _uncached(content: bytes, kind: str) -> Response:
    """A browser asks again each time, so that page and server are of one version."""
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})


def _docs(openapi: Mapping[str, Any]) -> Iterator[str]:
    title = html.escape(f"{openapi['info']['title']} {openapi['info']['version']}")
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark"></head><body>'
    yield (
        f"<h1>{title}</h1><p>{html.escape(openapi['info']['description'])} As a document for "
        "programs: "
    )
    yield '<a href="/openapi.json">openapi.json</a>.</p>'
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            yield (
                f"<h2><code>{method.upper()} "
                f"{html.escape(path)}</code></h2><p>{_words(operation)}</p>"
            )
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                yield f"<p>Body: {_type(schema)}</p>"
            yield "<table border><tr><th>Status</th><th>Meaning</th><th>Body</th></tr>"
            for status, response in operation["responses"].items():
                yield (
                    f"<tr><td>{status}</td><td>{_words(response)}</td><td>{_content(response)}</td></tr>"
                )
            yield "</table>"
    for name, schema in openapi["components"]["schemas"].items():
        yield from _schema(name, schema)
    yield "</body></html>"


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    needed = schema.get("required", [])
    yield f'<h3 id="{html.escape(name)}">{html.escape(name)}</h3><p>{_words(schema)}</p>'
    yield "<table border><tr><th>Field</th><th>Type</th><th></th></tr>"
    for field, about in schema.get("properties", {}).items():
        words = ("Needed. " if field in needed else "") + _words(about)
        yield (
            f"<tr><td><code>{html.escape(field)}</code></td><td>{_type(about)}</td><td>{words}</td></tr>"
        )
    yield "</table>"


def _words(about: Mapping[str, Any]) -> str:
    return html.escape(about.get("description", ""))


def _content(response: Mapping[str, Any]) -> str:
    kinds = response.get("content", {})
    return ", ".join(
        _type(kind["schema"]) if kind.get("schema") else html.escape(name)
        for name, kind in kinds.items()
    )


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return html.escape(" or ".join(map(repr, values)) or schema.get("type", "anything"))
