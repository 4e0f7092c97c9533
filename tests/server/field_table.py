"""The table of docs/server.md: what becomes of each field of OpenAI's bodies, from what the server
reads.

    python tests/server/field_table.py      # writes it anew
"""

import json
from pathlib import Path
from typing import Any

from specrej.server import asked, protocol, schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "server.md"
HEAD = "| field | chat | text | meaning |\n|---|---|---|---|\n"
HONOURED, LABEL, REFUSED = "honoured", "label", "400"
SHARED = (
    *("frequency_penalty", "logit_bias", "logprobs", "max_tokens", "model", "n"),
    *("presence_penalty", "seed", "stop", "stream", "stream_options", "temperature", "top_p"),
    "user",
)
FIELDS = {
    "chat": {
        *SHARED,
        *("audio", "function_call", "functions", "max_completion_tokens", "messages", "metadata"),
        *("modalities", "moderation", "parallel_tool_calls", "prediction", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention", "reasoning_effort"),
        *("response_format", "safety_identifier", "service_tier", "store", "tool_choice", "tools"),
        *("top_logprobs", "verbosity", "web_search_options"),
    },
    "text": {*SHARED, "best_of", "echo", "prompt", "suffix"},
}
"""Of OpenAI's own bodies, by kind, as its client (3.57) has them."""
PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}
_BODIES: dict[str, Any] = {"chat": schema.ChatRequest, "text": schema.TextRequest}


def honoured(kind: str) -> set[str]:
    return {*protocol._HONOURED[kind], *asked._OURS.fields}


def names() -> list[str]:
    """All fields but our own one, those that OpenAI does not have included."""
    everything = set().union(*FIELDS.values(), *map(honoured, FIELDS), protocol._LABELS)
    return sorted(everything - {"specrej"})


def outcome(kind: str, name: str) -> str:
    """What becomes of a field at an endpoint; empty if neither OpenAI nor the server has it
    there."""
    if name in honoured(kind):
        return HONOURED
    if name in protocol._LABELS:
        return LABEL
    if name not in FIELDS[kind]:
        return ""
    nothing = [f"`{json.dumps(value)}`" for value in protocol._NOTHING.get(name, ())]
    return f"{' or '.join(nothing)}, else {REFUSED}" if nothing else REFUSED


def meaning(name: str) -> str:
    """The words of the OpenAPI document, where an endpoint honours the field."""
    for kind, body in _BODIES.items():
        about = body.model_json_schema()["properties"].get(name, {})
        if name in honoured(kind) and "description" in about:
            return str(about["description"]).replace("|", "\\|")
    return ""


def make() -> str:
    """The table as the document has it."""
    rows = [
        f"| `{name}` | {outcome('chat', name)} | {outcome('text', name)} | {meaning(name)} |\n"
        for name in names()
    ]
    return HEAD + "".join(rows)


def parts() -> tuple[str, str, str]:
    """The document before its table, the table, and the rest."""
    before, head, after = DOCUMENT.read_text(encoding="utf-8").partition(HEAD)
    table, blank, rest = after.partition("\n\n")
    return before, head + table + "\n", blank[1:] + rest


if __name__ == "__main__":
    before, _, rest = parts()
    DOCUMENT.write_text(before + make() + rest, encoding="utf-8")
