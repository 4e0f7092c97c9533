"""The endpoints beside completions: models, health, metrics, the page and the docs.

add_models(app, model)
add_operations(app, service, meters)
add_pages(app)
app.openapi = lambda: document(app)
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response

from specrej.server import replies, schema
from specrej.server.bodies import BODIES
from specrej.server.metrics import CONTENT_TYPE, Meters
from specrej.server.pages import docs_page, page_files
from specrej.server.refusals import CODES, RefusalError
from specrej.server.service import Service

_ANYWHERE = ("unknown_host", "internal")
"""What any path may answer."""
_NEVER = {"/v1/score": ("out_of_memory", "engine_failed")}
"""What a path never says though it reads a body: nothing is decoded for it."""


def add_models(app: FastAPI, model: replies.Model) -> None:
    """The list of models, which has one, and that one."""

    @app.get("/v1/models", responses=schema.errors(*_ANYWHERE, "invalid_api_key"))
    async def list_models() -> replies.ModelList:
        """The model that is served."""
        return replies.ModelList(data=[model])

    @app.get(
        "/v1/models/{name:path}",
        responses=schema.errors(*_ANYWHERE, "invalid_api_key", "model_not_found"),
    )
    async def show_model(name: str) -> replies.Model:
        """The model with this name."""
        if name != model.id:
            raise RefusalError(
                "model_not_found", f"there is no model {name!r} here; there is {model.id!r}"
            )
        return model


def add_answering(
    app: FastAPI, path: str, answer: Callable[[Request], Awaitable[Response]]
) -> None:
    """An endpoint that reads a body, and takes its time to answer."""
    never = {"not_found", "method_not_allowed", *_NEVER.get(path, ())}
    asks, answers = BODIES[path]
    has_stream = "stream" in asks.model_fields
    success: dict[str, Any] = {
        "model": answers,
        "description": "The answers, or with `stream` server-sent events."
        if has_stream
        else "The answer.",
        **({"content": {"text/event-stream": {}}} if has_stream else {}),
    }
    add = app.post(
        path,
        description=(asks.__doc__ or "").partition("\n\n")[0].replace("\n    ", "\n"),
        openapi_extra=schema.body_of(asks),
        responses={200: success, **schema.errors(*(CODES.keys() - never))},
    )
    add(answer)


def add_operations(app: FastAPI, service: Service, meters: Meters) -> None:
    """Health and metrics."""

    @app.get("/health", responses={503: {"model": replies.Health}, **schema.errors(*_ANYWHERE)})
    async def health() -> Response:
        """Whether the server takes requests."""
        if service.has_failed:
            return JSONResponse({"status": "failed"}, 503)
        if service.is_stopping:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", responses=schema.errors(*_ANYWHERE, "invalid_api_key"))
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(meters.render(), media_type=CONTENT_TYPE)


def add_pages(app: FastAPI) -> None:
    """The page at / with its files, and /docs."""

    def returning(response: Response) -> Callable[[], Awaitable[Response]]:
        async def get() -> Response:
            return response

        return get

    for path, response in page_files().items():
        app.get(path, include_in_schema=False)(returning(response))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return docs_page(app.openapi())


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies of requests that only it knows as models."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        asked = [asks for asks, _ in BODIES.values()]
        document["components"]["schemas"] |= schema.request_schemas(asked)
        for methods in document["paths"].values():
            for operation in methods.values():
                operation["responses"].pop(
                    "422", None
                )  # what FastAPI itself would refuse: there is nothing
        app.openapi_schema = json.loads(json.dumps(document))
    return app.openapi_schema
