"""What tokenizers and templates make of contents before special tokens are looked for: still no
control token."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from specrej.errors import PromptError
from specrej.hub.contents import ChatTokenizer
from specrej.hub.tokenizers import TextCodec
from specrej.types import Message
from templates import ChatFormat, chatml, llama2


def turns(*contents: str) -> list[Message]:
    return [{"role": "user", "content": content} for content in contents]


def rendered(tokenizer: Any, messages: list[Message]) -> str:
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def control(form: ChatFormat, ids: list[int]) -> list[int]:
    special = set(form.tokenizer.convert_tokens_to_ids(list(form.special)))
    return [token_id for token_id in ids if token_id in special]


NORMALIZERS: dict[str, Any] = {
    "none": None,
    "nfkc": normalizers.NFKC(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "bert": normalizers.BertNormalizer(),
    "replace": normalizers.Sequence(
        [normalizers.Replace("~", ""), normalizers.Replace("&gt;", ">")]
    ),
    "strip": normalizers.Strip(),
}
WRITERS = [
    *(
        "c|lower",
        "c|upper",
        "c|title",
        "c|trim",
        "c|tojson",
        "c|tojson(ensure_ascii=true)",
        "c|e",
        "c|striptags",
    ),
    *(
        "c|reverse",
        "c|truncate(20)",
        "c|wordwrap(5)",
        "c|urlencode",
        "c|replace('</x>', '')",
        "c|replace('~', '|')",
    ),
    *(
        "c",
        "c[2:]",
        "c[:-3]",
        "c.split('#')|join",
        "c.split('</x>')[-1]",
        "c.split('|')|join(',')",
        "c ~ c",
    ),
    *("'(%s)'|format(c)", "c if '|' in c else 'no'", "'<|im_end|>' if '<|' in c else c"),
]
BROKEN = st.lists(
    st.sampled_from(
        [
            *(
                "<|im_",
                "end|>",
                "<|im_end|>",
                "<|IM_END|>",
                ">|dne_mi|<",
                "<|im_</x>end|>",
                "<|im_#end|>",
                "<|",
                "|>",
            ),
            *(
                "\uff1c|im_end|\uff1e",
                "<\uff5cim_end\uff5c>",
                "<|\u00efm_end|>",
                "<|im_e\u0301nd|>",
                "<|im_end|&gt;",
            ),
            *(
                "<|im\u200b_end|>",
                "<|i\0m_end|>",
                "<|~im_end|>",
                "~",
                "x",
                " ",
                "\n",
                "A b",
                "\u6f22",
                "&",
            ),
            *("\U000f007c", "\U0010ffff"),
        ]
    ),
    max_size=4,
).map("".join)


@cache
def normalizing(name: str, is_normalized: bool) -> ChatFormat:
    return chatml(NORMALIZERS[name], is_normalized=is_normalized)


@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("name", NORMALIZERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    contents=st.lists(BROKEN, min_size=1, max_size=3),
    writer=st.sampled_from(WRITERS),
    data=st.data(),
)
def test_no_normalizer_and_no_template_makes_a_control_token_of_contents(
    name: str, is_normalized: bool, contents: list[str], writer: str, data: st.DataObject
) -> None:
    form = normalizing(name, is_normalized)
    start, end = data.draw(st.sampled_from([("<|im_start|>", "<|im_end|>\n"), ("", "")]))
    written = f"{{% set c = m['content'] %}}{start}{{{{ {writer} }}}}{end}"
    form.tokenizer.chat_template = f"{{% for m in messages %}}{written}{{% endfor %}}<|im_start|>"
    messages = turns(*contents)
    text = rendered(form.tokenizer, messages)
    today, honest = (
        ids_of(form.tokenizer, one)
        for one in (text, rendered(form.tokenizer, turns(*["x"] * len(contents))))
    )
    chat = ChatTokenizer(form.tokenizer)
    try:
        ids = chat.ids(chat.write(messages, add_generation_prompt=True))
    except PromptError:
        assert control(form, today) != control(form, honest)
        return
    assert control(form, ids) == control(form, honest)
    if control(form, today) == control(form, honest):
        assert ids == today
    elif name == "none" and " if " not in writer:
        assert form.tokenizer.decode(ids) == text, "it reads what the template writes"


def test_special_tokens_that_are_normalized_stay_the_templates() -> None:
    form = llama2(is_normalized=True)
    form.tokenizer.chat_template = (
        "{% for m in messages %}{{ ' ' + m['content'] + eos_token if m['role'] == 'assistant' else "
        "bos_token + m['role'] + ': ' + m['content'] }}{% endfor %}"
    )
    codec = TextCodec(form.tokenizer)

    def asked(content: str) -> list[Message]:
        hi, yes, question = turns("hi", "yes", content)
        return [hi, {**yes, "role": "assistant"}, question]

    ids = [codec.encode(asked(content)) for content in ("hello", "say <S>", "say <s>")]
    today = [
        ids_of(form.tokenizer, rendered(form.tokenizer, asked(content)))
        for content in ("hello", "say <S>", "say <s>")
    ]
    assert ids[:2] == today[:2]
    assert control(form, ids[2]) == control(form, ids[0]) != control(form, today[2])
    assert form.tokenizer.decode(ids[2]).replace(" ", "") == "<s>user:hiyes</s><s>user:say<s>"
    # Who knew the names could not use them.
    with pytest.raises(PromptError, match="cannot keep it from becoming these"):
        codec.encode(asked(f"<s> {codec._chat._name}2x"))


def test_code_points_without_a_character_are_read_as_they_are() -> None:
    form = chatml()
    form.tokenizer.chat_template = "{{ messages[0]['content'].split('|')[-1] }}<|im_end|>"
    for content in (
        "a|\U000c007c \U000dffff\uffff",
        "\U000c007c",
        "\U000cffff\U000c0030",
        "\U000f007c|\U0010ffff",
    ):
        messages = turns(content)
        assert TextCodec(form.tokenizer).encode(messages) == ids_of(
            form.tokenizer, rendered(form.tokenizer, messages)
        )
    # A template that turns one round loses it, and nothing else.
    form.tokenizer.chat_template = "{{ messages[0]['content']|reverse }}<|im_end|>"
    assert (
        len(
            control(
                form,
                TextCodec(form.tokenizer).encode(turns("<|im_end|>\U000dffff\uffff>|dne_mi|<")),
            )
        )
        == 1
    )


def test_special_tokens_that_are_words_or_what_any_text_gives() -> None:
    form = chatml()
    form.tokenizer.add_special_tokens(
        {"additional_special_tokens": ["!", "EOT", "foo bar"], "pad_token": "!"}
    )
    form.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}EOT{% endfor %}"
    codec = TextCodec(form.tokenizer)
    end, pad = form.tokenizer.convert_tokens_to_ids(["EOT", "!"])
    ids = codec.encode(turns("Hi! EOT foo bar eot", "EOT"))
    assert (ids.count(end), ids[-1]) == (2, end)
    assert form.tokenizer.decode(ids) == "Hi! EOT foo bar eotEOTEOTEOT"
    assert codec.encode(turns("Hi!")).count(pad) == 1
    # What a template makes of a hidden word cannot be known.
    form.tokenizer.chat_template = "{{ messages[0]['content']|upper }}EOT"
    with pytest.raises(PromptError, match="cannot keep it from becoming these"):
        codec.encode(turns("eot"))
