"""The picture of the race, docs/pictures/race.svg, and the run that it shows.

    python docs/site/race.py --record     # runs the default models, writes race.json
    python docs/site/race.py              # draws race.svg from it

The SVG moves by itself, once, without a script. Who prefers no motion sees its end at once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parents[1] / "pictures"
DATA, DRAWING = PICTURES / "race.json", PICTURES / "race.svg"
PROMPT = "Give three tips for staying healthy."
RUN: dict[str, Any] = {"n": 32, "decide": "every:16", "max_new_tokens": 256, "seed": 1}
WIDTH, LEFT, RIGHT, TOP, ROW, SECONDS = 720, 12, 128, 64, 9, 9
STYLE = """
text{font:13px system-ui,sans-serif;fill:#63656e}.late{font-weight:600}
.big{font-size:15px;font-weight:600;fill:#1c1d21}
.could{stroke:#e3e4e9}.line{stroke:#63656e}.gone{stroke:#a3a5ad}.winner{stroke:#b54716}
.wall{stroke:#c9cad1;stroke-dasharray:2 3}.dot{fill:#a3a5ad}.best{fill:#b54716}
path{fill:none;stroke-width:3;stroke-linecap:round}.wall{stroke-width:1}.winner{stroke-width:5}
@media(prefers-color-scheme:dark){
text{fill:#a0a3ae}.big{fill:#ececf0}.could{stroke:#454853}.line{stroke:#a0a3ae}
.gone,.wall{stroke:#62656f}.dot{fill:#62656f}.winner{stroke:#ff9a6b}.best{fill:#ff9a6b}}
@media(prefers-reduced-motion:no-preference){
#curtain{animation:draw %ds linear both}.late{animation:show .6s %.1fs both}}
@keyframes draw{from{transform:scaleX(0)}}
@keyframes show{from{opacity:0}}
"""


def record() -> dict[str, Any]:
    """Both runs of the prompt, candidate by candidate; by P1 their tokens are the same."""
    import specrej

    with specrej.Session(model="smollm2", reward="relevance") as session:
        ours = session.generate(PROMPT, **RUN)
        whole = session.generate(PROMPT, **{**RUN, "algorithm": "best_of_n", "decide": "budget"})
    return {
        "prompt": PROMPT,
        "settings": RUN,
        "versions": ours.versions,
        "candidates": [
            {
                "tokens": len(one.token_ids),
                "whole": len(all_of_it.token_ids),
                "state": one.state,
                "reward": one.reward and round(one.reward, 3),
            }
            for one, all_of_it in zip(ours.candidates, whole.candidates, strict=True)
        ],
        "decisions": [
            {"tokens": one.num_tokens, "scored": len(one.scored), "rejected": len(one.rejected)}
            for one in ours.decisions
        ],
        "best": ours.best.index,
        "whole_best": whole.best.index,
        "reward": round(ours.reward or 0, 3),
        "whole_reward": round(whole.reward or 0, 3),
    }


def draw(run: dict[str, Any]) -> str:
    """The run as an SVG: a line a candidate, pale where Best-of-N would have gone on."""
    candidates = run["candidates"]
    order = sorted(range(len(candidates)), key=lambda one: (-candidates[one]["tokens"], one))
    longest: int = max(one["whole"] for one in candidates)
    height = TOP + ROW * len(order) + 40
    bottom = TOP + ROW * len(order)
    spent, whole = (sum(one[kind] for one in candidates) for kind in ("tokens", "whole"))

    def x(tokens: int) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * tokens / longest, 1)

    rows, ends = [], []
    for place, index in enumerate(order):
        one, y = candidates[index], TOP + ROW * place + 4
        kind = (
            "winner" if index == run["best"] else "gone" if one["state"] == "rejected" else "line"
        )
        rows.append(f'<path class="could" d="M{LEFT} {y}H{x(one["whole"])}"/>')
        rows.append(f'<path class="{kind}" d="M{LEFT} {y}H{x(one["tokens"])}"/>')
        if one["state"] == "rejected":
            rows.append(f'<circle class="dot" cx="{x(one["tokens"])}" cy="{y}" r="3.5"/>')
        elif index == run["best"]:
            rows.append(f'<circle class="best" cx="{x(one["tokens"])}" cy="{y}" r="6"/>')
            words = f"best: {one['reward']:.2f}"
            ends.append(f'<text class="late" x="{x(longest) + 16}" y="{y + 5}">{words}</text>')
    walls = [
        f'<path class="wall" d="M{x(one["tokens"])} {TOP - 8}V{bottom}"/>'
        for one in run["decisions"]
        if one["rejected"]
    ]
    title = f"{len(order)} answers begin, {saved(spent, whole)} of the tokens are never decoded"
    style = STYLE % (SECONDS, SECONDS * candidates[run["best"]]["tokens"] / longest)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>{title}</title><style>{style}</style>"
        f'<clipPath id="clip"><rect id="curtain" width="{WIDTH}" height="{height}"/></clipPath>'
        f'<text class="big" x="{LEFT}" y="22">{title}</text>'
        f'<text x="{LEFT}" y="43">dashed: decisions. dark: decoded, {spent:,} tokens. '
        f"pale: what Best-of-{len(order)} decodes too, {whole:,} in all</text>"
        f'<g clip-path="url(#clip)">{"".join([*walls, *rows])}</g>{"".join(ends)}'
        f"{axis(x, longest, bottom)}</svg>\n"
    )


def axis(x: Any, longest: int, bottom: int) -> str:
    step = 64
    marks = [
        f'<text x="{x(tokens)}" y="{bottom + 20}" text-anchor="middle">{tokens}</text>'
        for tokens in range(step, longest + 1, step)
    ]
    return "".join(marks) + f'<text x="{x(longest) + 16}" y="{bottom + 20}">tokens</text>'


def saved(spent: int, whole: int) -> str:
    return f"{100 * (1 - spent / whole):.0f}%"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="run the default models first")
    if parser.parse_args().record:
        DATA.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
    DRAWING.write_text(draw(json.loads(DATA.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
