"""OpenAI's response that answers, as a body and as a stream of named events.

    writer = ResponseWriter(asked=asked, id="resp_1", created=0, model="smollm2")
    body = writer.whole(completion)

A response is made of the chat.completion that `answering` makes of the same result, so the two
endpoints say the same of it. What was asked is from `responses`.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specrej.server.asked import Asked
from specrej.server.refusals import RefusalError
from specrej.server.streaming import comment


class ResponseWriter:
    """Implements `specrej.server.streaming.Writer`.

    Args:
        asked: the request.
        id: of the response, `resp_` and a name.
        created: seconds since 1970.
        model: what answers.
    """

    def __init__(self, *, asked: Asked, id: str, created: int, model: str) -> None:
        self.asked = asked
        self.id = id
        self.created = created
        self.model = model
        self._name = id.partition("_")[2]
        self._numbers = itertools.count()
        self._is_open = False
        self._num_before = 0
        """Items of a stream that come before the message."""

    def whole(self, completion: Mapping[str, Any]) -> dict[str, Any]:
        """The response that says what a chat.completion says, of its first choice."""
        [choice] = completion["choices"]
        is_cut = choice["finish_reason"] == "length"
        status = "incomplete" if is_cut else "completed"
        text, thought = choice["message"]["content"], choice["message"].get("reasoning_content")
        message = self._message(status, [_part(text, _logprobs(choice))])
        usage = completion["usage"]
        return {
            **self._response(status),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [*self._thoughts(thought, "completed" if text else status), message],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": usage.get(
                    "completion_tokens_details", {"reasoning_tokens": 0}
                ),
                "total_tokens": usage["total_tokens"],
            },
            "specrej": completion["specrej"],
        }

    def begin(self) -> Iterator[bytes]:
        """The response, which has nothing in it yet."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response("in_progress"))

    def progress(self, payload: Mapping[str, Any]) -> bytes:
        if not self.asked.has_progress:
            return comment(payload)
        return self._event("specrej.progress", progress=payload)

    def text(self, delta: str, place: int, thought: str) -> Iterator[bytes]:
        """A piece of the answer; before the first, what was thought, and what it is a piece of."""
        yield from self._opening(self._thoughts(thought, "completed"))
        yield self._event("response.output_text.delta", **self._place, delta=delta, logprobs=[])

    def end(
        self, completion: Mapping[str, Any], sent: str, whole: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """What is left of the answer, and each thing that it is a part of, whole."""
        response = self.whole(completion)
        *thoughts, message = response["output"]
        [part] = message["content"]
        yield from self._opening(thoughts)
        if rest := part["text"].removeprefix(sent):
            yield from self.text(rest, 0, "")
        said = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self._event("response.output_text.done", **self._place, **said)
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=self._num_before, item=message)
        yield self._event(f"response.{response['status']}", response=response)

    def failure(self, refusal: RefusalError) -> bytes:
        """By OpenAI's name for it; and as in other streams, for which clients look everywhere."""
        error = refusal.body["error"]
        said = {name: error[name] for name in ("code", "message", "param")}
        return self._event("error", **said, error=error)

    def _opening(self, thoughts: Sequence[dict[str, Any]]) -> Iterator[bytes]:
        if self._is_open:
            return
        self._is_open, self._num_before = True, len(thoughts)
        for index, thought in enumerate(thoughts):
            yield from self._told(thought, index)
        item = self._message("in_progress", [])
        yield self._event("response.output_item.added", output_index=self._num_before, item=item)
        yield self._event("response.content_part.added", **self._place, part=_part("", []))

    def _told(self, thought: Mapping[str, Any], index: int) -> Iterator[bytes]:
        """A thought, which comes as one piece."""
        [part] = thought["content"]
        begun = {**thought, "status": "in_progress", "content": []}
        place = {"item_id": thought["id"], "output_index": index, "content_index": 0}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.content_part.added", **place, part={**part, "text": ""})
        yield self._event("response.reasoning_text.delta", **place, delta=part["text"])
        yield self._event("response.reasoning_text.done", **place, text=part["text"])
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=index, item=thought)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": self._num_before, "content_index": 0}

    @property
    def _item(self) -> str:
        return f"msg_{self._name}"

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": next(self._numbers), **fields}
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()

    def _thoughts(self, text: str | None, status: str) -> list[dict[str, Any]]:
        """The item that says what was thought; none where nothing was."""
        if not text:
            return []
        return [
            {
                "id": f"rs_{self._name}",
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": [{"type": "reasoning_text", "text": text}],
            }
        ]

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _response(self, status: str) -> dict[str, Any]:
        """A response without an answer. Fields that a request may not set are as they ever are."""
        settings, repeated = self.asked.request.settings, self.asked.request.repeated
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": repeated.get("instructions"),
            "max_output_tokens": repeated.get("max_output_tokens"),
            "metadata": repeated.get("metadata", {}),
            "model": self.model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "prompt_cache_key": repeated.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": None, **repeated.get("reasoning", {})},
            "safety_identifier": repeated.get("safety_identifier"),
            "service_tier": "default",
            "store": False,
            "temperature": settings.temperature,
            "text": _said(repeated.get("text", {})),
            "tool_choice": "auto",
            "tools": [],
            "top_p": settings.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": repeated.get("user"),
        }


def _said(text: Mapping[str, Any]) -> dict[str, Any]:
    """What the request says of its text; what is null is as it ever is."""
    given = {name: value for name, value in text.items() if value is not None}
    return {"format": {"type": "text"}, **given}


def _part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _logprobs(choice: Mapping[str, Any]) -> list[Any]:
    logprobs = choice["logprobs"]
    return [] if logprobs is None else list(logprobs["content"])
