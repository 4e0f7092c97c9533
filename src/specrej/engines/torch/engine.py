"""The torch engine: any transformers causal LM, many candidates of many prompts in one forward pass
a step.

Knows tokens, rows and bytes; not rewards and not why a candidate is dropped.

    engine = open_engine("smollm2")                      # loading.py
    prompt = engine.open(ids, SamplingParams(), budget_bytes=2**26)
    engine.add(prompt, range(16))
    tokens = engine.step()
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specrej.attention.attention import DecodePass
from specrej.attention.groups import Group
from specrej.attention.layout import Demand, KvLayout
from specrej.attention.prefixes import PromptPart
from specrej.constraint import Constraint, ThoughtLimit
from specrej.engines.base import PROMPTS_IN_TOTAL, Memory, Overhead, Token, check_bias
from specrej.engines.reading import Likelihood
from specrej.engines.streams import uniforms
from specrej.engines.torch.constraints import Grammars
from specrej.engines.torch.kernels import fused
from specrej.engines.torch.passes import forward, memory_errors, prefill
from specrej.engines.torch.reading import read
from specrej.engines.torch.run import Obeying, Run
from specrej.engines.torch.sampling import (
    LOST,
    begin_history,
    likeliest,
    logsumexp,
    sample,
)
from specrej.engines.torch.thoughts import Thoughts
from specrej.errors import (
    DeviceMemoryError,
    EngineError,
    PromptError,
    SamplingError,
)
from specrej.flops import ModelFlops
from specrej.hub.tokenizers import TextCodec
from specrej.types import Detokenizer, FinishReason, Prompt, SamplingParams

_NOT_FINITE = "the model's logits are not finite (NaN or infinity)"
_NOT_FINITE_HINT = (
    "its weights are broken, or overflow in this precision: try weights or a dtype of more range"
)


class TorchEngine:
    """Decodes groups of candidates with a model whose attention is `group_attention`. See
    `loading.open_engine`.
    """

    name = "torch"
    capacity_bytes: int | None = None
    most_candidates = 1 << 20
    can_hold_back = True
    has_hidden_states = True

    def __init__(
        self,
        model: Any,
        codec: TextCodec,
        *,
        layout: KvLayout,
        flops: ModelFlops,
        eos_ids: frozenset[int],
        context_tokens: int,
        description: Mapping[str, str],
    ) -> None:
        self.model = model
        self.context_tokens = context_tokens
        self._codec = codec
        self.layout = layout
        self.flops = flops
        self._eos_ids = eos_ids
        self._description = dict(description)
        self._device, self._fused = model.device, fused(model.device, model.dtype)
        self._runs: dict[int, Run] = {}
        self._handles = count()
        num_logits = model.config.get_text_config().vocab_size
        self._num_logits = num_logits
        self._grammars = Grammars(codec.tokenizer, num_logits, eos_ids)

    def describe(self) -> Mapping[str, str]:
        return self._description

    def versions(self) -> Mapping[str, str]:
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": metadata.version("transformers"),
        }

    @property
    def token_bytes(self) -> int:
        return self._codec.token_bytes

    def encode(self, prompt: Prompt) -> list[int]:
        return self._codec.encode(prompt)

    def detokenizer(self, prompt: Prompt) -> Detokenizer:
        return self._codec.detokenizer(prompt)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._codec.decode(token_ids)

    def kv_bytes(self, num_prompt_tokens: int, num_candidates: int, num_new_tokens: int) -> int:
        # The last token of an answer is never fed back, so its KV is never made.
        return self.layout.peak_bytes(num_prompt_tokens, num_candidates, max(num_new_tokens - 1, 0))

    def default_budget(
        self, num_prompt_tokens: int, max_new_tokens: int, total_bytes: int | None = None
    ) -> int:
        """On a CPU room for 8 full-length candidates; on a GPU 80% of what is free now, or an
        eighth of the total.
        """
        if self._device.type == "cuda":
            return (
                self.default_total(max_new_tokens)
                if total_bytes is None
                else total_bytes // PROMPTS_IN_TOTAL
            )
        return self.kv_bytes(num_prompt_tokens, 8, max_new_tokens)

    def default_total(self, max_new_tokens: int) -> int:
        """On a CPU eight default budgets with prompts of 1,024 tokens; on a GPU 80% of the
        memory that is free now.
        """
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            return int(free * 0.8)
        return self.default_budget(1024, max_new_tokens) * PROMPTS_IN_TOTAL

    def check_sampling(self, sampling: SamplingParams) -> None:
        check_bias(sampling, self._num_logits)
        if sampling.constraint is not None:
            self._begin_obeying(sampling.constraint, 0)

    def _begin_obeying(self, constraint: Constraint | ThoughtLimit, num_rows: int) -> Obeying:
        """So many rows at the beginning of their answers."""
        if isinstance(constraint, ThoughtLimit):
            return Thoughts(constraint, self._codec, num_rows, self._num_logits, self._device)
        return self._grammars.start(constraint, num_rows, self._device)

    def prompt_logprobs(self, prompt_ids: Sequence[int], num_top: int) -> list[Likelihood]:
        self._check_known(prompt_ids)
        group = Group(list(prompt_ids), 0, self.layout, 1)
        with memory_errors():
            return read(self.model, group, self._device, num_top)

    def _check_known(self, prompt_ids: Sequence[int]) -> None:
        num_known = len(self.model.get_input_embeddings().weight)
        if max(prompt_ids) >= num_known:  # looked up on a GPU, it would end the process
            raise PromptError(
                f"the prompt has the token {max(prompt_ids)}, the model knows those below "
                f"{num_known}",
                hint="the tokenizer does not fit the model",
            )

    @torch.inference_mode()
    def open(self, prompt_ids: Sequence[int], sampling: SamplingParams, budget_bytes: int) -> int:
        self._check_known(prompt_ids)
        group = Group(
            list(prompt_ids), budget_bytes, self.layout, max(sampling.max_new_tokens - 1, 1)
        )
        with memory_errors():
            group.share(run.group for run in self._runs.values())
            logits, hidden = prefill(self.model, group, self._device)
        # Found here, before another prompt can share KV that holds NaN.
        if not logsumexp(logits).isfinite().all():
            raise EngineError(f"after the prompt {_NOT_FINITE}", hint=_NOT_FINITE_HINT)
        handle = next(self._handles)
        newest = torch.empty(0, 1, dtype=torch.long, device=self._device)
        self._runs[handle] = Run(group, sampling, logits, hidden, newest)
        self._settle()
        return handle

    def num_shared(self, prompt: int) -> int:
        return self._runs[prompt].group.start

    def _settle(self) -> None:
        """Of the prompts that hold a part together, the one opened last answers for it."""
        answered_for: set[PromptPart] = set()
        for run in reversed(self._runs.values()):
            *shared, _ = run.group.parts()
            run.group.shared_bytes = sum(
                part.part_bytes() for part in shared if part in answered_for
            )
            answered_for.update(shared)

    @torch.inference_mode()
    def add(self, prompt: int, indices: Sequence[int]) -> None:
        run, num_new = self._runs[prompt], len(indices)
        run.group.indices += indices
        run.lengths += [0] * num_new
        run.newest = torch.cat([run.newest, run.newest.new_zeros(num_new, 1)])
        width = run.logits.shape[-1]
        new = begin_history(run.sampling, run.group.prompt_ids, num_new, width, self._device)
        run.history = run.history.joined(new)
        if (constraint := run.sampling.constraint) is not None:
            begun = self._begin_obeying(constraint, num_new)
            beside = run.obeying if len(run.lengths) > num_new else None
            run.obeying = begun if beside is None else beside.joined(begun)

    @torch.inference_mode()
    def fork(self, prompt: int, parents: Sequence[int], indices: Sequence[int]) -> None:
        run = self._runs[prompt]
        rows = [run.group.indices.index(parent) for parent in parents]
        for row, parent, index in zip(rows, parents, indices, strict=True):
            if run.lengths[row]:
                run.group.fork(parent, index)
            else:
                run.group.indices.append(index)
        run.take_rows([*range(len(run.lengths)), *rows])

    def hold(self, prompt: int, indices: Sequence[int]) -> None:
        self._runs[prompt].held = set(indices)

    @torch.inference_mode()
    def step(self, limits: Mapping[int, int] | None = None) -> list[Token]:
        runs = {handle: self._runs[handle] for handle in (self._runs if limits is None else limits)}
        live = {handle: run for handle, run in runs.items() if run.plan_step()}
        with memory_errors():
            fed = {handle: run for handle, run in live.items() if run.num_fed}
            for handle, run in fed.items():
                run.group.reserve(None if limits is None else limits[handle])
            outputs = self._feed(list(fed.values()))
            drawn = [
                self._draw(run, next(outputs) if run.num_fed else None) for run in live.values()
            ]
        tokens = []
        for (handle, run), (ids, logprobs) in zip(live.items(), drawn, strict=True):
            tokens += self._advance(handle, run, ids, logprobs)
        return tokens

    def _feed(self, runs: list[Run]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `[rows, vocabulary]` and last hidden states of the rows of each run that are fed,
        from one pass.
        """
        if not runs:
            return iter(())
        positions = [position for run in runs for position in run.positions()]
        apart = {place: run.apart() for place, run in enumerate(runs) if not run.is_even}
        logits, hidden = forward(
            self.model,
            torch.cat([run.fed_ids() for run in runs]),
            torch.tensor(positions, device=self._device)[:, None],
            DecodePass([run.group for run in runs], apart, self._fused),
        )
        sizes = [run.num_fed for run in runs]
        return zip(torch.split(logits, sizes), torch.split(hidden, sizes), strict=True)

    def _draw(self, run: Run, fed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """A token for each row that steps; `fed` are logits and states of those that were fed."""
        rows, num_fresh = run.rows, len(run.rows) - run.num_fed
        first = run.logits, run.prompt_hidden
        if fed is not None and num_fresh:
            logits, hidden = (
                torch.cat([own, shared.expand(num_fresh, -1)])
                for own, shared in zip(fed, first, strict=True)
            )
        else:
            logits, hidden = fed or first
        run.drawn, run.hidden = tuple(run.group.indices[row] for row in rows), hidden
        numbers = uniforms(run.sampling.seed, run.drawn, [run.lengths[row] for row in rows])
        if run.sampling.top_logprobs:
            top = likeliest(logits, run.sampling.top_logprobs)
            run.top = [*top] * (len(run.drawn) // len(top))  # all first tokens come from one row
        allowed = None if run.obeying is None else run.obeying.allowed(rows)
        history = run.history if run.is_whole else run.history.of_rows(rows)
        drawn_by = torch.from_numpy(numbers).to(self._device)
        return sample(logits, run.sampling, drawn_by, history, allowed)

    def _advance(self, handle: int, run: Run, ids: Tensor, logprobs: Tensor) -> list[Token]:
        """Write one drawn token a row that steps; rows that ended leave the group."""
        rows = run.rows
        if run.is_whole:
            run.newest = ids[:, None]
        else:
            run.newest[rows] = ids[:, None]
        run.history.add(ids[:, None], rows)  # rows that are lost leave below
        tops = run.top or [None] * len(rows)
        drawn = ids.tolist()
        if run.obeying is not None:
            run.obeying.take(drawn, rows)
        tokens = []
        for row, token_id, logprob, top in zip(rows, drawn, logprobs.tolist(), tops, strict=True):
            index = run.group.indices[row]
            run.lengths[row] += 1
            if token_id == LOST:
                failure = run.obeying.failure(row) if run.obeying else None
                tokens.append(_lost(handle, index, failure))
            else:
                reason = self._finish_reason(run, row, token_id)
                tokens.append(Token(handle, index, token_id, logprob, reason, "", top))
        run.settle()
        pairs = zip(rows, tokens, strict=True)
        self._remove(run, [row for row, token in pairs if token.finish_reason])
        return tokens

    def _finish_reason(self, run: Run, row: int, token_id: int) -> FinishReason | None:
        if token_id in self._eos_ids and not run.sampling.ignore_eos:
            return "eos"
        return "length" if run.lengths[row] == run.sampling.max_new_tokens else None

    def _remove(self, run: Run, rows: Sequence[int]) -> None:
        if rows:
            run.take_rows(run.group.remove(rows))
            run.settle()

    def hidden_states(self, prompt: int) -> Mapping[int, NDArray[np.float32]]:
        run = self._runs[prompt]
        if run.hidden is None:
            return {}
        states = run.hidden.expand(len(run.drawn), -1).float().cpu().numpy()
        return dict(zip(run.drawn, states, strict=True))

    def overhead(self, prompt: int) -> Overhead:
        return Overhead()

    def memory(self, prompt: int) -> Memory:
        run = self._runs[prompt]
        in_use = run.group.allocated_bytes()
        # The first tokens are drawn from the prompt's logits, so they need no KV.
        next_step = run.group.next_step_bytes() if any(run.lengths) else in_use
        return Memory(in_use, next_step, max(run.group.peak_bytes, in_use))

    def demand(self, prompt: int) -> Demand:
        run = self._runs[prompt]
        demand = run.group.demand()
        return demand if any(run.lengths) else demand._replace(least=demand.now, wanted=demand.now)

    @torch.inference_mode()
    def drop(self, prompt: int, indices: Sequence[int]) -> None:
        run, gone = self._runs[prompt], set(indices)
        self._remove(run, [row for row, index in enumerate(run.group.indices) if index in gone])
        # Where there is no room for the copy, the block stays as it is until it grows.
        with suppress(DeviceMemoryError), memory_errors():
            run.group.fit()

    def close(self, prompt: int) -> None:
        del self._runs[prompt]
        self._settle()

    def shutdown(self) -> None:
        """Let go of prompts and model; a GPU has its memory back where nobody else holds the
        model.
        """
        self._runs.clear()
        self.model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _lost(handle: int, index: int, cause: SamplingError | None) -> Token:
    """In place of a token that could not be drawn; the cause is the candidate's constraint's."""
    why = f"its constraint cannot be followed any further: {cause}" if cause else _NOT_FINITE
    return Token(handle, index, LOST, None, "lost", why, cause=cause)
