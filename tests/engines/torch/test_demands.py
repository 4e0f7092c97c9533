"""Memory that prompts share, as measured: what a step may demand, it keeps within."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeReward
from meter import Meter
from specrej.api import prepare, unobserved
from specrej.attention import groups
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.loading import wrap
from specrej.search.pool import Pool
from specrej.search.scheduler import run
from specrej.settings import Settings
from specrej.types import Result, SamplingParams
from tiny import CHAT_TEMPLATE, make_engine, make_ids, make_model, make_tokenizer

EOS_IDS = [50, 100, 150]


@pytest.fixture(autouse=True)
def _small_granule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GRANULE", 8)


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek_v3"])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_step_takes_no_more_than_its_demand(name: str, data: st.DataObject) -> None:
    """Whatever the limit between the least and the wanted, and whoever is dropped on the way."""
    engine = make_engine(make_model(name), EOS_IDS)
    budget = engine.kv_bytes(30, 8, 40)
    live = set(range(8))
    with Meter() as meter:
        prompt = engine.open(make_ids(30), SamplingParams(max_new_tokens=40, top_k=0), budget)
        engine.add(prompt, range(8))
        while live:
            demand = engine.demand(prompt)
            assert (
                engine.memory(prompt).in_use
                <= demand.now
                <= demand.least
                <= demand.wanted
                <= budget
            )
            limit = data.draw(st.integers(demand.least, demand.wanted))
            meter.peak_bytes = 0
            live -= {
                token.candidate for token in engine.step({prompt: limit}) if token.finish_reason
            }
            assert meter.peak_bytes <= limit
            assert engine.demand(prompt).now <= limit
            if len(live) > 1 and data.draw(st.booleans()):
                before = engine.demand(prompt).now
                meter.peak_bytes = 0
                engine.drop(prompt, [max(live)])
                live.remove(max(live))
                assert meter.peak_bytes <= before, "rows that move stay within what was reserved"
        engine.close(prompt)


def make_chat_engine() -> TorchEngine:
    return wrap(make_model("llama"), make_tokenizer(CHAT_TEMPLATE), weights="fp32")


@pytest.mark.parametrize("beginning", ["", "You are a careful assistant. "])
@pytest.mark.parametrize("share", [1.0, 1.7, 3.0])
def test_all_prompts_together_stay_within_the_pool(share: float, beginning: str) -> None:
    engine = make_chat_engine()
    settings_of = [
        Settings(n=10, max_new_tokens=40, decide="every:7", seed=seed, top_k=0) for seed in range(9)
    ]
    one = engine.kv_bytes(40 + len(beginning), 10, 40)
    each = [Settings(**{**given.to_dict(), "memory": one}) for given in settings_of]
    pool = Pool(int(one * share))
    makers = [
        partial(prepare, engine, FakeReward(), f"{beginning}Prompt {'x' * n}", given)
        for n, given in enumerate(each)
    ]
    with Meter() as meter:
        outcomes = dict(run(engine, makers, pool=pool, in_flight=9, observe=unobserved))
        assert all(isinstance(outcome, Result) for outcome in outcomes.values())
        assert meter.peak_bytes <= pool.total_bytes
        assert 0 < pool.peak_bytes <= pool.total_bytes
