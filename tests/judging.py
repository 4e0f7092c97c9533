"""A judge of any kind, for a server that plays its endpoint: see `servers`.

with serving(lambda answer: answer) as server:
    server.answer = say
"""

import hashlib
import json
from typing import Any

from servers import completion


def say(request: dict[str, Any]) -> bytes:
    """What a judge of any kind replies, by a hash of what it was asked; once in a while nothing
    that can be read.
    """
    if _digest(request)[0] % 8 == 0:
        return completion("I would rather not say.")
    return say_readably(request)


def _digest(request: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(request["messages"]).encode()).digest()


def say_readably(request: dict[str, Any]) -> bytes:
    """The same, but always something: where few are asked, all might say nothing."""
    digest = _digest(request)
    system = request["messages"][0]["content"]
    if request.get("logprobs"):
        top = [
            {"token": "m", "logprob": -digest[1] / 64},
            {"token": "M", "logprob": -digest[2] / 64},
        ]
        choice = {"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": top}]}}
        return json.dumps({"choices": [choice]}).encode()
    if "[[5]]" in system:
        return completion(f"Well. [[{1 + digest[1] % 10}]] or [[3]]")
    if "harmless" in system:
        names = ("helpful", "harmless", "precise")
        scores = [
            dict(zip(names, [1 + d % 4 for d in digest[s : s + 3]], strict=True)) for s in (3, 6)
        ]
        return completion(json.dumps({"A": scores[0], "B": scores[1]}))
    return completion("ABC"[digest[1] % 3])
