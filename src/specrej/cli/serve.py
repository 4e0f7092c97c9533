"""A server: serve."""

import contextlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specrej import api
from specrej.cli.options import (
    check_sharing,
    exit_codes,
    note_policy,
    open_given,
    settings_of,
    stdout_for_results,
    stoppable,
    takes_options,
)
from specrej.errors import EngineError, UsageError
from specrej.memory import parse_bytes
from specrej.messages import as_conversation

if TYPE_CHECKING:
    from socket import socket

    from fastapi import FastAPI

    from specrej.server.asked import Limits
    from specrej.server.service import Service

_KEYS_VARIABLE = "SPECREJ_API_KEYS"
_WHERE: dict[str, Any] = {"rich_help_panel": "Where, and for whom"}
_SIDE_BY_SIDE: dict[str, Any] = {"rich_help_panel": "Side by side"}
_LIMITS: dict[str, Any] = {"rich_help_panel": "What a request may ask for"}

_Host = Annotated[
    str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.", **_WHERE)
]
_Port = Annotated[int, typer.Option(help="0 takes one that is free.", min=0, max=65535, **_WHERE)]
_ApiKey = Annotated[
    list[str],
    typer.Option(
        help=f"A key that lets requests in; may be given again. Better in {_KEYS_VARIABLE}, "
        "separated by commas: a "
        "command line can be read by others. Without keys whoever reaches the server may use it.",
        metavar="KEY",
        **_WHERE,
    ),
]
_LogPrompts = Annotated[
    bool, typer.Option("--log-prompts", help="Write prompts and answers to the log.", **_WHERE)
]
_Grace = Annotated[
    float,
    typer.Option(
        help="Seconds that running requests have to end when the server is stopped.",
        min=0,
        **_WHERE,
    ),
]
_TotalMemory = Annotated[
    str | None,
    typer.Option(
        help="KV of all requests in flight together. By default --memory where it is given, else 8 "
        "default budgets on "
        "a CPU, 80% of a GPU's free memory.",
        metavar="SIZE",
        **_SIDE_BY_SIDE,
    ),
]
_InFlight = Annotated[int, typer.Option(help="Most requests side by side.", min=1, **_SIDE_BY_SIDE)]
_MaxQueue = Annotated[
    int, typer.Option(help="Most requests that wait; others get a 429.", min=0, **_SIDE_BY_SIDE)
]
_RewardTimeout = Annotated[
    float, typer.Option(help="Seconds of patience with one call of the reward.", **_SIDE_BY_SIDE)
]
_Deadline = Annotated[
    float,
    typer.Option(help="Seconds that a request may take, and has if it does not say.", **_LIMITS),
]
_MaxBody = Annotated[str, typer.Option(help="Size of a body.", metavar="SIZE", **_LIMITS)]
_MaxPrompt = Annotated[
    int | None,
    typer.Option(help="Tokens of a prompt; by default as many as the model reads.", **_LIMITS),
]
_MaxCandidates = Annotated[
    int, typer.Option(help="Candidates, or answers, that it asks for by number.", **_LIMITS)
]
_NewTokensLimit = Annotated[
    int | None,
    typer.Option(
        help="Tokens of an answer, as max_tokens; by default as many as the model holds. "
        "(--max-new-tokens is what a request gets that does not say.)",
        **_LIMITS,
    ),
]
_Seed = Annotated[
    int | None,
    typer.Option(
        help="Seed of requests that give none; by default each draws one of its own.",
        rich_help_panel="How tokens are drawn",
    ),
]


@takes_options("stop", "seed", "logit_bias", "top_logprobs")
def serve(
    *,
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    api_key: _ApiKey = [],  # noqa: B006  typer copies it
    log_prompts: _LogPrompts = False,
    grace: _Grace = 30.0,
    total_memory: _TotalMemory = None,
    in_flight: _InFlight = api.IN_FLIGHT,
    max_queue: _MaxQueue = 64,
    reward_timeout: _RewardTimeout = 60.0,
    deadline: _Deadline = 300.0,
    max_body: _MaxBody = "1MiB",
    max_prompt_tokens: _MaxPrompt = None,
    max_candidates: _MaxCandidates = 1024,
    new_tokens_limit: _NewTokensLimit = None,
    seed: _Seed = None,
    **given: Any,
) -> None:
    """Serve OpenAI's endpoints, and a page that shows the race. Ends with exit code 0 on SIGTERM
    and Ctrl-C.
    """
    with exit_codes():
        _check_installed()
        from specrej.server.asked import Limits

        limits = Limits(
            body_bytes=parse_bytes(max_body, "max_body"),
            prompt_tokens=max_prompt_tokens,
            candidates=max_candidates,
            new_tokens=new_tokens_limit,
            deadline_s=deadline,
        )
        shared = {
            "in_flight": in_flight,
            "max_queue": max_queue,
            "reward_timeout_s": reward_timeout,
        }
        own = {"keys": _keys(api_key), "seed": seed, "logs_prompts": log_prompts}
        _serve(host, port, given, total_memory, limits, shared, own, grace_s=grace)


def _serve(
    host: str,
    port: int,
    given: dict[str, Any],
    total_memory: str | None,
    limits: "Limits",
    shared: dict[str, Any],
    own: dict[str, Any],
    *,
    grace_s: float,
) -> None:
    from specrej.search.pool import Pool
    from specrej.search.resolving import sampling_of
    from specrej.server.app import make_app
    from specrej.server.guard import LOOPBACK, check_keys
    from specrej.server.running import bound
    from specrej.server.service import Service

    settings, is_local = settings_of(given), host in LOOPBACK
    check_sharing(settings, total_memory, shared["in_flight"], what="request")
    limits.check(settings)
    check_keys(own["keys"])
    with bound(host, port) as listener, stdout_for_results(), contextlib.ExitStack() as opened:
        with stoppable("the server was not up yet"):
            engine, reward = opened.enter_context(open_given(given, [settings]))
            note_policy(engine, reward, settings)
            if settings.max_thinking_tokens is not None:  # else each chat would be refused
                _ = sampling_of(settings, engine, as_conversation("?"))
            # No request makes it grow.
            pool = Pool(api.open_pool(engine, settings, total_memory).total_bytes)
            service = Service(engine, reward, pool, **shared)
            name = _name_of(given["model"])
            hosts = LOOPBACK if is_local else None
            app = make_app(
                service, model=name, defaults=settings, limits=limits, hosts=hosts, **own
            )
        what = f"{name} with the reward {reward.name} at {_url_of(listener)}"
        if not own["keys"] and not is_local:
            what += "; WITHOUT API KEY: whoever reaches it may use it"
        _run(app, service, listener, what, limits, grace_s, has_texts=own["logs_prompts"])


def _run(
    app: "FastAPI",
    service: "Service",
    listener: "socket",
    what: str,
    limits: "Limits",
    grace_s: float,
    *,
    has_texts: bool,
) -> None:
    """Serve until a signal comes, and say first what is served."""
    import asyncio

    from specrej.server.logs import start_logging
    from specrej.server.running import LEAST_PATIENCE_S, run

    def announce() -> None:
        typer.echo(f"serving {what}", err=True)
        start_logging(has_texts=has_texts)

    patience_s = max(limits.deadline_s, LEAST_PATIENCE_S)
    try:
        asyncio.run(
            run(app, service, listener, grace_s=grace_s, on_ready=announce, patience_s=patience_s)
        )
    except EngineError:
        # Whatever the thread is at, it does not keep the process from ending.
        logging.shutdown()
        os._exit(1)


def _name_of(model: str) -> str:
    """What requests call the model: a directory by its own name."""
    return Path(model).resolve().name if Path(model).exists() else model


def _url_of(listener: "socket") -> str:
    address, number = listener.getsockname()[:2]
    return f"http://[{address}]:{number}" if ":" in address else f"http://{address}:{number}"


def _check_installed() -> None:
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"the server needs {name}, which is not installed",
                hint="pip install 'specrej[server]'",
            )


def _keys(given: list[str]) -> list[str]:
    """API keys of the command line, and of the environment.

    Raises:
        UsageError: the environment has the variable, and no key in it: whoever set it did not mean
            to be open.
    """
    of_environment = os.environ.get(_KEYS_VARIABLE)
    if of_environment is None:
        return given
    keys = [key.strip() for key in of_environment.split(",") if key.strip()]
    if not keys:
        raise UsageError(
            f"{_KEYS_VARIABLE} is set, and holds no key",
            hint="put keys in it, separated by commas, or unset it: then whoever reaches the "
            "server may use it",
        )
    return [*given, *keys]
