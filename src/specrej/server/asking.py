"""A run of `generate` on a server that runs already, which has the model and the reward open.

    result = ask("http://127.0.0.1:8000", "Why is the sky blue?", Settings(n=8), Opening())

The result is that of a run here with the same settings, seed included. No model is opened, and
torch is not imported.
"""

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from specrej.errors import EngineError, UsageError
from specrej.messages import as_messages
from specrej.opening import Opening
from specrej.options import options_of
from specrej.remote.client import Remote, RemoteError
from specrej.remote.services import RemoteService, without_secrets
from specrej.server.constraining import CONSTRAINTS
from specrej.server.protocol import OWN, SAMPLING
from specrej.settings import Settings
from specrej.types import Candidate, Decision, Prompt, Result, Usage

_PATIENCE_S = 3600.0
"""A server has deadlines of its own, which come before."""
_RETURNED = ["candidates", "decisions", "run"]


def ask(
    url: str, prompt: Prompt, settings: Settings, opening: Opening, api_key: str | None = None
) -> Result:
    """Have a server answer a prompt.

    Args:
        url: of `specrej serve`, with or without `/v1`.
        prompt: see `specrej.generate`.
        settings: all of them are sent; those that are None are as the server has them. Where that
            would make another result (`keep`, `max_thinking_tokens`, what answers obey), it is
            refused.
        opening: the model and the reward must be those of the server, and nothing else be given.
        api_key: where the server wants one.

    Raises:
        UsageError: this is no URL, or the server has another model or reward, or does not take
            what is asked for.
        EngineError: no server answers, or it fails.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(
            f"a server's URL begins with http:// or https://, got {without_secrets(url)!r}",
            hint="local is http://127.0.0.1:8000",
        )
    _check(opening, settings)
    base = url.rstrip("/").removesuffix("/v1")
    shown = without_secrets(base)
    path = f"{base}/v1/chat/completions"
    service = RemoteService(url=path, api_key=api_key, timeout_s=_PATIENCE_S, tries=1)
    try:
        with Remote(service) as remote:
            listed = remote.wait(remote.get(f"{base}/v1/models"))
            [model] = json.loads(listed.text)["data"]
            _check_served(shown, model, opening)
            _check_defaults(shown, model["specrej"]["defaults"], settings)
            reply = remote.wait(remote.post(_body(prompt, settings, str(opening.model))))
        return _result(json.loads(reply.text), shown)
    except RemoteError as error:
        raise _failure(shown, error) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EngineError(
            f"what answers at {shown} is no specrej server of this version",
            hint="give the URL that `specrej serve` says it serves at",
        ) from error


def _check(opening: Opening, settings: Settings) -> None:
    """See that nothing is asked for that a server decides by itself."""
    usual = {name: field.default for name, (field, _) in options_of(Opening).items()}
    given = {name: getattr(opening, name) for name in usual if name not in ("model", "reward")}
    given |= {"policy": settings.policy, "strict": settings.strict or None}
    for name, value in given.items():
        if value != usual.get(name):
            raise UsageError(
                f"{name} cannot be given to a server, got {value!r}",
                hint="it is an option of `specrej serve`; leave it out, or leave out --server",
            )


def _check_served(shown: str, model: Mapping[str, Any], opening: Opening) -> None:
    """See that the server has the model and the kind of reward that are asked for."""
    served = {"model": model["id"], "reward": model["specrej"]["reward"]}
    for name, here in served.items():
        asked = str(getattr(opening, name))
        if here not in (asked, asked.partition(":")[0]):
            raise UsageError(
                f"the server at {shown} has the {name} {here!r}, not {asked!r}",
                hint=f"give --{name} {here}, or leave out --server",
            )


def _check_defaults(shown: str, defaults: Mapping[str, Any], settings: Settings) -> None:
    """See that the server puts nothing in the place of what is off here: to a body, null is what
    is left out.
    """
    # What answers obey takes the place of all defaults but `keep`.
    names = ("keep",) if settings.constraint else ("keep", "max_thinking_tokens", *CONSTRAINTS)
    for name in names:
        if getattr(settings, name) is None and (usual := defaults[name]) is not None:
            raise UsageError(
                f"the server at {shown} has {name} {reprlib.repr(usual)} by default, and a request "
                "cannot turn it off",
                hint=f"give --{name.replace('_', '-')}, or leave out --server",
            )


def _body(prompt: Prompt, settings: Settings, model: str) -> dict[str, Any]:
    """The body that asks for a run with these settings, none of them left to the server."""
    given = {name: value for name, value in settings.to_dict().items() if value is not None}
    sampling = {setting: name for name, setting in reversed(SAMPLING.items())}
    return {
        "model": model,
        "messages": [dict(message) for message in as_messages(prompt)],
        **{name: given[setting] for setting, name in sampling.items() if setting in given},
        **({"logprobs": True} if settings.top_logprobs else {}),
        "specrej": {name: given[name] for name in OWN if name in given} | {"return": _RETURNED},
    }


def _result(body: Mapping[str, Any], shown: str) -> Result:
    own = body["specrej"]
    run = own["run"]
    candidates = [_candidate(one) for one in own["candidates"]]
    decisions = [
        Decision(**{**one, "scored": tuple(one["scored"]), "rejected": tuple(one["rejected"])})
        for one in own["decisions"]
    ]
    usage = {name: value for name, value in run["usage"].items() if name != "total_s"}
    return Result(
        best=candidates[run["best"]],
        candidates=tuple(candidates),
        decisions=tuple(decisions),
        usage=Usage(**usage),
        seed=own["seed"],
        settings={**run["settings"], "server": shown},
        versions=run["versions"],
        is_complete=not own["is_late"],
        votes=run["votes"],
    )


def _candidate(given: Mapping[str, Any]) -> Candidate:
    own = {name: given[name] for name in Candidate.__slots__ if name in given}
    rewards = {int(decision): reward for decision, reward in given["rewards"].items()}
    top = [tuple((one, logprob) for one, logprob in place) for place in own.pop("top_logprobs", [])]
    return Candidate(**{**own, "rewards": rewards}, top_logprobs=top)


def _failure(shown: str, error: RemoteError) -> Exception:
    """What a server said, in its words where it has some."""
    try:
        words = json.loads(error.body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        if error.status is None:
            return EngineError(
                f"no server answers at {shown}: {error}",
                hint="`specrej serve` starts one; without --server the model is opened here",
            )
        words = str(error)
    if error.status in (400, 404, 413):
        return UsageError(f"the server at {shown} refuses this: {words}")
    hint = "put its key in SPECREJ_API_KEY" if error.status in (401, 403) else None
    return EngineError(f"the server at {shown} failed: {words}", hint=hint)
