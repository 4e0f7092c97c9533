"""`specrej serve` under load on loopback: clients that leave, and that talk nonsense. The last line
is one JSON object.

    python benchmarks/server.py  # a tiny model with random weights, about four minutes
    python benchmarks/server.py --model smollm2 --reward relevance --requests 40 --clients 8 --n 8

A real server in a process of its own; every tenth request is malformed, every tenth client leaves
half-way, the others are chats and texts, streamed and not. First all requests come one at a time,
with nobody else there: that gives the texts which the same requests must get under load, and the
seconds that they take alone. Then they come all at once, several times over: the first round warms
up, the memory of the server's process is read after each.

Seconds under load are mostly waiting: a machine that decodes so many tokens a second serves that
many, whoever asks.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

_START_S, _REQUEST_S = 300.0, 300.0
_MALFORMED = (
    b"",
    b"{",
    b"[]",
    b'{"model": "x"}',
    b'{"n": 1e999}',
    b'{"prompt": "\\ud800"}',
    b"\xff",
    b"[" * 50_000,
)


@dataclass
class Round:
    """What came of one pass over the requests. Seconds from the request to what the name says."""

    texts: dict[int, str] = field(default_factory=dict)
    answer_s: dict[int, float] = field(default_factory=dict)
    first_byte_s: list[float] = field(default_factory=list)
    """Of streams' bodies."""
    first_text_s: list[float] = field(default_factory=list)
    """Of streams."""
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_kv_bytes: float = 0.0
    """The most that /metrics showed, asked ten times a second."""
    seconds_to_zero: float = 0.0
    """From the last answer until no KV was reserved."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def make_model(directory: Path) -> None:
    """Save a tiny Llama with random weights, and a tokenizer of one token a byte."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    talk: Any = transformers.utils.logging
    talk.disable_progress_bar()
    specials = ["<bos>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate([*specials, *alphabet])}, merges=[]
        )
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    make: Any = transformers.PreTrainedTokenizerFast
    template = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
    make(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", chat_template=template
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(specials) + len(alphabet),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,  # logits that differ by several nats, as a trained model's do
        bos_token_id=0,
        eos_token_id=1,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    model.save_pretrained(directory)


@contextlib.contextmanager
def serving(arguments: Sequence[str], log: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of a server; its log goes to a file."""
    command = [sys.executable, "-m", "specrej", "serve", "--port", "0", *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        until_s = time.monotonic() + _START_S
        while (
            found := re.search(r"^serving .* at (http://\S+?)(;|$)", log.read_text(), re.MULTILINE)
        ) is None:
            if process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait(60)


def body_of(number: int, given: argparse.Namespace, model: str) -> tuple[str, dict[str, Any]]:
    """A request's path and body."""
    own = {"n": given.n, "decide": given.decide}
    body: dict[str, Any] = {
        "model": model,
        "seed": number,
        "max_tokens": given.max_tokens,
        "specrej": own,
    }
    prompt = f"Question {number}: what is {number % 13} times {number % 7}?"
    if number % 4 >= 2:
        body["stream"] = True
    if number % 2:
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": prompt}]}
    return "/v1/completions", {**body, "prompt": prompt}


async def answered(
    client: httpx.AsyncClient, number: int, path: str, body: dict[str, Any], seen: Round
) -> None:
    """Ask, and keep the text and the seconds."""
    begun, text, raw = time.perf_counter(), "", ""
    async with client.stream("POST", path, json=body) as response:
        seen.statuses[f"asked: {response.status_code}"] += 1
        async for piece in response.aiter_text():
            if "stream" in body and not raw:
                seen.first_byte_s.append(time.perf_counter() - begun)
            raw += piece
            if "stream" in body and not text and (text := streamed_text(raw)):
                seen.first_text_s.append(time.perf_counter() - begun)
    if response.status_code != 200 or ("stream" in body and not raw.endswith("data: [DONE]\n\n")):
        seen.statuses["not answered"] += 1
        say(f"request {number}: {response.status_code} {raw[-300:]}")
        return
    seen.answer_s[number] = time.perf_counter() - begun
    seen.texts[number] = (
        streamed_text(raw)
        if "stream" in body
        else text_in(json.loads(raw)["choices"][0], "message")
    )


def streamed_text(raw: str) -> str:
    """The text in the events that are there whole."""
    whole = raw[: raw.rfind("\n\n")]
    data = [line.removeprefix("data: ") for line in whole.split("\n") if line.startswith("data: {")]
    return "".join(
        text_in(choice, "delta") for event in map(json.loads, data) for choice in event["choices"]
    )


def text_in(choice: dict[str, Any], name: str) -> str:
    return str(choice[name].get("content", "") if name in choice else choice["text"])


async def left(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], alone_s: float, seen: Round
) -> None:
    """Ask, and go: in the middle of a stream, or in half the time that the answer takes alone."""
    if "stream" in body:
        async with client.stream("POST", path, json=body) as response:
            async for _ in response.aiter_raw():
                if response.num_bytes_downloaded > 1000:
                    break
    else:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(alone_s / 2):
                await client.post(path, json=body)
    seen.statuses["left"] += 1


async def refused(client: httpx.AsyncClient, number: int, seen: Round) -> None:
    """Talk nonsense."""
    content = _MALFORMED[number // 10 % len(_MALFORMED)]
    headers = {"Content-Type": "application/json"}
    response = await client.post("/v1/completions", content=content, headers=headers)
    is_told = response.status_code == 400 and set(response.json()["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }
    seen.statuses["malformed, refused" if is_told else f"malformed: {response.status_code}"] += 1


async def metric(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    return float(
        next(line for line in text.splitlines() if line.startswith(f"specrej_{name} ")).split()[1]
    )


async def watch(client: httpx.AsyncClient, seen: Round) -> None:
    while True:
        seen.peak_kv_bytes = max(seen.peak_kv_bytes, await metric(client, "kv_bytes"))
        await asyncio.sleep(0.1)


async def run_round(
    url: str, given: argparse.Namespace, model: str, num_clients: int, quiet: Round | None
) -> Round:
    """All requests once. Without a quiet run before it this is that: nobody leaves, nothing is
    malformed.
    """
    seen, numbers = Round(), iter(range(given.requests))
    most = httpx.Limits(max_connections=num_clients + 1)

    async def one_client() -> None:
        for number in numbers:
            path, body = body_of(number, given, model)
            if quiet is None and number % 10 not in (3, 7):
                await answered(client, number, path, body, seen)
            elif quiet is not None and number % 10 == 7:
                await refused(client, number, seen)
            elif quiet is not None and number % 10 == 3:
                await left(client, path, body, quiet.answer_s[number - 1], seen)
            elif quiet is not None:
                await answered(client, number, path, body, seen)

    async with httpx.AsyncClient(base_url=url, timeout=_REQUEST_S, limits=most) as client:
        watching = asyncio.create_task(watch(client, seen))
        begun = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(num_clients)))
        seen.seconds = time.perf_counter() - begun
        watching.cancel()
        names = ("kv_bytes", "requests_in_flight", "requests_queued")
        while any([await metric(client, name) for name in names]):
            if time.perf_counter() - begun > seen.seconds + 30:
                raise SystemExit("30 s after the last answer the server still holds KV")
            await asyncio.sleep(0.01)
        seen.seconds_to_zero = time.perf_counter() - begun - seen.seconds
    return seen


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    [kib] = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return round(int(kib) / 1024, 1)


def share(values: Sequence[float], part: float) -> float:
    """The value that this part of the values do not exceed."""
    ordered = sorted(values)
    return round(ordered[min(int(part * len(ordered)), len(ordered) - 1)], 4)


def measure(url: str, pid: int, given: argparse.Namespace) -> dict[str, object]:
    """All rounds, and what the JSON line says of them."""
    [opened] = httpx.get(f"{url}/v1/models").json()["data"]
    model = opened["id"]
    quiet = asyncio.run(run_round(url, given, model, 1, None))
    say(f"one at a time: {len(quiet.texts)} answers in {quiet.seconds:.1f} s, {rss_mib(pid)} MiB")
    rounds, memory = [], []
    for number in range(given.rounds + 1):
        seen = asyncio.run(run_round(url, given, model, given.clients, quiet))
        rounds.append(seen)
        memory.append(rss_mib(pid))
        say(
            f"{'warm-up' if number == 0 else f'round {number}'}: "
            f"{given.requests / seen.seconds:.1f} requests/s, "
            f"{dict(seen.statuses)}, zero after {seen.seconds_to_zero:.2f} s, {memory[-1]} MiB"
        )
    measured = rounds[1:]
    texts = list(itertools.chain.from_iterable(seen.texts.items() for seen in measured))
    answers = [seconds for seen in measured for seconds in seen.answer_s.values()]
    return {
        "benchmark": "server",
        "requests_per_s": round(
            given.requests * len(measured) / sum(seen.seconds for seen in measured), 2
        ),
        "answered": len(texts),
        "same_text_as_alone": sum(quiet.texts.get(number) == text for number, text in texts),
        "statuses": dict(sum((seen.statuses for seen in measured), Counter())),
        "answer_s": percentiles(answers),
        "first_byte_of_stream_s": percentiles(
            [second for seen in measured for second in seen.first_byte_s]
        ),
        "first_text_of_stream_s": percentiles(
            [second for seen in measured for second in seen.first_text_s]
        ),
        "answer_alone_s": percentiles(list(quiet.answer_s.values())),
        "seconds_to_zero_kv": round(max(seen.seconds_to_zero for seen in measured), 3),
        "peak_kv_bytes": int(max(seen.peak_kv_bytes for seen in measured)),
        "rss_mib": {"before": memory[0], "after": memory[1:]},
        "settings": vars(given),
        "cores": os.cpu_count(),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {"p50": share(values, 0.5), "p99": share(values, 0.99)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="tiny", help="what serve takes; tiny: made here (default)"
    )
    parser.add_argument("--reward", default="logprob", help="what serve takes (default: logprob)")
    parser.add_argument("--requests", type=int, default=200, help="a round (default: 200)")
    parser.add_argument("--clients", type=int, default=32, help="at a time (default: 32)")
    parser.add_argument(
        "--rounds", type=int, default=6, help="after the one that warms up (default: 6)"
    )
    parser.add_argument("--n", type=int, default=8, help="candidates a request (default: 8)")
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer (default: 48)")
    parser.add_argument("--decide", default="every:12", help="when to decide (default: every:12)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = given.model
        if model == "tiny":
            model = str(Path(directory) / "tiny")
            make_model(Path(model))
        arguments = ["--model", model, "--reward", given.reward, "--weights", "fp32"]
        with serving(arguments, Path(directory) / "log") as (url, pid):
            result = measure(url, pid, given)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
