"""Chat formats in the shape of real ones, each with a small tokenizer of its kind, trained in
milliseconds.

format = FORMATS["llama3"]()
# of transformers, with its chat template; the tokens that make up turns
format.tokenizer, format.special
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

CORPUS = [
    "The capital of France is Paris, and the river there is the Seine.",
    "Why is the sky blue? Because short waves are scattered more than long ones.",
    "user assistant system model im_start im_end start_of_turn end_of_turn eot_id header_id INST "
    "begin of text",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% "
    "endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set ns = namespace(first='') %}{% for m in messages %}{% if m['role'] == "
    "'system' %}"
    "{% set ns.first = m['content'] + '\n\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ ns.first }}{% set ns.first = '' %}{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}{% endif "
    "%}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% set ns = namespace(first='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.first = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}{% elif m['role'] == 'user' "
    "%}"
    "{{ bos_token + '[INST] ' + (ns.first + m['content']) | trim + ' [/INST]' }}{% set ns.first = "
    "'' %}{% else %}"
    "{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# The system's message goes before the last question, and turns are marked by special tokens.
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == "
    "'system' %}"
    "{% set ns.system = m['content'] + '\n\n' %}{% elif m['role'] == 'user' %}"
    "{{ '[INST] ' + (ns.system if loop.last else '') + m['content'] + '[/INST]' }}{% else %}"
    "{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer with its chat template, and the special tokens that this writes."""

    tokenizer: Any
    special: tuple[str, ...]


def _wrap(
    core: Tokenizer,
    template: str,
    special: Sequence[str],
    is_normalized: bool = False,
    **named: str,
) -> ChatFormat:
    tokens = {text: AddedToken(text, normalized=is_normalized, special=True) for text in special}
    core.add_special_tokens(list(tokens.values()))
    make: Any = transformers.PreTrainedTokenizerFast
    rest = [token for text, token in tokens.items() if text not in named.values()]
    names = {name: tokens.get(text, text) for name, text in named.items()}
    tokenizer = make(
        tokenizer_object=core, additional_special_tokens=rest, chat_template=template, **names
    )
    return ChatFormat(tokenizer, tuple(special))


def _byte_level(pattern: str | None) -> Tokenizer:
    core = Tokenizer(BPE(ignore_merges=pattern is not None))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return core


def _sentencepiece(special: Sequence[str]) -> Tokenizer:
    """Merges over words with a bar before them, bytes for the rest; special tokens are among the
    pieces."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    learned = [token for token, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    pieces = list(dict.fromkeys(["<unk>", *special, *BYTES, "▁", *learned]))
    known = set(learned)
    merges = [
        (piece[:cut], piece[cut:])
        for piece in learned
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return core


def chatml(normalizer: Any = None, *, is_normalized: bool = False) -> ChatFormat:
    special = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    core = _byte_level(None)
    if normalizer is not None:
        core.normalizer = normalizer
    return _wrap(
        core, CHATML, special, is_normalized, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )


def llama3() -> ChatFormat:
    special = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    pattern = (
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    made = _wrap(_byte_level(pattern), LLAMA3, special, bos_token=special[0], eos_token=special[3])
    bos = (special[0], made.tokenizer.bos_token_id)
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos[0]} $A", special_tokens=[bos]
    )
    return made


def gemma() -> ChatFormat:
    special = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    core = _sentencepiece(special)
    core.normalizer = normalizers.Replace(" ", "▁")
    return _wrap(core, GEMMA, special, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def llama2(*, is_normalized: bool = False) -> ChatFormat:
    """As it came first: every part between special tokens begins with a bar.

    Early files say that special tokens are normalized: then only those behind a blank are found.
    """
    core = _sentencepiece(("<s>", "</s>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ("<s>", "</s>")
    return _wrap(
        core, LLAMA2, special, is_normalized, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def mistral() -> ChatFormat:
    """Only the first word of the whole text begins with a bar that nobody wrote."""
    special = ("<s>", "</s>", "[INST]", "[/INST]")
    core = _sentencepiece(special)
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _wrap(core, MISTRAL, special, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> ChatFormat:
    """Holds its special tokens among its words: their texts are likelier than their characters."""
    special = ("<s>", "</s>")
    words = [("<unk>", 0.0), *((text, 0.0) for text in special), ("▁", -1.0)]
    words += [
        (character, -5.0)
        for character in sorted({*"".join(CORPUS), *"".join(special)} - {" ", "\n"})
    ]
    core = Tokenizer(Unigram(words, unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    template = (
        "{% for m in messages %}{{ bos_token + m['role'] + ' ' + m['content'] + eos_token }}{% "
        "endfor %}"
    )
    return _wrap(core, template, special, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


FORMATS: dict[str, Callable[[], ChatFormat]] = {
    "chatml": chatml,
    "llama3": llama3,
    "gemma": gemma,
    "llama2": llama2,
    "mistral": mistral,
}
