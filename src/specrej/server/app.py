"""The HTTP side of the server, over a `Service`: the application.

    app = make_app(service, model="smollm2", defaults=Settings(), keys=["secret"])
    uvicorn.run(app)

What takes and answers requests for completions is `desk`. What every request goes through, keys and
log among it, is in `guard`; the other endpoints are in `endpoints`.
"""

import time
from collections.abc import Collection, Sequence
from typing import cast

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from specrej.errors import SpecrejError, UsageError
from specrej.memory import format_bytes
from specrej.server import replies
from specrej.server.asked import READERS, Limits
from specrej.server.desk import Desk
from specrej.server.endpoints import add_answering, add_models, add_operations, add_pages, document
from specrej.server.guard import LOOPBACK, Gate, Guard
from specrej.server.lanes import Lanes
from specrej.server.metrics import Meters
from specrej.server.refusals import RefusalError, refusal_of
from specrej.server.score import ScoreDesk
from specrej.server.service import Service
from specrej.settings import Settings
from specrej.version import __version__

_ABOUT = (
    "Many candidate answers are begun, a reward stops the weak ones early, and the best is the "
    "answer."
)


def make_app(
    service: Service,
    *,
    model: str,
    defaults: Settings,
    limits: Limits | None = None,
    keys: Sequence[str] = (),
    hosts: Collection[str] | None = LOOPBACK,
    seed: int | None = None,
    logs_prompts: bool = False,
) -> FastAPI:
    """The application.

    Args:
        service: answers requests; the caller starts and stops it.
        model: what requests call the model.
        defaults: what a request gets that says nothing; its seed does not count.
        limits: the most that a request may ask for.
        keys: API keys, of which a request to /v1 or /metrics needs one; none asks for none.
        hosts: names that the server may be asked by; None: any. Counts only without keys.
        seed: of requests that give none; None draws one for each.
        logs_prompts: whether prompts and answers are written to the log.

    Raises:
        UsageError: a key that cannot be one, or defaults beyond the limits or the memory.
    """
    limits = limits or Limits()
    limits.check(defaults)
    if (defaults.memory_bytes or 0) > service.total_bytes:
        raise UsageError(
            f"the {format_bytes(service.total_bytes)} that requests share does not hold one "
            "request with a memory of "
            f"{defaults.memory}",
            hint="give a total_memory of at least the memory of one request, or a smaller memory",
        )
    app = _without_endpoints()
    meters = Meters(service)
    lanes = Lanes(limits.body_bytes)
    desk = Desk(service, meters, model, defaults, limits, seed, lanes, logs_prompts=logs_prompts)
    scores = ScoreDesk(service, meters, model, limits, lanes)
    for path in READERS:
        add_answering(app, path, desk.answer)
    add_answering(app, "/v1/score", scores.answer)
    own = {name: value for name, value in defaults.to_dict().items() if name != "seed"}
    serving = replies.Serving(reward=service.reward.name.partition(":")[0], defaults=own)
    add_models(app, replies.Model(id=model, created=int(time.time()), specrej=serving))
    add_operations(app, service, meters)
    add_pages(app)
    paths = {
        path for route in app.routes if (path := getattr(route, "path", "{")) and "{" not in path
    }
    app.add_middleware(Guard, gate=Gate(keys, None if keys else hosts), meters=meters, paths=paths)
    return app


def _without_endpoints() -> FastAPI:
    """An application that answers nothing yet: how it is described, and how it refuses."""
    app = FastAPI(
        title="specrej",
        version=__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        # a redirect names the host as the client did, and comes before the path's own rules
        redirect_slashes=False,
    )
    app.exception_handler(RefusalError)(_refuse)
    app.exception_handler(SpecrejError)(_refuse_failure)
    app.exception_handler(HTTPException)(_refuse_path)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


async def _refuse_failure(request: Request, error: Exception) -> Response:
    """What was taken, or nearly, and failed: whatever path it is, and whoever raised it."""
    failure = cast("SpecrejError", error)
    request.scope["entry"].note_failure(failure)
    return refusal_of(failure, {}).response()


async def _refuse(request: Request, error: Exception) -> Response:
    refusal = cast("RefusalError", error)
    request.scope["entry"].fields["error"] = refusal.code
    return refusal.response()


async def _refuse_path(request: Request, error: Exception) -> Response:
    """No such path, or not by this method."""
    raised = cast("HTTPException", error)
    what = f"{request.method} {request.url.path[:100]}"
    code = {404: "not_found", 405: "method_not_allowed"}[raised.status_code]
    return RefusalError(code, f"{what}: {raised.detail}", headers=raised.headers).response()
