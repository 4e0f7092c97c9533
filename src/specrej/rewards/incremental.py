"""One prompt's candidates before a causal classifier: what was read at one decision is not read
again at the next.

    session = IncrementalSession(conversations, prompt_ids, memory_bytes=2**30, batch_size=16)
    # reads of each conversation what follows the token ids that are held of it
    session.score(candidates)
    session.reuse                   # "answers", or what the memory came down to: "prompt", "none"

At each decision the conversations are written out anew and their token ids compared with those
held: the longest common prefix stays, the rest is read. So the ending that a template puts behind
an unfinished answer leaves by itself, a token that grows into another is read again, and a text may
shrink or change.

The memory carries the prompt and all unfinished answers; else the prompt alone, and each decision
reads the answers from their first token; else nothing, and each decision reads everything. What
once did not fit is given up for good.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from specrej.attention.groups import Group
from specrej.attention.layout import PREFILL_CHUNK
from specrej.attention.prefixes import longest_prefix
from specrej.rewards.causal import CausalScorer
from specrej.rewards.labels import weigh
from specrej.rewards.pretrained import naming
from specrej.types import Candidate, Reuse


@dataclass(frozen=True)
class Conversations:
    """What a session needs of its reward to read one prompt's conversations.

    Attributes:
        name: of the reward.
        scorer: reads new tokens.
        weights: of the logits whose sum is the score, by their numbers.
        encode: token ids of each candidate's conversation, up to the one that transformers scores
            at.
        read_whole: scores from transformers' own pass over whole conversations, and the number of
            tokens it took.
    """

    name: str
    scorer: CausalScorer
    weights: Mapping[int, float]
    encode: Callable[[Sequence[Candidate]], list[list[int]]]
    read_whole: Callable[[Sequence[Candidate], list[list[int]]], tuple[list[float], int]]


class _Answer(NamedTuple):
    """A candidate's own tokens, behind the shared prompt."""

    candidate: Candidate
    ids: list[int]


class _Feed(NamedTuple):
    """What a row of a group is fed."""

    row: int
    answer: _Answer
    length: int
    """Own tokens that the row holds already."""

    @property
    def new_ids(self) -> list[int]:
        return self.answer.ids[self.length :]


class IncrementalSession:
    """The scoring of one prompt's candidates, with the KV of prompt and answers kept between
    decisions.

    Attributes:
        num_tokens: tokens fed to the model so far, the prompt once.
        reuse: what is kept between decisions.
        peak_kv_bytes: most KV held at once, copies in the making included; never above
            `memory_bytes`.
    """

    def __init__(
        self,
        conversations: Conversations,
        prompt_ids: Sequence[int],
        *,
        memory_bytes: int,
        batch_size: int,
    ) -> None:
        """Read the part that all conversations begin with, if the memory carries its KV."""
        self.num_tokens = 0
        self.peak_kv_bytes = 0
        self.reuse: Reuse = "none"
        self._conversations = conversations
        self._scorer = conversations.scorer
        self._memory_bytes = memory_bytes
        self._batch_size = batch_size
        self._group: Group | None = None
        self._held: dict[int, list[int]] = {}
        """Own tokens whose KV is in the group's block, by candidate: one entry a row."""
        self._bytes_per_token = self._scorer.layout.bytes_per_token
        if prompt_ids and len(prompt_ids) * self._bytes_per_token <= memory_bytes:
            self.reuse = "answers"
            self._group = self._scorer.prefill(prompt_ids)
            self.num_tokens = len(prompt_ids)
            self._note_peak(self._group)

    @torch.inference_mode()
    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """The chosen logit of each conversation.

        Raises:
            RewardError: the template refuses a conversation, or the model failed; names the
                candidates.
        """
        if not candidates:
            return []
        conversations = self._conversations.encode(candidates)
        if self._group is not None:
            self._cut_prompt(self._group, conversations)
        num_shared = 0 if self._group is None else len(self._group.prompt_ids)
        answers = [
            _Answer(candidate, ids[num_shared:])
            for candidate, ids in zip(candidates, conversations, strict=True)
        ]
        kept, others = self._divide(answers)
        if self._group is None:
            scores, num_tokens = self._conversations.read_whole(candidates, conversations)
            self.num_tokens += num_tokens
            return scores
        by_index = {**self._read_kept(self._group, kept), **self._read_others(self._group, others)}
        self.drop(
            [
                answer.candidate.index
                for answer in kept
                if answer.candidate.finish_reason is not None
            ]
        )
        return [by_index[candidate.index] for candidate in candidates]

    @torch.inference_mode()
    def drop(self, indices: Sequence[int]) -> None:
        """Free what is held of these candidates, now."""
        group, gone = self._group, self._held.keys() & set(indices)
        if group is None or not gone:
            return
        group.remove([row for row, index in enumerate(group.indices) if index in gone])
        for index in gone:
            del self._held[index]
        group.length = max(map(len, self._held.values()), default=0)
        group.fit()
        self._note_peak(group)

    def close(self) -> None:
        """Free what is held."""
        self._group, self._held = None, {}

    def _cut_prompt(self, group: Group, conversations: Sequence[list[int]]) -> None:
        """Keep of the shared part what these conversations begin with; a token to score at is left
        to each.

        An answer's first characters may join the template's last ones in one token.
        """
        num_shared = min(longest_prefix(group.prompt_ids, ids[:-1]) for ids in conversations)
        if num_shared == len(group.prompt_ids):
            return
        self.drop(group.indices)
        group.prompt_ids = group.prompt_ids[:num_shared]
        group.prompt_keys = [keys[:, :num_shared] for keys in group.prompt_keys]
        group.prompt_values = [values[:, :num_shared] for values in group.prompt_values]

    def _divide(self, answers: list[_Answer]) -> tuple[list[_Answer], list[_Answer]]:
        """Answers whose KV is kept, and the others; gives up what does not fit in the memory.

        An answer that has ended is not scored again by a search, so it is kept only if its
        beginning is there already.
        """
        while self._group is not None:
            is_kept = [
                self.reuse == "answers"
                and (candidate.finish_reason is None or candidate.index in self._held)
                for candidate, _ in answers
            ]
            kept = [answer for answer, stays in zip(answers, is_kept, strict=True) if stays]
            others = [answer for answer, stays in zip(answers, is_kept, strict=True) if not stays]
            if self._needed_bytes(self._group, kept, others) <= self._memory_bytes:
                return kept, others
            if self.reuse == "answers":
                self.reuse = "prompt"
                self.drop(self._group.indices)
            else:
                self.reuse = "none"
                self.close()
        return [], answers

    def _needed_bytes(
        self, group: Group, kept: Sequence[_Answer], others: Sequence[_Answer]
    ) -> int:
        """Most KV while the block is made for what is kept, or while the longest of the others
        is read beside it.
        """
        num_rows = len(self._held.keys() | {answer.candidate.index for answer in kept})
        num_slots = max([group.slots, *(len(answer.ids) for answer in kept)])
        longest = max((len(answer.ids) for answer in others), default=0)
        beside = (num_rows * num_slots + longest) * self._bytes_per_token
        return group.prompt_bytes() + max(group.layout.peak_bytes(0, num_rows, num_slots), beside)

    def _read_kept(self, group: Group, answers: Sequence[_Answer]) -> dict[int, float]:
        """Score by candidate, reading what is new into the block."""
        new = [
            answer.candidate.index for answer in answers if answer.candidate.index not in self._held
        ]
        num_slots = max([group.slots, *(len(answer.ids) for answer in answers)])
        if new or num_slots > group.slots:
            group.indices = [*group.indices, *new]
            group.resize(num_slots)
            self._held.update({index: [] for index in new})
            self._note_peak(group)
        rows = {index: row for row, index in enumerate(group.indices)}
        feeds = []
        for answer in answers:
            index = answer.candidate.index
            length = longest_prefix(self._held[index], answer.ids[:-1])
            self._held[index] = answer.ids[:length]
            feeds.append(_Feed(rows[index], answer, length))
        scores = {}
        for batch in _batches(sorted(feeds), self._batch_size):
            scores.update(self._extend(group, batch))
            self._held.update({feed.answer.candidate.index: feed.answer.ids for feed in batch})
        group.length = max(map(len, self._held.values()), default=0)
        return scores

    def _read_others(self, group: Group, answers: Sequence[_Answer]) -> dict[int, float]:
        """Score by candidate, reading answers from their first token into blocks that go at
        once.
        """
        scores: dict[int, float] = {}
        left = sorted(answers, key=lambda answer: -len(answer.ids))
        while left:
            longest = len(left[0].ids)
            affordable = (self._memory_bytes - group.allocated_bytes()) // (
                longest * self._bytes_per_token
            )
            num_rows = max(min(self._batch_size, PREFILL_CHUNK // longest, affordable), 1)
            batch, left = left[:num_rows], left[num_rows:]
            block = replace(group, keys=[], values=[], indices=list(range(len(batch))), length=0)
            block.resize(longest)
            self._note_peak(block, beside=group)
            scores.update(
                self._extend(block, [_Feed(row, answer, 0) for row, answer in enumerate(batch)])
            )
        return scores

    def _extend(self, group: Group, feeds: Sequence[_Feed]) -> dict[int, float]:
        indices = [feed.answer.candidate.index for feed in feeds]
        new_ids = [feed.new_ids for feed in feeds]
        with naming(self._conversations.name, indices):
            logits = self._scorer.extend(
                group, feeds[0].row, [feed.length for feed in feeds], new_ids
            )
        self.num_tokens += sum(map(len, new_ids))
        weights = self._conversations.weights
        return {index: weigh(row, weights) for index, row in zip(indices, logits, strict=True)}

    def _note_peak(self, group: Group, beside: Group | None = None) -> None:
        """Count what this group held at most, and holds beside the block of another one on the
        same prompt.
        """
        others_block = 0 if beside is None else beside.allocated_bytes() - beside.prompt_bytes()
        held = group.allocated_bytes() + others_block
        self.peak_kv_bytes = max(self.peak_kv_bytes, group.peak_bytes, held)


def _batches(feeds: Sequence[_Feed], most_rows: int) -> Iterator[list[_Feed]]:
    """Feeds of neighbouring rows that go in one pass: a chunk of tokens together, or one row
    alone.
    """
    batch: list[_Feed] = []
    num_tokens = 0
    for feed in feeds:
        is_next = bool(batch) and feed.row == batch[-1].row + 1
        if batch and (
            not is_next or len(batch) == most_rows or num_tokens + len(feed.new_ids) > PREFILL_CHUNK
        ):
            yield batch
            batch, num_tokens = [], 0
        batch.append(feed)
        num_tokens += len(feed.new_ids)
    if batch:
        yield batch
