"""Makes the policy that comes with specrej, for the default models: `--policy smollm2-relevance`.

    python benchmarks/calibrate.py prompts.jsonl --output out/shipped    # resumable, then writes it
    python benchmarks/calibrate.py --output out/long --truncate 256      # from what is recorded

It records Best-of-64 with SmolLM2 and its relevance, 256 tokens at most, and calibrates. The last
line is one JSON object. It fails, and writes nothing, where the target cannot be promised.
"""

import argparse
import json
import sys
from pathlib import Path

import specrej
from headline import SEED, Kind, record_kind, truncated
from specrej.calibration.calibrate import calibrate
from specrej.evaluation.trace import load
from specrej.files.journal import write_json
from specrej.search.shipped import FOLDER

KIND = Kind(256, 64, (8, 16, 32, 64, 128), "4GiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", nargs="?", help="a JSONL file, or a named set")
    parser.add_argument("--output", type=Path, required=True, help="the folder of traces")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--truncate", type=int, help="to a checkpoint: answers of this limit")
    parser.add_argument("--target", type=float, default=0.4, help="mean regret to promise, spreads")
    given = parser.parse_args()
    if given.prompts:
        record_kind(given.prompts, KIND, given.output, given.limit, "relevance")
    traces = list(load(given.output))
    if given.truncate:
        traces = [truncated(trace, given.truncate) for trace in traces]
    made = calibrate(traces, target=given.target, confidence=0.95, seed=SEED)
    if made.chosen is None:
        could = made.trials[0].bound
        sys.exit(f"{given.target} cannot be promised from {len(traces)} prompts; {could:.2g} could")
    path = FOLDER / "smollm2-relevance.json"
    write_json(path, made.chosen.policy.to_dict())
    about = {"prompts": len(traces), "seed": SEED, "specrej": specrej.__version__}
    figures = {"promise": made.chosen.policy.promise, "measured": made.chosen.policy.measured}
    print(json.dumps({"benchmark": "calibrate", "written": path.name, **about, **figures}))


if __name__ == "__main__":
    main()
