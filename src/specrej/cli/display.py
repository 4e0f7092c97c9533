"""What the command shows: results on stdout. Rendering only; nothing is computed but ratios.

    print_result(specrej.generate(prompt), is_interrupted=False)

Text of a user or a model is never read as markup, and its control characters do not reach the
terminal.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from specrej.errors import SpecrejError
from specrej.hub.defaults import DefaultModel
from specrej.memory import format_bytes
from specrej.search.choosing import ranked
from specrej.search.events import Decided
from specrej.types import Decision, Result

METHODS = {
    "best_of_n": "best_of_n",
    "speculative_rejection": "speculative_rejection",
    "best_of_n_same_start": "best_of_n (same start)",
}
"""What `api.compare` runs, in its order, and what each is called in a table."""

_PANEL_CHARACTERS = 420
_MOST_VOTED, _VOTED_CHARACTERS = 5, 40
"""Answers that a line of votes shows, and how much of each."""
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def print_result(result: Result, *, is_interrupted: bool) -> None:
    """The decisions, the answer, what it cost, and one line that sums up."""
    console = Console()
    if result.decisions:
        console.print(_decisions_table(result.decisions))
    console.print(_rule(console, "answer"))
    console.print(Text(plain(result.text)), soft_wrap=not console.is_terminal)
    console.print(_rule(console, "cost"))
    console.print(_costs(result), soft_wrap=not console.is_terminal)
    console.print()
    console.print(
        _verdict_on(result, is_interrupted=is_interrupted), soft_wrap=not console.is_terminal
    )
    _print_note(console, result)


def _print_note(console: Console, result: Result) -> None:
    if result.note is not None:
        console.print(Text(f"Note: {result.note}"), soft_wrap=not console.is_terminal)


def _rule(console: Console, title: str) -> Padding:
    return Padding(Rule(Text(title, style="dim"), align="left", style="dim"), (1, 0, 0, 0))


def _decisions_table(decisions: Iterable[Decision]) -> Table:
    table = make_table(
        "decision", ("cause", "left"), "tokens", "scored", "rejected", "cut", "KV before → after"
    )
    for place, decision in enumerate(decisions, start=1):
        table.add_row(
            str(place),
            decision.cause,
            str(decision.num_tokens),
            str(len(decision.scored)),
            str(len(decision.rejected)),
            number(decision.cut),
            kv_change(decision),
        )
    return table


def _costs(result: Result) -> Table:
    usage, settings, best = result.usage, result.settings, result.best
    seconds = {
        "prefill": usage.prefill_s,
        "decode": usage.decode_s,
        "reward": usage.reward_s,
        "other": usage.other_s,
    }
    rows = {
        "reward": f"{number(result.reward)} ({settings['reward']})",
        **({} if result.votes is None else {"votes": _tally(result.votes)}),
        "perplexity": f"{number(best.perplexity)} over {len(best.token_ids)} tokens",
        "tokens": f"{usage.generated_tokens:,} generated, {usage.reward_tokens:,} read by the "
        "reward, "
        f"{usage.prompt_tokens:,} of the prompt",
        "seconds": f"{usage.total_s:.2f} = "
        + " + ".join(f"{part} {s:.2f}" for part, s in seconds.items()),
        "peak KV": f"{format_bytes(usage.peak_kv_bytes)} of "
        f"{format_bytes(settings['memory_bytes'])}",
        "seed": str(result.seed),
        "model": " · ".join(
            str(settings[key])
            for key in ("model", "weights", "device", "engine")
            if key in settings
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows.items():
        grid.add_row(name, Text(plain(text)))
    return grid


def _tally(votes: Mapping[str, float]) -> str:
    """The answers that got most, on one line."""
    if not votes:
        return "none: no candidate gave an answer, so the reward chose"
    shown = []
    for answer, total in list(votes.items())[:_MOST_VOTED]:
        words = " ".join(answer.split())
        if len(words) > _VOTED_CHARACTERS:
            words = words[: _VOTED_CHARACTERS - 1] + "…"
        shown.append(f"{words}: {total:g}")
    more = f", {len(votes) - len(shown)} other answers" if len(votes) > len(shown) else ""
    return ", ".join(shown) + more


def _verdict_on(result: Result, *, is_interrupted: bool) -> Text:
    best, fates = result.best, [candidate.state for candidate in result.candidates]
    counted = (
        f"{len(fates)} candidates ({fates.count('rejected')} rejected, {fates.count('complete')} "
        "complete"
    )
    counted += f", {fates.count('live')} unfinished)" if "live" in fates else ")"
    if is_interrupted:
        when = " when last scored" if best.state == "live" else ""
        scored = "not scored yet" if best.reward is None else f"reward {number(best.reward)}{when}"
        how = f"{'complete' if best.state == 'complete' else 'unfinished'}, {scored}"
        return Text(
            f"Interrupted: so far the best of {counted} is candidate {best.index}, {how}",
            style="bold yellow",
        )
    end = {
        "eos": "ended by the model",
        "stop": "ended by a stop string",
        "length": "cut off at the length limit",
    }
    is_highest = ranked(result.candidates)[0].index == best.index
    how = "the best of" if is_highest else f"chosen by {result.settings['algorithm']} among"
    return Text(
        f"Candidate {best.index} wins with reward {number(best.reward)}, {how} {counted}; "
        f"{end[best.finish_reason or 'length']}",
        style="bold",
    )


def _side_by_side(results: Mapping[str, Result], large: Result | None) -> Table:
    table = make_table(("method", "left"), "N", "reward", "tokens", "×", "seconds", "×", "peak KV")
    for name, result in results.items():
        usage = result.usage
        table.add_row(
            METHODS[name],
            str(len(result.candidates)),
            number(result.reward),
            f"{usage.generated_tokens:,}",
            _ratio(usage.generated_tokens, large.usage.generated_tokens) if large else "–",
            f"{usage.total_s:.1f}",
            _ratio(usage.total_s, large.usage.total_s) if large else "–",
            format_bytes(usage.peak_kv_bytes),
        )
    return table


def print_comparison(results: Mapping[str, Result], *, is_interrupted: bool) -> None:
    """The methods side by side, their answers, and one line that says what happened."""
    console = Console()
    large = results.get("best_of_n_same_start")
    console.print(_side_by_side(results, large))
    if large:
        budget = format_bytes(large.settings["memory_bytes"])
        console.print(
            Text(
                f"×: relative to {METHODS['best_of_n_same_start']}; KV budget {budget}\n",
                style="dim",
            )
        )
    shown: dict[str, str] = {}
    for name, result in results.items():
        console.print(_answer_panel(METHODS[name], result, shown.get(result.text)))
        shown.setdefault(result.text, METHODS[name])
    console.print()
    verdict = _interruption(results) if is_interrupted else _comparison(**results)
    console.print(verdict, soft_wrap=not console.is_terminal)
    _print_note(console, results.get("speculative_rejection", next(iter(results.values()))))


def _answer_panel(method: str, result: Result, same_as: str | None) -> Panel:
    text = plain(result.text).strip()
    if len(text) > _PANEL_CHARACTERS:
        text = text[:_PANEL_CHARACTERS].rsplit(maxsplit=1)[0] + " …"
    body = Text(f"the same answer as {same_as}", style="dim italic") if same_as else Text(text)
    title = Text.assemble(
        (method, "bold"), f"  candidate {result.best.index}, reward {number(result.reward)}"
    )
    return Panel(body, title=title, title_align="left", box=box.ROUNDED, border_style="dim")


def _comparison(
    best_of_n: Result, speculative_rejection: Result, best_of_n_same_start: Result
) -> Text:
    large = f"Best-of-{len(best_of_n_same_start.candidates)}"
    cost, full = speculative_rejection.usage, best_of_n_same_start.usage
    saved = 1 - cost.generated_tokens / full.generated_tokens
    counts = f"({cost.generated_tokens:,} instead of {full.generated_tokens:,})"
    tokens = (
        f"{abs(saved):.0%} {'fewer' if saved > 0 else 'more'} tokens {counts}"
        if saved
        else "as many tokens"
    )
    return Text(
        f"On this prompt with seed {speculative_rejection.seed}, Speculative Rejection's reward of "
        f"{number(speculative_rejection.reward)} is {_against(speculative_rejection, best_of_n)} "
        f"Best-of-{len(best_of_n.candidates)} in the same memory, and "
        f"{_against(speculative_rejection, best_of_n_same_start)} {large} with the same start; it "
        f"took {tokens} "
        f"and {cost.total_s:.1f} s instead of {full.total_s:.1f} s.",
        style="bold",
    )


def _against(result: Result, other: Result) -> str:
    assert result.reward is not None
    assert other.reward is not None  # both came to their end
    difference = result.reward - other.reward
    if difference == 0:
        return "equal to that of"
    return f"{number(abs(difference))} {'above' if difference > 0 else 'below'} that of"


def _interruption(results: Mapping[str, Result]) -> Text:
    *finished, last = results
    done = (
        f"{' and '.join(METHODS[name] for name in finished)} finished"
        if finished
        else "nothing finished"
    )
    state = "complete" if results[last].best.state == "complete" else "unfinished"
    words = (
        f"Interrupted in {METHODS[last]}, whose best so far is {state}; {done}. Nothing can be "
        "compared."
    )
    return Text(words, style="bold yellow")


def print_models(known: Iterable[tuple[DefaultModel, bool]]) -> None:
    """The default models, each with whether it is pulled and where it is or would be."""
    console = Console()
    for model, is_pulled in known:
        state = Text("pulled", style="green") if is_pulled else Text("not pulled", style="yellow")
        facts = (
            f"  {model.kind}, {model.licence}, download of {model.download_bytes / 1e6:.0f} MB, "
        )
        console.print(Text.assemble((model.name, "bold"), facts, state), soft_wrap=True)
        console.print(Text(f"  {model.summary}"), soft_wrap=True)
        console.print(Text(f"  {plain(str(model.directory))}", style="dim"), soft_wrap=True)


def model_to_dict(model: DefaultModel, is_pulled: bool) -> dict[str, Any]:
    """A default model in JSON's types."""
    fields = ("name", "summary", "kind", "licence", "requirement", "download_bytes")
    return {name: getattr(model, name) for name in fields} | {
        "is_pulled": is_pulled,
        "directory": str(model.directory),
    }


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    print(json.dumps(content))


def print_error(error: SpecrejError) -> None:
    """The message, and the hint where there is one, on stderr."""
    console = Console(stderr=True)
    console.print(Text.assemble(("error: ", "bold red"), plain(str(error))), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble(("hint: ", "bold"), plain(error.hint)), soft_wrap=True)


def print_note(words: str) -> None:
    """A line on stderr."""
    Console(stderr=True).print(Text(words, style="yellow"), soft_wrap=True)


def make_table(*columns: str | tuple[str, str]) -> Table:
    """A plain table; a column is its header (numbers, flush right) or its header and "left"."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
    )
    for column in columns:
        is_text = isinstance(column, tuple)
        table.add_column(
            column[0] if is_text else str(column),
            justify="left" if is_text else "right",
            no_wrap=True,
        )
    return table


def plain(text: str) -> str:
    """Text without control characters."""
    return text.translate(_CONTROLS)


def number(value: float | None) -> str:
    """Three decimals, an exponent where they do not serve, a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1e5 else f"{value:.2e}"


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "–"


def kv_change(decision: Decision | Decided) -> str:
    return f"{format_bytes(decision.kv_bytes)} → {format_bytes(decision.kv_bytes_after)}"
