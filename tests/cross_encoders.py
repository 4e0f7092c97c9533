"""Tiny cross-encoders for onnxruntime, and their tokenizer of two words.

    save_tokenizer(directory)
    write_onnx(directory / "model.onnx", num_outputs=1)
    reward = RelevanceReward(directory)

The models are written byte by byte, as ONNX's protobuf has it: no package that writes ONNX is
needed.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing


def save_tokenizer(directory: Path) -> None:
    """A tokenizer that pads and truncates like the real one's file; "yes" is 4, "no" is 5."""
    tokenizer = Tokenizer(
        WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "yes": 4, "no": 5}, "[UNK]")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(directory / "tokenizer.json"))


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + varint(number // 128)


def fields(*pairs: tuple[int, int | str | bytes]) -> bytes:
    """A protobuf message: whole numbers as varints, all else with its length before it."""
    message = b""
    for number, value in pairs:
        if isinstance(value, int):
            message += varint(number * 8) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            message += varint(number * 8 + 2) + varint(len(content)) + content
    return message


def node(kind: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    return fields(
        *((1, name) for name in inputs),
        (2, output),
        (4, kind),
        *((5, value) for value in attributes),
    )


def tensor(name: str, values: npt.NDArray[np.float32]) -> bytes:
    return fields(*((1, size) for size in values.shape), (2, 1), (8, name), (9, values.tobytes()))


def value_info(name: str, element: int, shape: Sequence[int | str]) -> bytes:
    sizes = b"".join(
        fields((1, fields((1 if isinstance(size, int) else 2, size)))) for size in shape
    )
    return fields((1, name), (2, fields((1, fields((1, element), (2, sizes))))))


def write_onnx(path: Path, num_outputs: int, width: int | str = "width") -> None:
    """mean over tokens of tanh(words[id] + types[type]): depends on every token, its type, and
    how many there are."""
    rng = np.random.default_rng(0)
    words, types = (rng.normal(size=(rows, num_outputs)).astype(np.float32) for rows in (6, 2))
    axes = fields((1, "axes"), (8, 1), (20, 7))
    no_dims = fields((1, "keepdims"), (3, 0), (20, 2))
    nodes = [
        node("Gather", ["words", "input_ids"], "word"),
        node("Gather", ["types", "token_type_ids"], "type"),
        node("Add", ["word", "type"], "sum"),
        node("Tanh", ["sum"], "tanh"),
        node("ReduceMean", ["tanh"], "logits", axes, no_dims),
    ]
    graph = fields(
        *((1, content) for content in nodes),
        (2, "tiny"),
        *((5, tensor(name, values)) for name, values in (("words", words), ("types", types))),
        *((11, value_info(name, 7, ["batch", width])) for name in ("input_ids", "token_type_ids")),
        (12, value_info("logits", 1, ["batch", num_outputs])),
    )
    path.write_bytes(fields((1, 8), (7, graph), (8, fields((1, ""), (2, 13)))))
