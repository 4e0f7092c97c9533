"""TRL's trainers take a step on what `specrej pairs` writes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_PROMPTS = 4
Run = Callable[..., Any]


@pytest.fixture
def answers(run: Run, tiny_model: str, tmp_path: Path) -> Path:
    """What a batch wrote, with the lowest answer of each prompt."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = [json.dumps({"prompt": f"Why {number}?"}) for number in range(NUM_PROMPTS)]
    prompts.write_text("\n".join(lines))
    how = ["--reward", "logprob", "--n", "8", "--max-new-tokens", "8", "--seed", "1"]
    run("batch", prompts, "--output", output, "--model", tiny_model, "--keep", "2", *how)
    return output


@pytest.mark.parametrize("form", ["conversational", "standard", "sft"])
def test_a_trainer_takes_a_step(
    run: Run, answers: Path, tiny_model: str, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "pairs.jsonl"
    run("pairs", answers, "--output", file, "--form", form)
    given = datasets.load_dataset(
        "json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(given) == NUM_PROMPTS
    configure, make = (
        (trl.SFTConfig, trl.SFTTrainer) if form == "sft" else (trl.DPOConfig, trl.DPOTrainer)
    )
    how = configure(
        output_dir=str(tmp_path / "trained"),
        max_steps=1,
        per_device_train_batch_size=NUM_PROMPTS,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = make(
        model=model,
        args=how,
        train_dataset=given,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    loss = trainer.train().training_loss
    assert math.isfinite(loss)
    if form != "sft":  # before the first step the model is its own reference
        assert loss == pytest.approx(math.log(2), rel=1e-3)
    moved = [not torch.equal(weight, before[name]) for name, weight in model.named_parameters()]
    assert all(moved)


def test_a_trainer_reads_the_answers_that_were_given(
    run: Run, answers: Path, tiny_model: str, tmp_path: Path
) -> None:
    """What TRL's tokens say is the chat of the prompt, then the best answer and the lowest."""
    file = tmp_path / "pairs.jsonl"
    run("pairs", answers, "--output", file)
    given = datasets.load_dataset(
        "json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    how = trl.DPOConfig(
        output_dir=str(tmp_path / "trained"), use_cpu=True, bf16=False, report_to="none"
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = trl.DPOTrainer(model=model, args=how, train_dataset=given, processing_class=tokenizer)
    batch = [json.loads(line) for line in answers.read_text().splitlines()]
    for row, read in zip(batch, trainer.train_dataset, strict=True):
        assert row["answers"][0]["text"] in tokenizer.decode(read["chosen_ids"])
        assert row["lowest"]["text"] in tokenizer.decode(read["rejected_ids"])
