"""Rewards of every kind that computes here, against the one list of what a reward must do."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from fakes import FakeReward
from specrej.rewards import as_reward
from specrej.rewards.base import Reward
from specrej.rewards.classifier import ClassifierReward
from specrej.rewards.likelihood import LikelihoodReward
from specrej.rewards.pair_classifier import PairClassifier
from specrej.rewards.pairwise import FunctionComparer, PairwiseReward
from specrej.rewards.process import ProcessReward
from specrej.rewards.reference import ReferenceReward
from specrej.testing import RewardSuite
from tiny import CHAT_TEMPLATE, make_config, make_model, make_tokenizer


def make_causal(auto: Any, num_labels: int) -> Any:
    torch.manual_seed(0)
    return auto.from_config(make_config("llama", num_labels=num_labels)).eval()


def function() -> Reward:
    return as_reward(lambda prompt, texts: [-abs(len(text) - 20.0) for text in texts])


def logprob() -> Reward:
    return as_reward("logprob")


def regex() -> Reward:
    return as_reward("regex:Sleep")


def ensemble() -> Reward:
    return as_reward("ensemble:regex:Sleep*0.5+logprob*0.25")


def pairwise() -> Reward:
    return PairwiseReward(FunctionComparer(lambda prompt, a, b: len(a) / (len(a) + len(b))))


def knockout() -> Reward:
    model = make_causal(transformers.AutoModelForSequenceClassification, 2)
    model.config.pad_token_id = 0
    return PairwiseReward(PairClassifier((model, make_tokenizer())), scheme="knockout")


def classifier() -> Reward:
    model = make_causal(transformers.AutoModelForSequenceClassification, 1)
    model.config.pad_token_id = 0
    return ClassifierReward((model, make_tokenizer(CHAT_TEMPLATE)))


def process() -> Reward:
    model = make_causal(transformers.AutoModelForTokenClassification, 2)
    return ProcessReward((model, make_tokenizer()), reduce="mean")


def reference() -> Reward:
    return ReferenceReward((make_model("llama"), make_tokenizer(CHAT_TEMPLATE)))


def likelihood() -> Reward:
    return LikelihoodReward((make_model("llama"), make_tokenizer(CHAT_TEMPLATE)))


@cache
def relevance() -> Reward:
    return as_reward("relevance")


@pytest.mark.parametrize(
    "make",
    [
        FakeReward,
        function,
        logprob,
        regex,
        ensemble,
        classifier,
        process,
        reference,
        likelihood,
        pairwise,
        knockout,
    ],
)
class TestReward(RewardSuite):
    has_ties = True

    @pytest.fixture
    def reward(self, make: Callable[[], Reward]) -> Reward:
        return make()

    @pytest.fixture
    def opening(self, make: Callable[[], Reward]) -> Callable[[], Reward]:
        return make


@pytest.mark.slow
class TestRelevance(RewardSuite):
    @pytest.fixture
    def reward(self) -> Reward:
        return relevance()

    @pytest.fixture
    def opening(self) -> Callable[[], Reward]:
        return lambda: as_reward("relevance")
