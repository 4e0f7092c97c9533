"""Small tokenizers of every kind that causal models come with, made on the spot.

    tokenizer = KINDS["llama2"](CHAT_TEMPLATE)

All have the special tokens of `tiny`, with the same ids, and spell what they do not know by bytes
or as unknown.
"""

from collections.abc import Callable
from typing import Any

import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from tiny import SPECIALS

_TEXTS = [
    "The capital of France is Paris. Its river is the Seine, isn't it?",
    "naïve café 日本語のテキスト 👍 e\u0301 🏳️‍🌈 don't stop, said the driver",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C . , ' ! ? 0 1 2 3 4 5 6 7 8 9",
]
_WORDS = ["the", "capital", "is", "Paris"]
_LETTERS = [*"abcdefghijklmnopqrstuvwxyzP.,'?é日👍"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_PIECES = ["▁", *"abcdefghijklmnopqrstuvwxyz.", "▁the", "▁▁", "s▁", "�", "é", "日", "▁👍"]


def _wrapped(core: Tokenizer, chat_template: str | None) -> Any:
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=core,
        bos_token=SPECIALS[0],
        eos_token=SPECIALS[1],
        additional_special_tokens=list(SPECIALS[2:]),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def byte_level(chat_template: str | None = None) -> Any:
    """As GPT-2, Llama 3 and Qwen have it, with merges that cut characters anywhere."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        _TEXTS,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=list(SPECIALS),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    core.add_tokens([AddedToken("plain é", normalized=False)])
    return _wrapped(core, chat_template)


def _byte_fallback(decoder: Any, chat_template: str | None) -> Any:
    pieces = [*SPECIALS, "<unk>", *_BYTES, *_PIECES]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoder
    core.add_special_tokens([*SPECIALS, "<unk>"])
    core.add_tokens([AddedToken("<0x0a> plain", normalized=False)])
    return _wrapped(core, chat_template)


def llama2(chat_template: str | None = None) -> Any:
    """SentencePiece with byte fallback, as Llama 2 and Mistral have it: an answer's first space
    is left out."""
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    return _byte_fallback(decoders.Sequence(steps), chat_template)


def gemma(chat_template: str | None = None) -> Any:
    """The same as Gemma has it: no space is left out."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return _byte_fallback(decoders.Sequence(steps), chat_template)


def metaspace(chat_template: str | None = None) -> Any:
    """Unigram pieces behind a leading bar."""
    pieces = [*SPECIALS, "<unk>", *_PIECES, *(f"▁{word}" for word in _WORDS), ",", "'"]
    # Longer pieces are likelier. Training would give other pieces each time.
    scored = [(piece, float(len(piece)) - 10.0) for piece in pieces]
    core = Tokenizer(models.Unigram(scored, unk_id=len(SPECIALS), byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.add_special_tokens([*SPECIALS, "<unk>"])
    return _wrapped(core, chat_template)


def word_piece(chat_template: str | None = None) -> Any:
    """Words and their continuations behind "##"."""
    ordinary = [*_WORDS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    vocabulary = {piece: index for index, piece in enumerate([*SPECIALS, "<unk>", *ordinary])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.add_special_tokens([*SPECIALS, "<unk>"])
    return _wrapped(core, chat_template)


def word_ends(chat_template: str | None = None) -> Any:
    """Words that end in "</w>", as the first GPT has them: a token's text waits for the next
    one."""
    ordinary = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    vocabulary = {piece: index for index, piece in enumerate([*SPECIALS, "<unk>", *ordinary])}
    core = Tokenizer(
        models.BPE(vocabulary, merges=[], unk_token="<unk>", end_of_word_suffix="</w>")
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.BPEDecoder(suffix="</w>")
    core.add_special_tokens([*SPECIALS, "<unk>"])
    return _wrapped(core, chat_template)


KINDS: dict[str, Callable[..., Any]] = {
    make.__name__: make for make in (byte_level, llama2, gemma, metaspace, word_piece, word_ends)
}
