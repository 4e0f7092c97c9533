"""Speed and memory of the torch engine, as ratios taken in one run. The last line is one JSON
object.

    python benchmarks/engine.py  # all batch sizes, about ten minutes on two cores
    python benchmarks/engine.py --batches 1,64       # some of them

What bounds a step: every linear layer reads its weights once for all rows (538 MB a step in float32
for SmolLM2, half of that in float16) and multiplies 0.27 GFLOP a row. At one row the memory
decides, from about 64 rows on the arithmetic. `linear_bound_*` runs those layers and the head
alone, with the kernels that the engine uses: nothing that decodes with them can be faster.
`transformers_generate` is `model.generate(num_return_sequences=B)`.

Everyone decodes 64 new tokens after the same 60, top_k 50, temperature 1, prefill inside the clock,
in rounds (A B C D, A B C D, ...) so that a drift of the machine hits all alike; the best round of
each counts.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import specrej
from specrej.attention.attention import DecodePass, PrefillPass
from specrej.attention.groups import Scoring
from specrej.attention.linear import PackedLinear
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.kernels import fused
from specrej.engines.torch.loading import load_engine
from specrej.hub.defaults import locate
from specrej.hub.quiet import quiet_transformers
from specrej.types import SamplingParams

PROMPT_TOKENS, NEW_TOKENS, SEED = 60, 64, 0
UNLIMITED = 1 << 40


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prompt_ids(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(100, 40_000, (length,), generator=generator).tolist()


def decode(engine: TorchEngine, batch: int, ids: list[int], new_tokens: int = NEW_TOKENS) -> float:
    """Seconds to prefill a prompt and decode so many tokens for each of `batch` candidates."""
    begun = time.perf_counter()
    sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True, seed=SEED)
    prompt = engine.open(ids, sampling, UNLIMITED)
    engine.add(prompt, range(batch))
    for _ in range(new_tokens):
        engine.step()
    seconds = time.perf_counter() - begun
    engine.close(prompt)
    return seconds


def generate(model: Any, batch: int, ids: list[int]) -> float:
    """Seconds that transformers' own generate takes for the same."""
    inputs = torch.tensor([ids])
    torch.manual_seed(SEED)
    begun = time.perf_counter()
    model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=True,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        num_return_sequences=batch,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=2,
    )
    return time.perf_counter() - begun


def linear_layers(engine: TorchEngine) -> tuple[list[tuple[PackedLinear, int]], PackedLinear]:
    """The engine's packed layers with the widths of their inputs, found by one step; the head
    apart.
    """
    widths: dict[PackedLinear, int] = {}
    layers = [module for module in engine.model.modules() if isinstance(module, PackedLinear)]
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, given: widths.__setitem__(module, given[0].shape[-1])
        )
        for layer in layers
    ]
    decode(engine, 1, prompt_ids(4), 2)
    for hook in hooks:
        hook.remove()
    head = engine.model.get_output_embeddings()
    return [(layer, widths[layer]) for layer in layers if layer is not head], head


def linear_bound(engine: TorchEngine, batch: int, steps: int) -> float:
    """Seconds that the linear layers and the head alone take for NEW_TOKENS steps."""
    layers, head = linear_layers(engine)
    inputs = {width: torch.randn(batch, 1, width) for _, width in layers}
    hidden = inputs[engine.model.config.hidden_size]
    with torch.inference_mode():
        for is_counted in (False, True):
            begun = time.perf_counter()
            for _ in range(steps if is_counted else 1):
                for layer, width in layers:
                    layer(inputs[width])
                head(hidden)
    return (time.perf_counter() - begun) / steps * NEW_TOKENS


def measure_speed(
    engines: dict[str, TorchEngine], model: Any, batches: list[int], rounds: int
) -> dict[str, Any]:
    """Tokens per second by contender and batch size."""
    ids = prompt_ids(PROMPT_TOKENS)
    contenders: dict[str, Callable[[int], float]] = {
        "specrej_fp32": lambda batch: decode(engines["fp32"], batch, ids),
        "specrej_fp16w": lambda batch: decode(engines["fp16"], batch, ids),
        "transformers_generate": lambda batch: generate(model, batch, ids),
        "linear_bound_fp32": lambda batch: linear_bound(engines["fp32"], batch, 8),
        "linear_bound_fp16w": lambda batch: linear_bound(engines["fp16"], batch, 8),
    }
    speeds: dict[str, dict[str, float]] = {name: {} for name in contenders}
    for batch in batches:
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                gc.collect()
                seconds[name].append(run(batch))
        for name, taken in seconds.items():
            speeds[name][str(batch)] = round(batch * NEW_TOKENS / min(taken), 1)
            say(
                f"B={batch:<4} {name:22} {speeds[name][str(batch)]:7.1f} tokens/s   all rounds: "
                f"{rounded(taken)} s"
            )
    return speeds


def rounded(seconds: list[float]) -> str:
    return ", ".join(f"{taken:.2f}" for taken in seconds)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_shared_prompt(engine: TorchEngine) -> dict[str, float]:
    """KV of 128 candidates on a 1,024-token prompt, and attention to that prompt against KV
    copied per row.
    """
    candidates, prompt_tokens, new_tokens = 128, 1024, 8
    ids = prompt_ids(prompt_tokens)
    decode(engine, candidates, prompt_ids(4), 2)  # what logits and activations need is there before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # glibc keeps what was freed; the KV would come from there, unseen
    before = resident_bytes()
    prompt = engine.open(ids, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True), UNLIMITED)
    engine.add(prompt, range(candidates))
    for _ in range(new_tokens - 1):
        engine.step()
    measured, accounted = resident_bytes() - before, engine.memory(prompt).peak
    once = engine.kv_bytes(prompt_tokens, candidates, new_tokens)
    copied = candidates * engine.kv_bytes(prompt_tokens, 0, 1) + engine.kv_bytes(
        0, candidates, new_tokens
    )
    group = engine._runs[prompt].group
    shared_s, copied_s = attention_seconds(group)
    engine.close(prompt)
    return {
        "peak_kv_bytes_accounted": accounted,
        "resident_growth_bytes_measured": measured,
        "kv_bytes_prompt_held_once": once,
        "kv_bytes_prompt_copied_per_row": copied,
        "attention_shared_ms_per_layer": round(shared_s * 1e3, 3),
        "attention_copied_ms_per_layer": round(copied_s * 1e3, 3),
        "attention_ratio": round(shared_s / copied_s, 3),
    }


def attention_seconds(group: Any) -> tuple[float, float]:
    """Seconds of one layer's attention with the prompt shared, and by torch's own kernel with it
    copied per row.
    """
    rows, (heads, _, dim) = group.num_rows, group.prompt_keys[0].shape
    shared_heads = 3
    query = torch.randn(rows, heads * shared_heads, 1, dim)
    key, value = torch.randn(rows, heads, 1, dim), torch.randn(rows, heads, 1, dim)
    one_pass = DecodePass([group], fused=fused(query.device, query.dtype))
    own = slice(0, group.length)
    keys, values = (
        torch.cat([prompt[0].expand(rows, -1, -1, -1), block[0][:rows, :, own], new], 2)
        for prompt, block, new in (
            (group.prompt_keys, group.keys, key),
            (group.prompt_values, group.values, value),
        )
    )
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        shared = best(lambda: one_pass.attend(0, query, key, value, Scoring(dim**-0.5, None, None)))
        copied = best(lambda: attend(query.view(rows, heads, shared_heads, dim), keys, values))
    return shared, copied


def best(run: Callable[[], Any], rounds: int = 7) -> float:
    """Seconds of the fastest of some runs."""
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def measure_rejection(engine: TorchEngine) -> dict[str, float]:
    """Seconds of dropping half of 256 candidates, 64 tokens each, against the step before."""
    prompt = engine.open(
        prompt_ids(PROMPT_TOKENS), SamplingParams(max_new_tokens=128, ignore_eos=True), UNLIMITED
    )
    engine.add(prompt, range(256))
    for _ in range(64):
        engine.step()
    begun = time.perf_counter()
    engine.step()
    stepped = time.perf_counter()
    engine.drop(prompt, range(0, 256, 2))
    dropped = time.perf_counter()
    engine.close(prompt)
    step_s, drop_s = stepped - begun, dropped - stepped
    return {
        "step_s": round(step_s, 4),
        "drop_half_s": round(drop_s, 4),
        "ratio": round(drop_s / step_s, 3),
    }


def measure_fp16_error(engines: dict[str, TorchEngine], num_tokens: int = 656) -> dict[str, float]:
    """Next-token distributions with float16 weights against exact ones, on a text that the exact
    engine wrote.
    """
    exact = engines["fp32"]
    prompt = exact.open(
        prompt_ids(PROMPT_TOKENS),
        SamplingParams(max_new_tokens=num_tokens, seed=SEED, ignore_eos=True),
        UNLIMITED,
    )
    exact.add(prompt, [0])
    text = prompt_ids(PROMPT_TOKENS) + [exact.step()[0].token_id for _ in range(num_tokens)]
    exact.close(prompt)
    logprobs = {
        name: all_logprobs(engine, text)[PROMPT_TOKENS:] for name, engine in engines.items()
    }
    fp32, fp16 = logprobs["fp32"], logprobs["fp16"]
    kl = (fp32.exp() * (fp32 - fp16)).sum(-1).mean().item()
    agree = (fp32.argmax(-1) == fp16.argmax(-1)).float().mean().item()
    return {
        "positions": len(fp32),
        "top1_equal": round(agree, 5),
        "mean_kl_nats": float(f"{kl:.2e}"),
    }


@torch.inference_mode()
def all_logprobs(engine: TorchEngine, ids: list[int]) -> torch.Tensor:
    """Log-probabilities `[tokens, vocabulary]` after every token of a text, from one prefill."""
    from specrej.attention.groups import Group

    group = Group(ids, UNLIMITED, engine.layout, 1)
    positions = torch.arange(len(ids))[None]
    output = engine.model(
        input_ids=torch.tensor([ids]),
        position_ids=positions,
        use_cache=False,
        kv=PrefillPass(group, 0),
    )
    logits: torch.Tensor = output.logits[0]
    return logits.double().log_softmax(-1)


def measure_flips(engine: TorchEngine) -> dict[str, float]:
    """How often a candidate's token changes because others were rejected: the order of float sums
    depends on the batch.

    64 candidates of 64 tokens, once all to the end and once with half of them dropped after 16
    tokens. Only the first change of a candidate counts; what follows it follows from it.
    """
    ids = engine.encode("Give three tips for staying healthy.")
    everyone, survivors = (written(engine, ids, num_dropped) for num_dropped in (0, 32))
    flips = positions = 0
    for index, tokens in survivors.items():
        same = [here == there for here, there in zip(tokens, everyone[index], strict=True)]
        flips += not all(same)
        positions += same.index(False) + 1 if not all(same) else len(same)
    return {"flips": flips, "positions": positions}


def written(engine: TorchEngine, ids: list[int], num_dropped: int) -> dict[int, list[int]]:
    """Tokens of 64 candidates by index, without the first num_dropped, which go after 16 tokens."""
    prompt = engine.open(
        ids, SamplingParams(max_new_tokens=64, ignore_eos=True, seed=SEED), UNLIMITED
    )
    engine.add(prompt, range(64))
    tokens: dict[int, list[int]] = {index: [] for index in range(64)}
    for step in range(64):
        if step == 16 and num_dropped:
            engine.drop(prompt, range(num_dropped))
        for token in engine.step():
            tokens[token.candidate].append(token.token_id)
    engine.close(prompt)
    return {index: tokens[index] for index in range(num_dropped, 64)}


def ratios(speeds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The ratios that are promised."""
    pairs = {
        "fp32_vs_transformers": ("specrej_fp32", "transformers_generate"),
        "fp16w_vs_transformers": ("specrej_fp16w", "transformers_generate"),
        "fp32_vs_linear_bound": ("specrej_fp32", "linear_bound_fp32"),
        "fp16w_vs_linear_bound": ("specrej_fp16w", "linear_bound_fp16w"),
    }
    return {
        name: {
            batch: round(speeds[ours][batch] / speeds[theirs][batch], 2) for batch in speeds[ours]
        }
        for name, (ours, theirs) in pairs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", default="1,16,64,256", help="batch sizes, with commas")
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds; the best of each contender counts"
    )
    arguments = parser.parse_args()
    path = locate("smollm2")
    begun = time.perf_counter()
    engines = {"fp16": load_engine(path, weights="fp16")}
    open_s = time.perf_counter() - begun
    engines["fp32"] = load_engine(path, weights="fp32")
    with quiet_transformers():
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval()
    shared_prompt = measure_shared_prompt(
        engines["fp32"]
    )  # first: later, memory would come from what was freed
    speeds = measure_speed(
        engines, model, [int(batch) for batch in arguments.batches.split(",")], arguments.rounds
    )
    figures = {
        "benchmark": "engine",
        "tokens_per_s": speeds,
        "ratios": ratios(speeds),
        "shared_prompt": shared_prompt,
        "rejection": measure_rejection(engines["fp16"]),
        "fp16_weights": measure_fp16_error(engines),
        "flips_by_rejection": {name: measure_flips(engine) for name, engine in engines.items()},
        "open_s": round(open_s, 2),
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "seed": SEED,
        "threads": torch.get_num_threads(),
        "kernels": {name: engine.describe()["weights"] for name, engine in engines.items()},
        "fused": engines["fp32"].describe()["fused"],
        "versions": {
            "specrej": specrej.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
