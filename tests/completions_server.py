"""A real HTTP server that plays vLLM: /v1/models, /v1/completions, /metrics, by a model that is a
hash.

    with playing() as server:
        server.gives_ids = False                            # from now on it gives text alone
        server.intercept = lambda request: (500, {}, b"")   # or None, where it answers as it would
        ...
    server.requests, server.num_gone  # what it was sent; clients that closed the connection

The next token is a pure function of the tokens so far and of a number that the request's seed and
the token's place in the request give. Its prefix cache holds whole pages, as vLLM's does.
"""

import json
import select
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from servers import Handler, Server
from specrej.engines.streams import uniforms
from tiny import CHAT_TEMPLATE, EOS_ID, VOCABULARY, make_tokenizer

PAGE = 4
BLOCKS = 5000
NAME = "tiny"
TOKENIZER = make_tokenizer(CHAT_TEMPLATE)
PENALTIES = ("frequency_penalty", "presence_penalty")
"""What it refuses unless it is told to ignore it."""
LETTERS = [TOKENIZER(letter)["input_ids"][0] for letter in "aabcde "]
HALVES: list[int] = TOKENIZER("é")["input_ids"]

Reply = tuple[int, dict[str, str], bytes]


class CompletionsServer(Server):
    """Answers as vLLM does, but for what is switched off or tampered with.

    Attributes:
        eos: odds that a token ends its answer.
        key: the API key that it wants.
        refuses: fields that it refuses by name.
        intercept: a reply in place of the true one.
        tamper: changes the true one.
        hangs: whether it lets a request wait until the client has gone.
        num_gone: clients that have.
        num_made: tokens of all completions.
    """

    def __init__(self) -> None:
        super().__init__(lambda answer: json.dumps(answer).encode())
        self.RequestHandlerClass = CompletionsHandler
        self.eos = 0.05
        self.key = ""
        self.takes_ids = self.gives_ids = self.gives_logprobs = self.gives_cached = True
        self.names_ids = self.honours_seed = self.has_completions = self.has_metrics = True
        self.models: list[dict[str, Any]] | None = [
            {"id": NAME, "owned_by": "vllm", "max_model_len": 400}
        ]
        self.takes_penalties = False
        self.usage = 0.0
        self.refuses: set[str] = set()
        self.intercept: Callable[[dict[str, Any]], Reply | None] = lambda request: None
        self.tamper: Callable[[dict[str, Any]], Any] = lambda reply: reply
        self.hangs: Callable[[dict[str, Any]], bool] = lambda request: False
        self.num_gone = self.num_made = 0
        self.answer = self.complete
        self._cached: set[tuple[int, ...]] = set()
        self._entropy = 0

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The requests for a part of an answer: without the probe, and those that only have a
        prompt read."""
        return [request for request in self.requests if request["max_tokens"] > 1]

    def refusal(self, request: dict[str, Any], key: str | None) -> Reply | None:
        if self.key and key != f"Bearer {self.key}":
            return 401, {}, b"no such key"
        if not self.has_completions:
            return 404, {}, b"Not Found"
        if given := self.intercept(request):
            return given
        if isinstance(request["prompt"], list) and not self.takes_ids:
            return 400, {}, b"the prompt must be a string"
        refused = self.refuses | set(() if self.takes_penalties else PENALTIES)
        if unknown := refused & request.keys():
            return 400, {}, f"Unrecognized request argument supplied: {min(unknown)}".encode()
        return None

    def complete(self, request: dict[str, Any]) -> Any:
        """A completion."""
        prompt = request["prompt"]
        ids = (
            prompt
            if isinstance(prompt, list)
            else TOKENIZER(prompt, add_special_tokens=False)["input_ids"]
        )
        with self.lock:
            self._entropy += 1
            seed = request.get("seed", self._entropy) if self.honours_seed else self._entropy
        is_greedy = request["temperature"] == 0
        made = self._continue(
            ids,
            request["max_tokens"],
            None if is_greedy else seed,
            request.get("ignore_eos", False),
            {int(one): bias for one, bias in request.get("logit_bias", {}).items()},
        )
        is_over = bool(made) and made[-1] == EOS_ID and not request.get("ignore_eos")
        choice = {
            "index": 0,
            "text": TOKENIZER.decode(made, skip_special_tokens=True),
            "stop_reason": None,
        }
        choice["finish_reason"] = "stop" if is_over else "length"
        choice["logprobs"] = None
        if self.gives_logprobs and "logprobs" in request:
            choice["logprobs"] = {"token_logprobs": [-1.0 - one % 7 for one in made]}
            if request.get("return_tokens_as_token_ids") and self.names_ids:
                top = [{one, *range(0, 7 * request["logprobs"], 7)} for one in made]
                choice["logprobs"]["top_logprobs"] = [
                    {f"token_id:{one}": -1.0 - one % 7 for one in likely} for likely in top
                ]
        if self.gives_ids and request.get("return_token_ids"):
            choice["token_ids"] = made
        usage: dict[str, Any] = {"prompt_tokens": len(ids), "completion_tokens": len(made)}
        with self.lock:
            self.num_made += len(made)
        num_cached = self._read([*ids, *made[:-1]], len(ids))
        if self.gives_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": num_cached}
        return self.tamper({"object": "text_completion", "choices": [choice], "usage": usage})

    def _continue(
        self,
        ids: list[int],
        num_tokens: int,
        seed: int | None,
        ignores_eos: bool,
        bias: dict[int, float],
    ) -> list[int]:
        """Without a seed it is greedy: what it makes depends on the tokens alone.

        Of a bias it knows that +100 forces a token, and -100 forbids one."""
        made: list[int] = []
        forced = [one for one, added in bias.items() if added == 100]
        letters = [one for one in LETTERS if bias.get(one, 0) > -100]
        for place in range(num_tokens):
            if forced:
                made.append(forced[0])
                continue
            [number] = [0.5] if seed is None else uniforms(seed, [0], place).tolist()
            text = zlib.crc32(",".join(map(str, (*ids, *made))).encode())
            if (ids + made)[-1] == HALVES[0]:
                made.append(HALVES[1])
            elif number < self.eos and not ignores_eos:
                return [*made, EOS_ID]
            elif number > 0.95:
                made.append(HALVES[0])
            else:
                made.append(letters[(text + int(number * 2**16)) % len(letters)])
        return made

    def _read(self, ids: list[int], num_prompt: int) -> int:
        """Tokens of the prompt that were found in the cache, which holds all of these from now
        on."""
        with self.lock:
            pages = range(PAGE, num_prompt, PAGE)  # one token is always read, for its logits
            found = max((page for page in pages if tuple(ids[:page]) in self._cached), default=0)
            self._cached.update(tuple(ids[:page]) for page in range(PAGE, len(ids) + 1, PAGE))
        return found

    def page(self, path: str) -> Reply:
        """What a GET finds."""
        if path == "/v1/models" and self.models is not None:
            return 200, {}, json.dumps({"object": "list", "data": self.models}).encode()
        if path == "/metrics" and self.has_metrics:
            given = f'block_size="{PAGE}",engine="0",num_gpu_blocks="{BLOCKS}"'
            cache = f"vllm:cache_config_info{{{given}}} 1.0\n"
            return (
                200,
                {},
                f'# HELP x\n{cache}vllm:kv_cache_usage_perc{{engine="0"}} {self.usage}\n'.encode(),
            )
        if path == "/version":
            return 200, {}, b'{"version": "0.0.1"}'
        return 404, {}, b"Not Found"


class CompletionsHandler(Handler):
    server: CompletionsServer

    def do_GET(self) -> None:  # noqa: N802  the name that http.server looks for
        is_known = (
            not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}"
        )
        status, headers, body = (
            self.server.page(self.path) if is_known else (401, {}, b"no such key")
        )
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def reply(self, request: dict[str, Any]) -> Reply:
        if self.server.hangs(request):
            select.select([self.connection], [], [], 30)  # readable: the client has closed it
            with self.server.lock:
                self.server.num_gone += 1
            raise ConnectionAbortedError
        return self.server.refusal(request, self.headers["Authorization"]) or super().reply(request)


@contextmanager
def playing() -> Iterator[CompletionsServer]:
    with CompletionsServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


assert max(LETTERS) < VOCABULARY
