"""vLLM in this process, by its public interfaces: one request and one seed a candidate.

    engine = open_engine("org/model", engine="vllm", engine_args={"tensor_parallel_size": 4})

Nothing is decoded while we score: vLLM steps when it is told to. Decisions come before its cache is
full (see `paged`), so that it never has to preempt; that it did not is counted. Candidates share
the full blocks of the prompt through the prefix cache. All of vLLM's engine arguments pass through,
but for those that decide how we drive it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specrej.constraint import Constraint, ThoughtLimit
from specrej.engines.backend import Drawn
from specrej.engines.base import check_bias
from specrej.engines.constraints import checked, refuse_constraint, spaced
from specrej.engines.opening import EngineOptions
from specrej.engines.paged import PagedEngine
from specrej.engines.vllm_process import (
    check_arguments,
    defaults,
    end,
    hold,
    import_vllm,
    is_cpu,
    kv_bytes_per_token,
    quiet,
)
from specrej.errors import EngineError, ModelError, SamplingError
from specrej.flops import flops_of_config
from specrej.hub.sources import first_line, load_codec, locate_model
from specrej.types import FinishReason, SamplingParams, TopLogprobs

_OURS = {
    "model": "it is the model",
    "enable_prefix_caching": "candidates share the prompt through it",
    "async_scheduling": "it would decode beyond a decision",
    "disable_log_stats": "KV use and preemptions are read from the statistics",
    "logprobs_mode": "log-probabilities are the model's, before temperature and filters",
    "structured_outputs_config": "what answers obey means the same on all engines",
    "runner": "an engine generates; a reward model is given as the reward",
}
_CPU_KV_BYTES = 2**31
_COMMON = {
    # Layers with a window would be counted in blocks of their own, which our arithmetic does not
    # know.
    "disable_hybrid_kv_cache_manager": True,
    "max_num_seqs": 1024,
}
# A request with a seed whose prompt is read in pieces fails on a CPU ("CPU Generator does not use
# offset").
_ON_A_CPU = {"max_num_batched_tokens": 65_536}


def open_as_asked(model: str | Path, options: EngineOptions) -> PagedEngine:
    """See `specrej.engines.opening`.

    Raises:
        UsageError: vLLM is not installed, in another version, or takes no such argument.
        ModelError: vLLM cannot open the model.
        SamplingError: it cannot draw tokens as it must.
    """
    options.refuse("vllm", "weights", "device")
    versions = import_vllm()
    for sampling in options.must_draw:
        _sampling_params(sampling, seed=0)
    source = locate_model(model)
    backend = VllmBackend(source, options.arguments, str(model), versions)
    config = backend.config
    return PagedEngine(
        backend,
        load_codec(source, options.special_tokens),
        bytes_per_token=kv_bytes_per_token(config),
        flops=flops_of_config(
            config.model_config.hf_text_config, config.scheduler_config.max_num_batched_tokens
        ),
        context_tokens=config.model_config.max_model_len,
    )


class VllmBackend:
    """Implements `specrej.engines.backend.Backend` with an `LLMEngine`.

    Args:
        source: a directory or an id.
        arguments: of vLLM's `EngineArgs`, beside ours.
        name: what the user calls the model.
        versions: of what computes.

    Raises:
        UsageError: an argument that vLLM does not have, or that is ours to set.
        ModelError: vLLM cannot open the model.
    """

    name = "vllm"
    seed_bits = 63

    def __init__(
        self, source: str, arguments: Mapping[str, Any], name: str, versions: Mapping[str, str]
    ) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._name, self._versions = name, versions
        self.is_on_cpu = is_cpu()
        check_arguments(arguments, _OURS)
        given = {
            **defaults(_CPU_KV_BYTES),
            **_COMMON,
            **(_ON_A_CPU if self.is_on_cpu else {}),
            **arguments,
        }
        self._gauge = _make_gauge()
        ours = {
            "enable_prefix_caching": True,
            "async_scheduling": False,
            "disable_log_stats": False,
            "structured_outputs_config": {"backend": "guidance"},
        }
        try:
            with quiet():
                self._engine = LLMEngine.from_engine_args(
                    EngineArgs(model=source, **ours, **given),
                    stat_loggers=[lambda _config, _index: self._gauge],
                )
        except Exception as error:  # whatever vLLM, torch or a broken file says
            raise ModelError(
                f"vLLM cannot open {name!r}: {first_line(error)}",
                hint="see its supported models and engine arguments; more is in its log: "
                "VLLM_LOGGING_LEVEL=INFO",
            ) from error
        hold(self._engine)
        self.config = self._engine.vllm_config
        self.page_tokens: int = self.config.cache_config.block_size
        self.num_pages: int = (
            self.config.cache_config.num_gpu_blocks - 1
        )  # one of them stands for nothing
        self.most_requests: int = self.config.scheduler_config.max_num_seqs
        self._is_new: set[int] = set()
        self._num_top: dict[int, int] = {}
        """How many likeliest tokens are asked for, by key, where any are."""

    def describe(self) -> Mapping[str, str]:
        model, cache = self.config.model_config, self.config.cache_config
        return {
            "model": self._name,
            "device": "cpu" if self.is_on_cpu else self.config.device_config.device_type,
            "weights": str(model.dtype).removeprefix("torch."),
            "kv_cache": f"{cache.num_gpu_blocks} blocks of {cache.block_size} tokens, "
            f"{cache.cache_dtype}",
        }

    def versions(self) -> Mapping[str, str]:
        return self._versions

    def check_sampling(self, sampling: SamplingParams) -> None:
        check_bias(sampling, self.config.model_config.get_vocab_size())
        if isinstance(sampling.constraint, ThoughtLimit):
            refuse_constraint(sampling, self.name, "vLLM counts thoughts for a parser of its own")
        elif sampling.constraint is not None:
            checked(sampling.constraint)

    def submit(
        self, key: int, prompt_ids: Sequence[int], sampling: SamplingParams, seed: int
    ) -> None:
        params = _sampling_params(sampling, seed)
        self._is_new.add(key)
        if sampling.top_logprobs:
            self._num_top[key] = sampling.top_logprobs
        self._engine.add_request(str(key), {"prompt_token_ids": list(prompt_ids)}, params)

    def step(self) -> Iterator[Drawn]:
        try:
            outputs = self._engine.step()
        except Exception as error:  # the engine is not to be used any more
            raise EngineError(
                f"vLLM failed in a step: {first_line(error)}", hint="see its log"
            ) from error
        for output in outputs:
            yield from self._drawn(output)

    def _drawn(self, output: Any) -> Iterator[Drawn]:
        key, (made,) = int(output.request_id), output.outputs
        reason = _REASONS[made.finish_reason]
        for place, token_id in enumerate(made.token_ids):
            is_last = place == len(made.token_ids) - 1
            num_cached = (output.num_cached_tokens or 0) if key in self._is_new else 0
            self._is_new.discard(key)
            given = made.logprobs[place]
            top = _likeliest(given, self._num_top[key]) if key in self._num_top else None
            if is_last and reason:
                self._num_top.pop(key, None)
            logprob = given[token_id].logprob
            yield Drawn(key, token_id, logprob, reason if is_last else None, num_cached, top)

    def abort(self, keys: Sequence[int]) -> None:
        self._is_new.difference_update(keys)
        for key in keys:
            self._num_top.pop(key, None)
        self._engine.abort_request([str(key) for key in keys])

    def shutdown(self) -> None:
        """See `vllm_process.end`."""
        engine, self._engine = self._engine, None
        if engine is not None:
            end(engine)

    def pages_in_use(self) -> int:
        usage: float = self._gauge.usage
        return round(usage * self.num_pages)

    @property
    def num_preemptions(self) -> int:
        return int(self._gauge.num_preemptions)


_REASONS: dict[str | None, FinishReason | None] = {None: None, "stop": "eos", "length": "length"}


def _sampling_params(sampling: SamplingParams, seed: int) -> Any:
    from vllm import SamplingParams as Params
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind

    try:
        return Params(
            n=1,
            seed=seed,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.divisor,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.top_logprobs,
            detokenize=False,
            structured_outputs=_structured(sampling.constraint),
            output_kind=RequestOutputKind.DELTA,
        )
    except (ValueError, VLLMValidationError) as error:  # it takes no temperature above 2
        raise SamplingError(
            first_line(error), hint="vLLM takes no more; the torch engine does"
        ) from error


def _likeliest(given: Mapping[int, Any], k: int) -> TopLogprobs:
    """Of what vLLM says of a place, which also holds the token that was drawn, by id."""
    pairs = [(token_id, float(one.logprob)) for token_id, one in given.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:k])


def _structured(constraint: Constraint | ThoughtLimit | None) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    match constraint:
        case None:
            return None
        case Constraint("json_schema", text):
            return StructuredOutputsParams(json=spaced(text))
        case Constraint(kind, text):
            return StructuredOutputsParams(**{kind: text})


def _make_gauge() -> Any:
    """What takes vLLM's statistics: KV in use as a share of the cache after the last step, and
    preemptions so far.
    """
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Gauge(StatLoggerBase):  # type: ignore[misc]  # vLLM is not there when types are checked
        def __init__(self) -> None:
            self.usage = 0.0
            self.num_preemptions = 0

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            if scheduler_stats is not None:
                self.usage = scheduler_stats.kv_cache_usage
            if iteration_stats is not None:
                self.num_preemptions += iteration_stats.num_preempted_reqs

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    return Gauge()
