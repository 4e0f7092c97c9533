"""Bodies and headers that no client should send: each gets a refusal that says why, or an answer;
never a 500.

On the fake engine, and in fewer examples on a tiny real one. Whatever status comes is documented
for the path.
"""

import asyncio
import copy
import json
import re
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live import PATIENCE_S, serving

from fakes import FakeEngine, FakeReward
from specrej.engines.torch.loading import wrap
from specrej.search.pool import Pool
from specrej.server.app import make_app
from specrej.server.asked import Limits
from specrej.server.service import Service
from specrej.settings import Settings
from tiny import CHAT_TEMPLATE, EOS_ID, make_model
from vocabularies import KINDS

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSE, SCORE = "/v1/responses", "/v1/score"
ENDS = ("response.completed", "response.incomplete")
PROMPTS = {CHAT: "messages", TEXT: "prompt", RESPONSE: "input", SCORE: "messages"}
DEFAULTS = Settings(n=4, max_new_tokens=8, min_tokens=3, memory=9000)
LIMITS = Limits(body_bytes=2**16, prompt_tokens=250, candidates=16, new_tokens=24)
REFUSALS = range(400, 500)
Done = TypeVar("Done")

MESSAGE = {"role": "user", "content": "Why is the sky blue?"}
COMMON = {
    "model": "bytes",
    "n": 2,
    "max_tokens": 8,
    "temperature": 0.9,
    "top_p": 0.95,
    "seed": 3,
    "stop": ["ab", "é"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "user": "somebody",
    "specrej": {
        "algorithm": "speculative_rejection",
        "n": 5,
        "alpha": 0.5,
        "keep": 2,
        "decide": "every:4",
        "min_tokens": 2,
        "memory": 8000,
        "top_k": 20,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "return": ["rewards", "decisions", "candidates"],
        "progress": True,
        "deadline_s": 60,
    },
}
INPUT_TEXT = {"type": "input_text", "text": "Why?"}
VALID: dict[str, dict[str, Any]] = {
    CHAT: {
        **COMMON,
        "messages": [{"role": "system", "content": "Be brief."}, MESSAGE],
        "logprobs": True,
    },
    TEXT: {**COMMON, "prompt": "Once upon a time"},
    RESPONSE: {
        **{name: value for name, value in COMMON.items() if name not in ("n", "max_tokens")},
        "input": [{**MESSAGE, "type": "message", "id": "m", "content": [INPUT_TEXT]}],
        "instructions": "Be brief.",
        "max_output_tokens": 8,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": None},
        "include": ["message.output_text.logprobs"],
        "metadata": {"job": "7"},
        "store": False,
    },
    SCORE: {"model": "bytes", "messages": [MESSAGE], "answers": ["Air.", "Because."]},
}

NUMBERS = st.sampled_from(
    [0, -0.0, -1, 1, 2**31, 2**63, 2**64, -(2**64), 10**30, 10**400, 1e308, 5e-324, 1e-9, 0.5]
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            "\0",
            "\x7f",
            "\u202e",
            "😀",
            "\ud800",
            "a\udfff",
            "<bos>",
            "x" * 3000,
            "9" * 250,
            "%s%n",
        ]
    ),
    st.sampled_from(
        [
            "auto",
            "1e9GiB",
            "64MiB",
            "-1MiB",
            "every:0",
            "every:" + "9" * 200,
            "at:",
            "at:5,3",
            "NaN",
        ]
    ),
    st.sampled_from(
        ["at:" + "1," * 120, "../../etc/passwd", "os:system", "{{ 7 * 7 }}", "stream", "best_of_n"]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.integers(), st.floats(allow_nan=False), TEXTS
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *(
            "max_completion_tokens",
            "tools",
            "tool_choice",
            "response_format",
            "logit_bias",
            "best_of",
            "echo",
            "suffix",
        ),
        *(
            "top_logprobs",
            "logprobs",
            "presence_penalty",
            "functions",
            "store",
            "reward",
            "__proto__",
            "prompt",
        ),
    ]
)
NEAR: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: NUMBERS | st.integers(1, 30),
    float: NUMBERS | st.floats(0, 2),
    str: TEXTS,
    list: st.lists(SCALARS, max_size=3),
    dict: st.dictionaries(TEXTS, SCALARS, max_size=2),
}


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values in it but the whole."""
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield (*way, key)
        yield from places(inner, (*way, key))


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A path, and a body for it that was valid before some of its values were put otherwise,
    left out or added."""
    path = draw(st.sampled_from([CHAT, TEXT, RESPONSE, SCORE]))
    needed = {"model", "stream", "answers", PROMPTS[path]}
    names = needed | draw(st.sets(st.sampled_from(sorted(VALID[path]))))
    body = {name: copy.deepcopy(value) for name, value in VALID[path].items() if name in names}
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.sampled_from([*sorted(body), *["specrej"] * 5 * (path != SCORE)]))
        ways = [*places(body.get(first), (first,)), (first,)]
        *way, last = ways[draw(st.integers(0, len(ways) - 1))]
        inner: Any = body
        for key in way:
            inner = inner[key]
        kinds = ["near"] * 6 + ["put", "wrap"] + ["leave out", "add"] * isinstance(inner, dict)
        match draw(st.sampled_from(kinds)):
            case "near":
                inner[last] = draw(NEAR.get(type(value_at(inner, last)), SCALARS))
            case "put":
                inner[last] = draw(JSON)
            case "wrap":
                inner[last] = [value_at(inner, last)]
            case "leave out":
                inner.pop(last, None)
            case "add":
                inner[draw(FIELDS | TEXTS)] = draw(JSON)
    return path, body


def value_at(inner: Any, key: Any) -> Any:
    return inner.get(key) if isinstance(inner, dict) else inner[key]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A body whose bytes were cut off, exchanged, doubled or coded otherwise."""
    path, body = draw(mutated())
    words = json.dumps(body, ensure_ascii=draw(st.booleans()))
    coding = draw(
        st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "utf-8-sig", "utf-7"])
    )
    raw = words.encode(coding, "surrogatepass")
    place = draw(st.integers(0, len(raw)))
    own = draw(
        st.binary(max_size=4)
        | st.sampled_from([b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b"\xed\xa0\x80"])
    )
    match draw(st.sampled_from(["cut", "put", "in place", "double", "deep", "twice"])):
        case "cut":
            return path, raw[:place]
        case "put":
            return path, raw[:place] + own + raw[place:]
        case "in place":
            spans = [found.span() for found in re.finditer(rb'(?<=: )[^,{}\[\]"]+', raw)]
            begin, end = draw(st.sampled_from(spans or [(place, place)]))
            return path, raw[:begin] + own + raw[end:]
        case "double":
            return path, raw + raw
        case "deep":
            depth = draw(st.sampled_from([50, 900, 20_000]))
            return path, raw[:1] + b'"user": ' + b"[" * depth + b"]" * depth + b", " + raw[1:]
        case _:
            return path, raw[:-1] + b', "seed": "again", "specrej": {"n": 2, "n": 3}}'


ODD = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *(
                "Content-Type",
                "Authorization",
                "Host",
                "Origin",
                "X-Request-Id",
                "Accept",
                "Content-Encoding",
            ),
            *(
                "Transfer-Encoding",
                "Content-Length",
                "Expect",
                "Range",
                "X-Forwarded-For",
                "Connection",
                "Cookie",
            ),
        ]
    ),
    ODD
    | st.sampled_from(
        [
            "application/json; charset=latin-1",
            "text/plain",
            "multipart/form-data; boundary=x",
            "gzip",
        ]
    )
    | st.sampled_from(
        [
            "Bearer key",
            "Bearer",
            "Basic Og==",
            "[::1",
            "//",
            "http://[",
            "null",
            "-1",
            "1e3",
            "x" * 5000,
        ]
    )
    | st.sampled_from(
        ["application/json", "APPLICATION/JSON;charset=UTF-8", "localhost:1", "http://localhost"]
    ),
    max_size=4,
)


UNDOCUMENTED = ("200", "401", "403", "404", "405", "415")
"""What a path or a method may say that is not in the document: pages, and what is nowhere."""
TOKENIZERS = ("byte_level", "llama2")


class Server:
    """One application for all examples; its event loop runs while something is asked.

    Args:
        engine: decodes.
        factor: by which its KV is larger than the fake one's.
        keys: API keys.
    """

    def __init__(self, engine: Any, factor: int = 1, keys: tuple[str, ...] = ()) -> None:
        self._runner = asyncio.Runner()
        self._factor = factor
        self.engine = engine
        self._service = Service(engine, FakeReward(), Pool(60_000 * factor))
        self._service.start()
        defaults = replace(DEFAULTS, memory=9000 * factor)
        app = make_app(self._service, model="bytes", defaults=defaults, limits=LIMITS, keys=keys)
        self._paths = app.openapi()["paths"]
        transport = httpx.ASGITransport(app)
        self._client = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=20
        )

    def run(self, work: Coroutine[Any, Any, Done]) -> Done:
        return self._runner.run(work)

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        response = self.run(self._client.request(method, path, **how))
        asked = response.request.url.path
        known = self._paths.get(
            "/v1/models/{name}" if asked.startswith("/v1/models/") else asked, {}
        )
        documented = known.get(
            "get" if method == "HEAD" else method.lower(), {"responses": UNDOCUMENTED}
        )
        assert str(response.status_code) in documented["responses"], (method, asked, response.text)
        return response

    def scaled(self, raw: bytes) -> bytes:
        """A body that asks for as much more memory."""
        return raw.replace(b'"memory": 8000', b'"memory": %d' % (8000 * self._factor))

    def close(self) -> None:
        async def end() -> None:
            await self._client.aclose()
            await self._service.stop(0)

        self.run(end())
        self._runner.close()
        assert not self._service.kv_bytes
        assert not self._service.has_failed


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(FakeEngine())
    yield server
    server.close()
    assert not server.engine.groups


@pytest.fixture(scope="module", params=TOKENIZERS)
def real(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A tiny Llama with a tokenizer that cuts characters anywhere, or falls back to bytes."""
    tokenizer = KINDS[request.param](CHAT_TEMPLATE)
    model = make_model("llama", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [EOS_ID]
    server = Server(wrap(model, tokenizer, weights="fp32"), factor=11)
    yield server
    server.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    server = Server(FakeEngine(), keys=("key",))
    yield server
    server.close()


def check(response: httpx.Response, *, has_deadline: bool = False) -> None:
    """An answer, or a refusal in OpenAI's form that shows nothing of the inside."""
    assert re.fullmatch(r"[\w.:-]{1,64}", response.headers["X-Request-Id"])
    if response.status_code == 200:
        if response.headers["content-type"].startswith("text/event-stream"):
            check_stream(response.text)
        return
    # A deadline that leaves no time is kept to.
    assert response.status_code in REFUSALS or (has_deadline and response.status_code == 504), (
        response.text
    )
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    check_error(body["error"])


def check_error(error: dict[str, Any]) -> None:
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) < 1000
    assert isinstance(error["code"], str)
    assert error["type"] in (
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "server_error",
    )
    assert error["param"] is None or isinstance(error["param"], str)
    assert not re.search(r'Traceback|\.py\b|File "|site-packages|0x[0-9a-f]{6}', error["message"])


def check_stream(stream: str) -> None:
    events = [
        line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")
    ]
    last = {} if events[-1] == "[DONE]" else json.loads(events[-1])
    if events[-1] != "[DONE]" and last.get("type") not in ENDS:
        assert last["error"]["code"] in ("deadline", "invalid_value"), last
        check_error(last["error"])


JSON_TYPE = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSE])
def test_what_is_mutated_was_valid(server: Server, real: Server, path: str) -> None:
    for one in (server, real):
        response = one.ask(
            "POST", path, content=one.scaled(json.dumps(VALID[path]).encode()), headers=JSON_TYPE
        )
        check(response)
        last = response.text.rstrip().rpartition("data: ")[2]
        assert last == "[DONE]" or json.loads(last)["type"] in ENDS, response.text


EXAMPLES = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


FEWER = settings(EXAMPLES, max_examples=100)


def ask_with(server: Server, path: str, raw: bytes) -> None:
    response = server.ask("POST", path, content=server.scaled(raw), headers=JSON_TYPE)
    check(response, has_deadline=b"deadline_s" in raw)


@EXAMPLES
@given(mutated())
def test_bodies_with_other_values(server: Server, asked: tuple[str, dict[str, Any]]) -> None:
    ask_with(server, asked[0], json.dumps(asked[1]).encode())


@EXAMPLES
@given(damaged())
def test_bodies_with_other_bytes(server: Server, asked: tuple[str, bytes]) -> None:
    ask_with(server, *asked)


@FEWER
@given(mutated())
def test_bodies_with_other_values_on_a_real_engine(
    real: Server, asked: tuple[str, dict[str, Any]]
) -> None:
    ask_with(real, asked[0], json.dumps(asked[1]).encode())


@FEWER
@given(damaged())
def test_bodies_with_other_bytes_on_a_real_engine(real: Server, asked: tuple[str, bytes]) -> None:
    ask_with(real, *asked)


@settings(EXAMPLES, max_examples=300)
@given(
    st.sampled_from(["POST", "GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"]),
    st.sampled_from(
        [
            CHAT,
            TEXT,
            "/v1/models",
            "/v1/models/",
            "/v1/models/a%2Fb%00",
            "/metrics",
            "/health",
            "/docs",
            "/",
        ]
    )
    | st.from_regex(r"/[!-\"$-~]{0,20}", fullmatch=True),
    HEADERS,
)
def test_paths_methods_and_headers(
    server: Server, guarded: Server, method: str, path: str, headers: dict[str, str]
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    for one in (server, guarded):
        content = (
            json.dumps({"model": "bytes", "prompt": "a"}).encode() if method == "POST" else b""
        )
        url = httpx.URL("http://localhost", raw_path=path.encode())
        response = one.ask(method, url, headers=raw, content=content)  # type: ignore[arg-type]
        if method == "HEAD" or response.status_code in range(300, 400):
            assert response.status_code < 500
        else:
            check(response)


HEAD = b"Host: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
POST = b"POST " + TEXT.encode() + b" HTTP/1.1\r\n" + HEAD


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /health HTTP/1.0\r\n\r\n", 403),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: elsewhere\r\n\r\n", 400),
        (b"GET /\xff\xfe HTTP/1.1\r\n" + HEAD + b"\r\n", 400),
        (b"GET /%ff%00 HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
        (b"GET /../../etc/passwd HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
        (b"GET /page/..%2f..%2fapp.py HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000, 400),
        (b"CONNECT localhost:22 HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
        (POST + b"\r\n", 400),
        (POST + b"Content-Length: -1\r\n\r\n{}", 400),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (POST + b"Content-Length: 1\r\n\r\n{}", 400),
        (POST + b"Content-Length: 99\r\n\r\n{}", None),
        (POST + b"Content-Length: 2\r\n\r\n{}garbage", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n{}", 400),
    ],
)
def test_bytes_that_are_hardly_http(raw: bytes, status: int | None) -> None:
    """On a real connection. What is no HTTP at all is refused by the layer below, in plain text;
    half gets nothing."""

    async def go() -> tuple[bytes, bytes]:
        async with serving(FakeEngine()) as served:
            healthy = b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n"
            return await talk(served.address, raw, is_half=status is None), await talk(
                served.address, healthy
            )

    answer, health = asyncio.run(go())
    assert status_of(answer) == status, answer
    assert status_of(health) == 200, "and it serves the next"


async def talk(address: tuple[str, int], raw: bytes, *, is_half: bool = False) -> bytes:
    """What comes back until the server ends the connection, as it does after each of these; half
    of one ends here."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(raw)
    if is_half:
        writer.write_eof()
    answer = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while piece := await reader.read(2**16):
                answer += piece
    except ConnectionResetError:
        pass
    writer.transport.abort()
    return answer


def status_of(answer: bytes) -> int | None:
    return int(answer.split(b" ", 2)[1]) if answer else None
