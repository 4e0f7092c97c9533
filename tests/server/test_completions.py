"""/v1/completions as older clients, vLLM's clients and lm-evaluation-harness use it: several
prompts, token ids, echo with log-probabilities.
"""

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from operator import itemgetter
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import SETTINGS, ForgetfulReward, Served, Stalling, connect, serving

from endpoint import fake_service, live
from fakes import BOS, EOS, FakeEngine
from specrej.engines.reading import Likelihood
from specrej.errors import EngineError
from specrej.types import SamplingParams

PROMPTS = ["Why?", "Once upon a time", "é", "Why?"]
Done = TypeVar("Done")


def run(work: Coroutine[Any, Any, Done]) -> Done:
    return asyncio.run(work)


def choices(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices"]
    return found


def ids_of(text: str) -> list[int]:
    return [BOS, *text.encode()]


def streamed(text: str) -> tuple[dict[int, str], dict[str, Any]]:
    """The text of each choice of a stream, and what stands under `specrej` at its end."""
    assert text.endswith("data: [DONE]\n\n"), text
    texts: dict[int, str] = {}
    own: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            own = chunk.get("specrej", own)
            for choice in chunk["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts, own


@pytest.mark.parametrize("as_ids", [False, True])
def test_each_of_several_prompts_is_answered_as_alone(as_ids: bool) -> None:
    async def check() -> None:
        prompts: list[Any] = [ids_of(one) for one in PROMPTS] if as_ids else PROMPTS
        asked = {"n": 2, "seed": 5, "logprobs": 0}
        async with serving(FakeEngine()) as served:
            together = await served.ask({"prompt": prompts, **asked})
            alone = [await served.ask({"prompt": prompt, **asked}) for prompt in prompts]
        wanted = [
            {**choice, "index": 2 * place + choice["index"]}
            for place, one in enumerate(alone)
            for choice in choices(one)
        ]
        assert json.dumps(choices(together)) == json.dumps(wanted)
        bodies = [one.json() for one in alone]
        assert together.json()["usage"] == {
            name: sum(body["usage"][name] for body in bodies) for name in bodies[0]["usage"]
        }
        for own, body in zip(together.json()["specrej"], bodies, strict=True):
            assert {**own, "seconds": 0} == {**body["specrej"], "seconds": 0}

    run(check())


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    async def check() -> None:
        async with serving(FakeEngine()) as served:
            bodies = [
                (await served.ask({"prompt": prompt, "seed": 5})).json()
                for prompt in ("Why?", ["Why?"], ids_of("Why?"), [ids_of("Why?")])
            ]
            for body in bodies:
                body.pop("id"), body.pop("created"), body["specrej"].pop("seconds")
            assert bodies == [bodies[0]] * 4

    run(check())


def test_streams_of_several_prompts_hold_the_same_texts() -> None:
    async def check() -> None:
        for more in ({}, {"echo": True}, {"echo": True, "logprobs": 1, "max_tokens": 0}):
            asked = {"prompt": PROMPTS, "seed": 5, **more}
            async with serving(FakeEngine()) as served:
                whole = await served.ask(asked)
                texts, own = streamed((await served.ask({**asked, "stream": True})).text)
            assert texts == {one["index"]: one["text"] for one in choices(whole)}
            assert len(own) == len(PROMPTS)

    run(check())


def lm_eval_reads(body: dict[str, Any], lengths: list[int]) -> list[tuple[float, bool]]:
    """What lm-evaluation-harness makes of a reply: the sum over the tokens behind a context of this
    length, and whether greedy decoding gives them. It takes the last token for the one answered.
    """
    found = []
    for choice, length in zip(
        sorted(body["choices"], key=itemgetter("index")), lengths, strict=True
    ):
        own = choice["logprobs"]["token_logprobs"][length:-1]
        top = choice["logprobs"]["top_logprobs"][length:-1]
        is_greedy = all(one == max(others.values()) for one, others in zip(own, top, strict=True))
        found.append((sum(own), is_greedy))
    return found


class Telling(FakeEngine):
    """Takes `top_logprobs`, and tells of the drawn token alone."""

    def check_sampling(self, sampling: SamplingParams) -> None:
        super().check_sampling(replace(sampling, top_logprobs=0))


@pytest.mark.parametrize("eos", [0.06, 1.0])
def test_lm_evals_local_completions_reads_likelihoods(eos: float) -> None:
    """Also where the one token that is answered ends the answer, and has no text."""

    async def check() -> None:
        engine = Telling(eos=eos)
        prompts = [ids_of(one) for one in PROMPTS]
        asked = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1234}
        async with serving(engine) as served:
            body = (await served.ask({"prompt": prompts, **asked})).json()
        lengths = [len(ids) - 2 for ids in prompts]
        for (total, _), ids in zip(lm_eval_reads(body, lengths), prompts, strict=True):
            own = [one.logprob for one in engine.prompt_logprobs(ids, 1)]
            assert total == pytest.approx(sum(own[-2:]))
        for choice, ids in zip(body["choices"], prompts, strict=True):
            told = choice["logprobs"]
            assert {len(values) for values in told.values()} == {len(ids) + 1}
            assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
            assert "".join(told["tokens"]) == choice["text"]
            assert told["text_offset"][0] == 0

    run(check())


def test_an_echo_alone_decodes_and_scores_nothing() -> None:
    async def check() -> None:
        engine, reward = FakeEngine(), ForgetfulReward()
        async with serving(engine, reward) as served:
            asked = {"prompt": PROMPTS, "max_tokens": 0, "echo": True}
            bare = choices(await served.ask(asked))
            assert engine.num_readings == 0
            response = await served.ask({**asked, "logprobs": 2})
        assert (engine.num_prefills, engine.num_steps) == (0, 0)
        assert engine.num_readings == len(PROMPTS)
        assert [one["text"] for one in bare] == PROMPTS
        for choice, prompt in zip(choices(response), PROMPTS, strict=True):
            told = choice["logprobs"]
            assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
            assert "".join(told["tokens"]) == prompt
            assert len(told["tokens"]) == len(ids_of(prompt))  # with the BOS, of no text
        assert response.json()["usage"]["completion_tokens"] == 0

    run(check())


def test_one_prompt_that_fails_fails_the_request_and_frees_the_others() -> None:
    class Failing(FakeEngine):
        def open(self, prompt_ids: Any, *given: Any) -> int:
            if len(self.groups) == 2:
                raise EngineError("as asked for")
            return super().open(prompt_ids, *given)

    async def check() -> None:
        async with serving(Failing()) as served:
            for is_streamed in (False, True):
                asked = {"prompt": PROMPTS, "max_tokens": 200, "n": 1, "stream": is_streamed}
                response = await served.ask({**asked, "specrej": {"n": 1, "memory": 7000}})
                assert response.status_code == (200 if is_streamed else 502)
                assert "engine_failed" in response.text
                await served.is_idle()

    run(check())


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_frees_all_its_prompts(is_streamed: bool) -> None:
    async def check() -> None:
        engine = Stalling()
        async with serving(engine) as served:
            body = {"prompt": PROMPTS, "seed": 3, "stream": is_streamed}
            connection = await connect(served, "/v1/completions", body)
            await served.until(engine.is_there.is_set, "it never got there")
            assert len(engine.groups) > 1
            connection.reset()
            engine.go_on.set()
            await served.is_idle()
            assert not engine.groups
            assert (await served.ask({"prompt": "Why?"})).status_code == 200

    run(check())


def test_prompts_count_towards_the_queue() -> None:
    async def check() -> None:
        engine = Stalling()
        async with serving(engine, max_queue=3, in_flight=1) as served:
            first = asyncio.create_task(served.ask({"prompt": "Why?"}))
            await served.until(engine.is_there.is_set, "it never got there")
            waiting = asyncio.create_task(served.ask({"prompt": ["a", "b"]}))
            await served.until(lambda: served.service.num_waiting == 2, "they do not wait")
            for more in ({}, {"echo": True, "logprobs": 0}):
                refused = await served.ask({"prompt": ["c", "d"], **more})
                assert refused.status_code == 429
            many = await served.ask({"prompt": ["a"] * 4})
            assert (many.status_code, many.json()["error"]["param"]) == (400, "prompt")
            engine.go_on.set()
            assert (await first).status_code == (await waiting).status_code == 200

    run(check())


def test_a_reading_that_nobody_waits_for_is_not_done() -> None:
    class Slow(Stalling):
        def prompt_logprobs(self, prompt_ids: Any, num_top: int) -> list[Likelihood]:
            self.is_there.set()
            assert self.go_on.wait(60)
            return super().prompt_logprobs(prompt_ids, num_top)

    async def leave(served: Served, engine: Slow) -> None:
        body = {"prompt": PROMPTS, "echo": True, "logprobs": 1, "max_tokens": 0}
        connection = await connect(served, "/v1/completions", body)
        await served.until(engine.is_there.is_set, "it never got there")
        connection.reset()
        waiting = served.service.readings._waiting
        await served.until(
            lambda: all(reading.future.cancelled() for reading in waiting), "nobody saw it leave"
        )
        engine.go_on.set()
        await served.is_idle()

    async def check() -> None:
        engine = Slow()
        async with serving(engine) as served:
            await leave(served, engine)
        assert engine.num_readings == 1

    run(check())


def test_what_does_not_fit_says_which_prompt() -> None:
    async def check() -> None:
        async with serving(FakeEngine()) as served:
            for bad, reason in (
                ([EOS + 1], r"prompt[1]: the prompt has a token id"),
                ([1] * 1000, r"prompt[1]: the prompt has 1,000 tokens"),
            ):
                refused = await served.ask({"prompt": [[BOS, 65], bad]})
                assert refused.status_code == 400
                assert reason in refused.json()["error"]["message"]
                assert refused.json()["error"]["param"] == "prompt"
            refused = await served.ask({"prompt": "a", "suffix": "b"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")

    run(check())


TOKENS = st.lists(st.integers(-2, 300) | st.just(2**40), max_size=5)
TEXTS = st.text(max_size=5)
FORMS = st.one_of(
    *(TEXTS, TOKENS, st.lists(TEXTS, max_size=4), st.lists(TOKENS, max_size=4)),
    st.lists(st.one_of(TEXTS, TOKENS, st.none(), st.booleans(), st.floats(0, 9)), max_size=3),
)


def test_whatever_prompts_are_they_are_answered_or_refused() -> None:
    with live(fake_service(), defaults=SETTINGS) as url, httpx.Client() as client:

        @settings(deadline=None, max_examples=150)
        @given(
            prompt=FORMS,
            echo=st.booleans(),
            logprobs=st.sampled_from([None, 0, 3]),
            max_tokens=st.sampled_from([0, 1, 9]),
            stream=st.booleans(),
        )
        def check(prompt: Any, **fields: Any) -> None:
            asked = {"model": "bytes", "prompt": prompt, "seed": 1, **fields}
            response = client.post(f"{url}/v1/completions", json=asked)
            assert response.status_code in (200, 400), response.text
            if response.status_code == 200 and not fields["stream"]:
                number = len(prompt) if isinstance(prompt, list) else 1
                several = isinstance(prompt, list) and not isinstance(prompt[0], int)
                assert len(choices(response)) == (number if several else 1)
                usage = response.json()["usage"]
                assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

        check()
