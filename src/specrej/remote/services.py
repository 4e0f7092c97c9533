"""A service elsewhere: where it is, how it is asked, and its key, which nobody sees.

service = RemoteService(url="http://localhost:8000/score", api_key=key_from("MY_KEY"))
without_secrets("https://user:password@host/score?key=1")           # "https://host/score"
"""

import os
import re
from dataclasses import dataclass, field
from typing import TypedDict

from specrej.errors import UsageError


class ServiceOptions(TypedDict, total=False):
    """The fields of `RemoteService` that have defaults."""

    api_key: str | None
    timeout_s: float
    concurrency: int
    tries: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteService:
    """Where requests go, and how.

    Attributes:
        url: posted to, where a request names no other.
        api_key: sent as a bearer token, never written or shown; None sends none.
        timeout_s: seconds from sending a request to the end of its reply.
        concurrency: most requests at a time.
        tries: how often a request is sent, the first time included, where asking again may help.

    Raises:
        UsageError: a value cannot be honoured.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    concurrency: int = 8
    tries: int = 6

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UsageError(
                "the API key holds characters that no key has", hint="a line break, for example"
            )
        for name, value in (("concurrency", self.concurrency), ("tries", self.tries)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if not self.timeout_s > 0:
            raise UsageError(f"timeout_s must be above 0, got {self.timeout_s}")


def key_from(variable: str) -> str:
    """The API key that an environment variable holds.

    Raises:
        UsageError: it holds none.
    """
    if key := os.environ.get(variable):
        return key
    raise UsageError(
        f"the environment variable {variable!r} holds no API key", hint=f"export {variable}=..."
    )


def without_secrets(url: str) -> str:
    """The URL without credentials and query, to be shown."""
    return re.sub(r"^([^/]*//)?[^/]*@", r"\1", url.partition("?")[0])
