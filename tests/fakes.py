"""An engine and a reward without a model: exact, fast, and strict about how they are used.

The engine's tokens are bytes; the next one is a pure function of prompt, tokens so far and the
candidate's random number. Its memory behaves like the torch engine's: blocks grow by a granule
within the budget, layer by layer, so that one layer is there twice for a moment; rows of candidates
that ended are held until the next growth or drop. It asserts what engines may take for granted:
nobody is opened twice, stepped after its end, or drawn twice at one position, and what is allocated
never exceeds the budget or what `memory` announced.

    result = specrej.generate("Hello", model=FakeEngine(), reward=FakeReward(), n=8)
"""

import math
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specrej.api import run_one, unobserved
from specrej.attention.layout import Demand, KvLayout
from specrej.engines.base import EXTRA_WAYS, Engine, Memory, Overhead, Token, refuse_ways
from specrej.engines.constraints import refuse_constraint
from specrej.engines.reading import Likelihood
from specrej.engines.streams import uniforms
from specrej.errors import DeviceMemoryError, PromptError
from specrej.flops import AttentionFlops, ModelFlops
from specrej.messages import as_messages
from specrej.rewards import as_reward
from specrej.search.search import Search
from specrej.settings import Settings
from specrej.types import (
    Candidate,
    Continuation,
    FinishReason,
    Message,
    Piece,
    Prompt,
    Result,
    Reuse,
    SamplingParams,
)

BOS, EOS = 256, 257
LETTERS = b"aabcde \xc3"  # the last one begins an "é", of two tokens

LAYERS, LAYER_BYTES = 3, 8
TOKEN_BYTES = LAYERS * LAYER_BYTES
GRANULE = 5
LAYOUT = KvLayout(TOKEN_BYTES, LAYER_BYTES, GRANULE)
FLOPS = ModelFlops(linear=100, head=10, attention=(AttentionFlops(None, 1),), chunk=16)


@dataclass
class Group:
    """One prompt with its candidates. A block has `rows` x `slots` places, of which the live
    candidates fill some."""

    prompt_ids: list[int]
    sampling: SamplingParams
    budget_bytes: int
    rows: int = 0
    slots: int = 0
    peak: int = 0
    latest: int = 0
    """The most while the block was last made."""
    live: list[int] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    drawn: list[int] = field(default_factory=list)
    token_ids: dict[int, list[int]] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Slots of the longest: the newest tokens are fed to the model, which writes their KV."""
        return max((len(self.token_ids[index]) for index in self.live), default=0)

    @property
    def is_short(self) -> bool:
        """Whether the block lacks slots or rows, once there is anything to write."""
        return self.needed > 0 and (self.needed > self.slots or len(self.live) > self.rows)

    @property
    def in_use(self) -> int:
        return len(self.prompt_ids) * TOKEN_BYTES + self.rows * self.slots * TOKEN_BYTES

    def planned_slots(self, limit: int | None = None) -> int:
        """Slots of the block at the next step: a granule more, or as much of it as budget and
        limit hold."""
        if not self.is_short:
            return self.slots
        budget = self.budget_bytes if limit is None else min(limit, self.budget_bytes)
        room = budget - len(self.prompt_ids) * TOKEN_BYTES
        affordable = room // (len(self.live) * (TOKEN_BYTES + LAYER_BYTES))
        most = min(self.slots + GRANULE, self.sampling.max_new_tokens - 1, affordable)
        return max(most, self.needed)

    def next_step(self) -> int:
        most = kv_bytes(len(self.prompt_ids), len(self.live) * self.planned_slots())
        return max(self.in_use, most) if self.is_short else self.in_use

    def demand(self) -> Demand:
        """A block counts with one layer of it twice: rows move."""
        num_prompt = len(self.prompt_ids)
        now = kv_bytes(num_prompt, self.rows * self.slots)
        if not self.is_short:
            return Demand(now, now, now, 0)
        least, wanted = (
            kv_bytes(num_prompt, len(self.live) * n) for n in (self.needed, self.planned_slots())
        )
        return Demand(now, max(now, least), max(now, wanted), 0)

    def reallocate(self, rows: int, slots: int) -> None:
        self.latest = max(self._moments(rows, slots))
        self.peak = max(self.peak, self.latest)
        self.rows, self.slots = rows, slots if rows else 0
        assert self.peak <= self.budget_bytes, (
            f"{self.peak} bytes exceed the budget of {self.budget_bytes}"
        )

    def _moments(self, rows: int, slots: int) -> list[int]:
        """Bytes held at each moment of a reallocation: a new layer beside the old one, which
        goes then."""
        held, new, old = (
            self.in_use,
            rows * slots * LAYER_BYTES,
            self.rows * self.slots * LAYER_BYTES,
        )
        return [
            held,
            *(held + layer * (new - old) + new for layer in range(LAYERS)),
            held + LAYERS * (new - old),
        ]


"""Ways of drawing that the engines and backends without a model refuse."""


class FakeEngine:
    """Implements `specrej.engines.base.Engine`.

    Attributes:
        groups: open prompts by handle; empty when everybody cleaned up.
        num_prefills, num_steps, num_drawn, num_read: what was asked for so far.
        peaks: peak bytes of each prompt that was closed.
        is_shut: whether it was shut down.
    """

    name = "fake"
    layout = LAYOUT
    flops = FLOPS
    capacity_bytes: int | None = None
    most_candidates = 1 << 20
    can_hold_back = True
    has_hidden_states = True
    token_bytes = 1

    def __init__(
        self,
        *,
        eos: float = 0.06,
        context_tokens: int = 400,
        fail_at: Collection[int] = (),
        error: Exception | None = None,
        total_bytes: int | None = None,
    ) -> None:
        """Candidates end with odds `eos` at each token; the steps `fail_at` (the first is 0) raise
        `error`.

        All prompts together never hold more than `total_bytes`, where it is given.
        """
        self.context_tokens = context_tokens
        self.groups: dict[int, Group] = {}
        self.num_prefills = self.num_steps = self.num_drawn = self.num_read = 0
        self.num_readings = 0
        self.peaks: list[int] = []
        self.is_shut = False
        self._eos = eos
        self._fail_at = fail_at
        self._error = error or DeviceMemoryError("as asked for")
        self._total_bytes = total_bytes

    def describe(self) -> Mapping[str, str]:
        return {"engine": self.name, "model": "bytes"}

    def versions(self) -> Mapping[str, str]:
        return {"fake": "1"}

    def encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Continuation) and prompt.token_ids:
            if not all(0 <= one <= EOS for one in prompt.token_ids):
                raise PromptError("the prompt has a token id that is none")
            return list(prompt.token_ids)
        if isinstance(prompt, Continuation) and prompt.suffix:
            raise PromptError("suffix cannot be honoured: bytes have no tokens for it")
        return [BOS, *"\n".join(message["content"] for message in as_messages(prompt)).encode()]

    def prompt_logprobs(self, prompt_ids: Sequence[int], num_top: int) -> list[Likelihood]:
        """By a hash of the tokens up to each; the likeliest are the next `num_top` letters."""
        self.num_readings += 1
        texts = [",".join(map(str, prompt_ids[:end])) for end in range(2, len(prompt_ids) + 1)]
        return [
            Likelihood(
                -1.0 - zlib.crc32(text.encode()) % 1000 / 128,
                tuple((letter, -0.5 - place) for place, letter in enumerate(LETTERS[:num_top])),
            )
            for text in texts
        ]

    def detokenizer(self, prompt: Prompt) -> "ByteReader":
        return ByteReader(prompt, self._note_read)

    def _note_read(self) -> None:
        self.num_read += 1

    def decode(self, token_ids: Sequence[int]) -> str:
        return text_of(token_ids)

    def kv_bytes(self, num_prompt_tokens: int, num_candidates: int, num_new_tokens: int) -> int:
        return kv_bytes(num_prompt_tokens, num_candidates * max(num_new_tokens - 1, 0))

    def default_budget(
        self, num_prompt_tokens: int, max_new_tokens: int, total_bytes: int | None = None
    ) -> int:
        return self.kv_bytes(num_prompt_tokens, 8, max_new_tokens)

    def default_total(self, max_new_tokens: int) -> int:
        return 4 * self.default_budget(20, max_new_tokens)

    def check_sampling(self, sampling: SamplingParams) -> None:
        refuse_ways(self.name, sampling, EXTRA_WAYS)
        refuse_constraint(sampling, self.name, "it draws bytes from a hash")

    def open(self, prompt_ids: Sequence[int], sampling: SamplingParams, budget_bytes: int) -> int:
        handle = self.num_prefills
        self.num_prefills += 1
        self.groups[handle] = Group(list(prompt_ids), sampling, budget_bytes)
        self._reallocate(handle, 0, 0)
        return handle

    def num_shared(self, prompt: int) -> int:
        return 0

    def _reallocate(self, handle: int, rows: int, slots: int) -> None:
        self.groups[handle].reallocate(rows, slots)
        if self._total_bytes is not None:
            held = sum(group.in_use for other, group in self.groups.items() if other != handle)
            assert held + self.groups[handle].latest <= self._total_bytes, (
                "all prompts together hold too much"
            )

    def add(self, prompt: int, indices: Sequence[int]) -> None:
        group = self.groups[prompt]
        assert indices, "nobody to open"
        assert not group.token_ids.keys() & set(indices), "opened twice"
        if not group.live:
            self._reallocate(prompt, 0, 0)
        group.live += indices
        group.token_ids.update({index: [] for index in indices})

    def fork(self, prompt: int, parents: Sequence[int], indices: Sequence[int]) -> None:
        group = self.groups[prompt]
        assert set(parents) <= set(group.live), "a copy of somebody who is not live"
        self.add(prompt, indices)
        for parent, index in zip(parents, indices, strict=True):
            group.token_ids[index] = list(group.token_ids[parent])

    def hold(self, prompt: int, indices: Sequence[int]) -> None:
        group = self.groups[prompt]
        assert set(indices) <= set(group.live), "somebody waits who is not live"
        group.held = set(indices)

    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        self.num_steps += 1
        if self.num_steps - 1 in self._fail_at:
            raise self._error
        given = dict.fromkeys(self.groups) if limits is None else limits
        tokens = [
            token
            for handle, limit in given.items()
            if self.groups[handle].live
            for token in self._grow(handle, limit)
        ]
        assert tokens, "a step without live candidates"
        return tokens

    def _grow(self, handle: int, limit: int | None) -> list[Token]:
        group = self.groups[handle]
        announced, demand = group.next_step(), group.demand()
        assert limit is None or limit >= demand.least, "a step that does not fit"
        if group.is_short:
            self._reallocate(handle, len(group.live), group.planned_slots(limit))
        assert group.in_use <= announced <= group.budget_bytes
        assert limit is None or group.in_use <= min(limit, demand.wanted)
        tokens = []
        group.drawn = [index for index in group.live if index not in group.held]
        lengths = [len(group.token_ids[index]) for index in group.drawn]
        numbers = uniforms(group.sampling.seed, group.drawn, lengths)
        for index, number in zip(group.drawn, numbers.tolist(), strict=True):
            token_ids = group.token_ids[index]
            number = 0.5 if group.sampling.is_greedy else number
            token_id = next_token(group.prompt_ids, token_ids, number, self._eos)
            token_ids.append(token_id)
            reason: FinishReason | None = (
                "length" if len(token_ids) == group.sampling.max_new_tokens else None
            )
            if token_id == EOS and not group.sampling.ignore_eos:
                reason = "eos"
            if reason:
                group.live.remove(index)
            tokens.append(Token(handle, index, token_id, -math.log(2 + token_id % 7), reason))
        self.num_drawn += len(tokens)
        return tokens

    def hidden_states(self, prompt: int) -> dict[int, NDArray[np.float32]]:
        """Two numbers a candidate: how many tokens it has, and the last of them."""
        drawn = self.groups[prompt].drawn
        token_ids = self.groups[prompt].token_ids
        return {
            index: np.array([len(token_ids[index]), token_ids[index][-1]], np.float32)
            for index in drawn
        }

    def overhead(self, prompt: int) -> Overhead:
        return Overhead()

    def memory(self, prompt: int) -> Memory:
        group = self.groups[prompt]
        return Memory(group.in_use, group.next_step(), group.peak)

    def demand(self, prompt: int) -> Demand:
        return self.groups[prompt].demand()

    def drop(self, prompt: int, indices: Sequence[int]) -> None:
        group = self.groups[prompt]
        assert set(indices) <= set(group.live), "dropped somebody who is not live"
        group.live = [index for index in group.live if index not in indices]
        group.held -= set(indices)
        if group.rows > len(group.live):
            self._reallocate(prompt, len(group.live), group.slots)

    def close(self, prompt: int) -> None:
        self.peaks.append(self.groups.pop(prompt).peak)

    def shutdown(self) -> None:
        for prompt in list(self.groups):
            self.close(prompt)
        self.is_shut = True


def kv_bytes(num_prompt_tokens: int, num_slots: int) -> int:
    """The most that a block of so many places can take, while it grows."""
    return num_prompt_tokens * TOKEN_BYTES + num_slots * (TOKEN_BYTES + LAYER_BYTES)


def next_token(
    prompt_ids: Sequence[int], token_ids: Sequence[int], number: float, eos: float
) -> int:
    """The token that follows, from the text so far and one number in [0, 1)."""
    if (*prompt_ids, *token_ids)[-1] == LETTERS[-1]:
        return 0xA9
    if number < eos:
        return EOS
    text = zlib.crc32(",".join(map(str, (*prompt_ids, *token_ids))).encode())
    return LETTERS[(text + int(number * 2**16)) % len(LETTERS)]


class ByteReader:
    """Reads the tokens of one answer; those of a character that is not all there give nothing."""

    def __init__(self, prompt: Prompt = "", note: Callable[[], None] = lambda: None) -> None:
        self._note = note
        self._bytes = getincrementaldecoder("utf-8")("ignore")

    def add(self, token_id: int) -> Piece:
        self._note()
        if token_id >= BOS:
            return Piece("", {BOS: "<bos>", EOS: "<eos>"}[token_id])
        return Piece(self._bytes.decode(bytes([token_id])))


def text_of(token_ids: Sequence[int]) -> str:
    """The text of tokens; a character that is not all there is left out."""
    return bytes(token_id for token_id in token_ids if token_id < BOS).decode(errors="ignore")


def by_hash(text: str) -> float:
    """A score without ties but for equal texts."""
    return float(zlib.crc32(text.encode()) % 1_000_003)


def in_thirds(text: str) -> float:
    """A score of three values."""
    return float(zlib.crc32(text.encode()) % 3)


def alike(text: str) -> float:
    """The same score for all."""
    return 1.0


class FakeReward:
    """Implements `specrej.rewards.base.Reward`: `rate` of each text, one token a character.
    `sessions` are recorded."""

    flops_per_token: float | None = 7.0

    def __init__(self, rate: Callable[[str], float] = by_hash) -> None:
        self.name = rate.__name__
        self.sessions: list[FakeSession] = []
        self.is_closed = False
        self._rate = rate

    def open(self, messages: Sequence[Message]) -> "FakeSession":
        self.sessions.append(FakeSession(self._rate))
        return self.sessions[-1]

    def close(self) -> None:
        assert all(session.is_closed for session in self.sessions), "a session is open"
        self.is_closed = True


@dataclass
class FakeSession:
    """One prompt's scoring: what was scored, who was dropped, whether it was closed (which must
    happen once)."""

    rate: Callable[[str], float]
    num_tokens: int = 0
    reuse: Reuse = "none"
    peak_kv_bytes: int = 0
    scored: list[list[int]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    is_closed: bool = False

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        assert not self.is_closed
        assert not {candidate.index for candidate in candidates} & set(self.dropped), (
            "scored after it was dropped"
        )
        self.scored.append([candidate.index for candidate in candidates])
        self.num_tokens += sum(len(candidate.text) for candidate in candidates)
        return [self.rate(candidate.text) for candidate in candidates]

    def drop(self, indices: Sequence[int]) -> None:
        assert not self.is_closed
        assert not set(indices) & set(self.dropped), "dropped twice"
        self.dropped += indices

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


def watched(
    prompt: Prompt,
    *,
    model: Engine,
    reward: Any,
    observe: Callable[[Search], None] = unobserved,
    **options: Any,
) -> Result:
    """`specrej.generate`, with the running search itself, not its events, shown after each step
    and decision."""
    return run_one(model, as_reward(reward), prompt, Settings(**options), watch=observe)
