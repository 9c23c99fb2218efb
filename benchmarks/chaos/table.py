"""The table in docs/reliability.md, made from the rounds of a state file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.chaos.case import Case, Outcome, percentile
from benchmarks.chaos.state import Round

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
HEAD = (
    "case",
    "what holds",
    "rounds",
    "seeds",
    "commit",
    "counted",
    "seconds: median / p95 / most",
    "result",
)


def render(cases: Iterable[Case], rounds: Sequence[Round]) -> str:
    """Markdown: a row per case that has rounds; of a case with rounds of both forms, the long one."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for case in cases:
        own = [one for one in rounds if one.case == case.name]
        own = [one for one in own if one.form == "long"] or own
        if own:
            lines.append(f"| {' | '.join(_row(case, sorted(own, key=lambda one: one.number)))} |")
    return "\n".join(lines)


def _row(case: Case, rounds: list[Round]) -> list[str]:
    whole = merge(one.outcome for one in rounds)
    seeds = [one.seed for one in rounds]
    return [
        case.name,
        case.promise,
        f"{len(rounds)} ({rounds[0].form})",
        f"{min(seeds)}–{max(seeds)}" if len(seeds) > 1 else str(seeds[0]),
        ", ".join(sorted({one.commit for one in rounds})),
        "<br>".join(f"{value:,.0f} {name}" for name, value in whole.counts.items()),
        "<br>".join(_samples(case, whole)),
        result(case, whole),
    ]


def _samples(case: Case, whole: Outcome) -> list[str]:
    found = []
    for name, values in sorted(whole.samples.items()):
        middle, late, most = percentile(values, 0.5), percentile(values, 0.95), max(values)
        target = case.targets.get(name)
        aim = f" (target p{target[0] * 100:.0f} ≤ {target[1]:g})" if target else ""
        found.append(f"{name}: {middle:.3g} / {late:.3g} / {most:.3g}, n={len(values)}{aim}")
    return found


def result(case: Case, whole: Outcome) -> str:
    """One word, or what went wrong."""
    if whole.failures:
        return f"**{len(whole.failures)} failures**"
    if whole.skipped:
        return f"skipped: {whole.skipped}"
    missed = misses(case, whole)
    return "holds" + (f"; slower than the target: {', '.join(missed)}" if missed else "")


def misses(case: Case, whole: Outcome) -> list[str]:
    """Samples that are over their target."""
    return [
        name
        for name, (share, most) in case.targets.items()
        if name in whole.samples and percentile(whole.samples[name], share) > most
    ]


def merge(outcomes: Iterable[Outcome]) -> Outcome:
    """Counts added, samples put together, failures in a row."""
    whole = Outcome()
    for one in outcomes:
        for name, value in one.counts.items():
            whole.count(name, value)
        for name, values in one.samples.items():
            whole.samples.setdefault(name, []).extend(values)
        whole.failures += one.failures
        whole.skipped = whole.skipped or one.skipped
    return whole


def write(path: Path, table: str) -> None:
    """Put it between the markers of that file; `SystemExit` if they are not there."""
    text = path.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path}: no lines {BEGIN} and {END} to put the table between")
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", "utf-8")
