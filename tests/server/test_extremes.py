"""A server and a job on a real model: extreme numbers, and prompts on which it breaks, cost their
own request only.
"""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from live import serving

import specrej
from extremes import EXTREMES
from fakes import FakeReward
from jobs import openai, plain, write_requests
from specrej.batch.description import describe_job
from specrej.batch.job import local_rows, read_all, run_batch
from specrej.batch.output import open_output
from specrej.batch.rows import row_id
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.loading import wrap
from specrej.files.journal import read_rows
from specrej.search.pool import Pool
from specrej.settings import Settings
from specrej.types import GREEDY_NOTE, Continuation
from tiny import make_model, make_tokenizer

DEFAULTS = Settings(n=3, max_new_tokens=24, min_tokens=4, memory="64KiB", seed=1)
TOTAL_BYTES = 2**22
BROKEN = "~"
"""Behind a prompt with this byte the model's logits are NaN."""

OWN = ("top_k", "min_p", "repetition_penalty")
REFUSED: list[dict[str, Any]] = [
    {"temperature": -1e-300},
    {"temperature": 10**400},
    {"top_p": 0},
    {"specrej": {"top_k": 2**31}},
    {"specrej": {"min_p": 1}},
    {"specrej": {"repetition_penalty": 1e-300}},
    {"specrej": {"repetition_penalty": 1e300}},
    {"seed": 2**64},
    {"max_tokens": 10**300},
]


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    model = make_model("llama", tie_word_embeddings=False)
    model.generation_config.eos_token_id = []
    made = wrap(model, make_tokenizer(), weights="fp32")
    [token_id] = made.encode(BROKEN)
    with torch.no_grad():
        model.get_input_embeddings().weight[token_id] = math.nan
    return made


def text_of(engine: TorchEngine, prompt: str, **options: Any) -> str:
    given = {**DEFAULTS.to_dict(), **options}
    return specrej.generate(Continuation(prompt), model=engine, reward=FakeReward(), **given).text


def extremes() -> list[dict[str, Any]]:
    """A body for each extreme value, and some with several."""
    bodies = [
        {"specrej": {name: value}} if name in OWN else {name: value}
        for name, values in EXTREMES.items()
        for value in values
    ]
    return [
        *bodies,
        {"temperature": 1e-38, "top_p": 1e-46},
        {"temperature": 1e308, "specrej": {"top_k": 0}},
    ]


def test_beside_any_numbers_a_request_gets_the_answer_it_gets_alone(engine: TorchEngine) -> None:
    async def go() -> None:
        async with serving(
            engine, FakeReward(), defaults=DEFAULTS, total_bytes=TOTAL_BYTES, in_flight=8
        ) as served:
            ordinary = [
                asyncio.create_task(served.ask({"prompt": f"Question {n}?", "seed": n}))
                for n in range(6)
            ]
            odd = [
                served.ask({"prompt": "Why?", "max_tokens": 6, **body})
                for body in [*extremes(), *REFUSED]
            ]
            broken = [served.ask({"prompt": f"{n}{BROKEN} and on", "seed": n}) for n in range(3)]
            answers = await asyncio.gather(*odd, *broken)
            assert [answer.status_code for answer in answers[: len(extremes())]] == [200] * len(
                extremes()
            )
            assert [answer.status_code for answer in answers[len(extremes()) : -3]] == [400] * len(
                REFUSED
            )
            assert [answer.status_code for answer in answers[-3:]] == [502] * 3
            for body, answer in zip(extremes(), answers, strict=False):
                is_greedy = body.get("temperature", 1) < 1e-5
                assert answer.json()["specrej"].get("note") == (GREEDY_NOTE if is_greedy else None)
            for n, answer in enumerate([await task for task in ordinary]):
                assert answer.json()["choices"][0]["text"] == text_of(
                    engine, f"Question {n}?", seed=n
                )

    asyncio.run(go())
    assert not engine._runs


def test_a_job_goes_on_beside_rows_on_which_the_model_breaks_and_so_does_one_that_is_resumed(
    engine: TorchEngine, tmp_path: Path
) -> None:
    rows = [plain(0), {"id": "broken", "prompt": f"a{BROKEN}b"}, plain(1)]
    for number, body in enumerate(
        [{"temperature": 1e-40}, {"top_p": 1e-46}, {"temperature": 1e300}, *REFUSED], 2
    ):
        row = openai(number, **body)
        rows.append({**row, "url": "/v1/completions"})
        row["body"]["prompt"] = row["body"].pop("messages")[0]["content"]
    source, output = write_requests(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"

    def sit(most: int) -> None:
        requests = read_all(str(source), DEFAULTS, 1, "bytes")
        job = describe_job(requests, DEFAULTS, 1, model="bytes", reward="fake")
        rows_of = local_rows(engine, FakeReward(), Pool(TOTAL_BYTES), 4)
        with open_output(output, job, resume=True) as there:
            ended = run_batch(requests, rows_of, there)
            for _, _ in zip(range(most), ended, strict=False):
                pass
            ended.close()

    sit(len(REFUSED) + 2)
    sit(99)
    written = {row_id(row): row for row in read_rows(output)}
    assert len(written) == len(rows)
    assert written["broken"]["error"]["kind"] == "engine_error"
    failed = {name for name, row in written.items() if row["error"]}
    assert failed == {"broken", *(f"o{number}" for number in range(5, 5 + len(REFUSED)))}
    assert (
        written["p0"]["text"]
        == specrej.generate(
            "Question 0?", model=engine, reward=FakeReward(), **DEFAULTS.to_dict()
        ).text
    )
