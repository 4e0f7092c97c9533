"""What a user may say of the engine. Nothing here needs OpenVINO."""

import subprocess
import sys
from typing import Any

import pytest

from specrej.engines.openvino import OpenVINOOptions, find_model
from specrej.errors import ModelError, UnknownNameError, UsageError


def test_arguments_are_sorted_by_whom_they_are_for() -> None:
    asked = OpenVINOOptions.of(
        {
            "cache_size": 4,
            "max_num_seqs": 32,
            "device": "CPU",
            "INFERENCE_NUM_THREADS": 1,
            "sampler_num_threads": 2,
        }
    )
    assert asked.device == "CPU"
    assert asked.scheduler == {"cache_size": 4, "max_num_seqs": 32}
    assert asked.properties == {"INFERENCE_NUM_THREADS": 1, "sampler_num_threads": 2}
    assert asked.most_requests == 32


def test_what_is_exact_on_a_cpu_is_the_default_there() -> None:
    by_default = OpenVINOOptions.of({}).all_properties
    assert by_default["KV_CACHE_PRECISION"] == by_default["INFERENCE_PRECISION_HINT"] == "f32"
    assert by_default["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert (
        OpenVINOOptions.of({"KV_CACHE_PRECISION": "f16"}).all_properties["KV_CACHE_PRECISION"]
        == "f16"
    )
    assert OpenVINOOptions.of({"device": "GPU.0"}).all_properties == {}


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"cache_siz": 2}, "no engine argument 'cache_siz'", "did you mean cache_size"),
        ({"Device": "CPU"}, "no engine argument 'Device'", "did you mean device"),
        ({"nonsense": 1}, "no engine argument 'nonsense'", "known: cache_size, "),
        (
            {"enable_prefix_caching": False},
            "is set by specrej: candidates share the prompt",
            "leave it out",
        ),
        ({"dynamic_split_fuse": False}, "is set by specrej: without it", "leave it out"),
        (
            {"max_num_batched_tokens": 16},
            "is set by specrej: a step must hold a whole prompt",
            "leave it out",
        ),
        (
            {"cache_size": 0.5},
            "cache_size must be a whole number of at least 1, in GiB, got 0.5",
            None,
        ),
        ({"num_kv_blocks": True}, "num_kv_blocks must be a whole number", None),
        ({"max_num_seqs": 0}, "max_num_seqs must be a whole number of at least 1, got 0", None),
        ({"device": 1}, "device must be a string, got 1", "CPU"),
    ],
)
def test_bad_arguments_are_told(arguments: dict[str, Any], message: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        OpenVINOOptions.of(arguments)
    assert hint is None or hint in (caught.value.hint or "")


def test_names_that_are_no_files_are_told() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'nothing-like-this'"):
        find_model("nothing-like-this")
    with pytest.raises(ModelError, match="got the id 'org/model'") as caught:
        find_model("org/model")
    assert "optimum-cli export openvino --model org/model" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="is a reward, not a generator"):
        find_model("relevance")


def test_the_module_is_imported_without_openvino() -> None:
    without = (
        "import sys; sys.modules.update(dict.fromkeys(['openvino', 'openvino_genai', 'gguf', "
        "'torch'])); "
    )
    subprocess.run([sys.executable, "-c", f"{without}import specrej.engines.openvino"], check=True)
