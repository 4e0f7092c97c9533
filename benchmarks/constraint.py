"""What a JSON schema costs a step of the torch engine: seconds with it over seconds without, in
turns of one run. The last line is one JSON object.

    python benchmarks/constraint.py --candidates 64 --steps 48 --rounds 4
"""

import argparse
import json
import sys
import time
from statistics import median

import specrej
from specrej.constraint import Constraint
from specrej.engines.base import Engine
from specrej.types import SamplingParams

SCHEMA = {
    "type": "array",
    "minItems": 500,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["person", "place", "thing"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    },
}
"""Nobody can end within the steps: both ways have all candidates to the end."""
_WARM_UP = 8


def seconds_of_steps(engine: Engine, sampling: SamplingParams, num: int, steps: int) -> float:
    """Of one step with so many candidates, the median of those after the first few."""
    prompt = engine.open(engine.encode("Make a list of people."), sampling, 2**40)
    engine.add(prompt, range(num))
    seconds = []
    for _ in range(_WARM_UP + steps):
        begun_s = time.perf_counter()
        tokens = engine.step()
        seconds.append(time.perf_counter() - begun_s)
        if len(tokens) < num:
            sys.exit("a candidate ended: give fewer --steps")
    engine.close(prompt)
    return median(seconds[_WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    engine = specrej.open_engine(given.model)
    length = _WARM_UP + given.steps + 1
    free = SamplingParams(max_new_tokens=length, ignore_eos=True, seed=1)
    bound = SamplingParams(
        max_new_tokens=length, seed=1, constraint=Constraint("json_schema", json.dumps(SCHEMA))
    )
    begun_s = time.perf_counter()
    engine.check_sampling(bound)
    compiling_s = time.perf_counter() - begun_s
    rounds = []
    for number in range(given.rounds):
        seconds = [
            seconds_of_steps(engine, one, given.candidates, given.steps) for one in (free, bound)
        ]
        rounds.append(seconds)
        print(f"round {number}: {seconds[0]:.4f} s a step free, {seconds[1]:.4f} s bound")
    shares = sorted(bound_s / free_s - 1 for free_s, bound_s in rounds)
    about = {"model": given.model, "candidates": given.candidates, "steps": given.steps, "seed": 1}
    figures = {
        "free_step_s": round(median(free_s for free_s, _ in rounds), 5),
        "share_of_a_step": round(median(shares), 4),
        "least_and_most": [round(shares[0], 4), round(shares[-1], 4)],
        "first_compile_s": round(compiling_s, 2),
    }
    versions = {**engine.versions(), "specrej": specrej.__version__}
    print(json.dumps({"benchmark": "constraint", **about, **figures, "versions": versions}))


if __name__ == "__main__":
    main()
