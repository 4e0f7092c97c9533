"""Tiny models with random weights, and a byte-level tokenizer: everything an engine needs, made in
milliseconds.

    model = make_model("gemma2")  # 2 or 4 layers, 32 wide, float32, weights from a fixed seed
    tokenizer = make_tokenizer(CHAT_TEMPLATE)       # one token a byte
    engine = wrap(model, tokenizer, weights="fp32")

The weights are drawn wide (standard deviation 0.25), so that attention is far from uniform and the
logits vary by several nats: with the usual 0.02 nearly any attention would pass for the right one.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from torch import nn

from specrej.engines.base import Token
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.loading import wrap

SPECIALS = ("<bos>", "<eos>", "<user>", "<assistant>", "<system>")
BOS_ID, EOS_ID = 0, 1
VOCABULARY = len(SPECIALS) + 256
WINDOW = 12
"""Sliding windows: shorter than the prompts of the tests, longer than one token."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ "
    "eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": None,
}

# Name: configuration class, and what it has beside the common fields.
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2Config",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gpt2": ("GPT2Config", {}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "olmo3": ("Olmo3Config", {"sliding_window": WINDOW}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    # What the engine cannot honour.
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": WINDOW,
            "num_hidden_layers": 4,
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "mamba": ("MambaConfig", {"state_size": 8}),
    "bloom": ("BloomConfig", {}),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}),
}

HONOURED = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "phi"),
    *("gpt_neox", "opt", "olmo3", "deepseek_v3", "mixtral"),
)
"""Architectures that the torch engine runs."""


def make_config(name: str, **changes: Any) -> Any:
    """The configuration of a tiny model; `changes` override its fields."""
    class_name, own = _ARCHITECTURES[name]
    return getattr(transformers, class_name)(**{**_COMMON, **own, **changes})


def make_model(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> Any:
    """A causal LM with random weights: the same ones for the same name, seed and changes."""
    config = make_config(name, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = transformers.AutoModelForCausalLM
        model = auto.from_config(config, attn_implementation="eager")
        for parameter_name, parameter in model.named_parameters():
            # Biases and the scales of norms begin at 0 or 1, where a mistake in them would not
            # show.
            if parameter.dim() == 1 and not parameter_name.startswith("lm_head"):
                nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return model.to(dtype).eval()


def reference(model: Any) -> Any:
    """A copy that computes with transformers' own eager attention; `wrap` takes the original."""
    fresh = copy.deepcopy(model)
    fresh.set_attn_implementation("eager")
    return fresh.eval()


@torch.inference_mode()
def full_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Logits `[tokens, vocabulary]` of one whole sequence in one pass, without a cache."""
    logits: torch.Tensor = model(
        input_ids=torch.tensor([token_ids], device=model.device), use_cache=False
    ).logits[0]
    return logits.float() if logits.dtype != torch.float64 else logits


def make_tokenizer(chat_template: str | None = None, *, adds_bos: bool = False) -> Any:
    """One token a byte, with BOS, EOS and roles as special tokens.

    Args:
        chat_template: as `CHAT_TEMPLATE`; None for a base model.
        adds_bos: whether the tokenizer puts BOS before every text by itself, as Llama's does.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *alphabet))}
    core = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIALS))
    if adds_bos:
        core.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", BOS_ID)]
        )
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(SPECIALS[2:]),
        chat_template=chat_template,
    )


def make_ids(num_tokens: int, *, seed: int = 0) -> list[int]:
    """A prompt of random ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIALS), VOCABULARY, (num_tokens,), generator=generator).tolist()


def make_engine(model: Any, eos_ids: Sequence[int] = ()) -> TorchEngine:
    """An exact engine around a model. By default no token ends an answer."""
    model.generation_config.eos_token_id = list(eos_ids)
    return wrap(model, make_tokenizer(), weights="fp32" if model.dtype == torch.float32 else None)


class Answers(dict[tuple[int, int], list[Token]]):
    """The tokens of every candidate, by handle of the prompt and index."""

    def add(self, tokens: Sequence[Token]) -> None:
        for token in tokens:
            self.setdefault((token.prompt, token.candidate), []).append(token)

    def ids(self, prompt: int, index: int) -> list[int]:
        return [token.token_id for token in self[prompt, index]]

    def of(self, prompt: int) -> dict[int, list[int]]:
        """Token ids by index."""
        return {index: self.ids(prompt, index) for handle, index in self if handle == prompt}


def decode(
    engine: TorchEngine, num_steps: int | None = None, answers: Answers | None = None
) -> Answers:
    """Step until nothing is live, or that many times; adds to `answers` where some are given."""
    answers = Answers() if answers is None else answers
    while num_steps is None or num_steps > 0:
        tokens = engine.step()
        if not tokens:
            break
        answers.add(tokens)
        num_steps = None if num_steps is None else num_steps - 1
    return answers


def save_model(directory: Path, **config: Any) -> str:
    """A tiny Llama with a chat template, as the directory that a command's --model takes."""
    make_model("llama", **config).save_pretrained(directory)
    make_tokenizer(CHAT_TEMPLATE).save_pretrained(directory)
    return str(directory)
