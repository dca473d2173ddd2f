# SPDX-License-Identifier: Apache-2.0
"""What is measured of a workload, as JSON, and the tables of all workloads."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.store import write_json
from benchmarks.drafting.compare import (
    BEST_NGRAM,
    GATES,
    KS,
    MAKERS,
    NGRAM,
    RECALL,
    agreement,
    all_drafts,
    answers_of,
    by_agreement,
    gated,
    row,
)
from benchmarks.drafting.play import AT_ONCE, Drafts, plan, play_all
from benchmarks.drafting.record import Answer, Record
from benchmarks.drafting.tasks import WORKLOADS, Workload

HERE = Path(__file__).parent
MEASURED = HERE / "measured"
# The number of drafts that profiles and gates are for.
K = 4
# What a drafted token costs beside a step, where one number is to say what drafting gains.
COST = 0.1
WATCHED = (NGRAM, BEST_NGRAM, "suffix decoding + answers", RECALL)


def measure(workload: Workload, records: Sequence[Record]) -> dict[str, Any]:
    """Everything on a workload."""
    found: dict[str, Any] = {
        "workload": workload.name,
        "about": workload.about,
        "model": workload.model,
        "preset": workload.preset or "cold",
        "adapter": workload.adapter,
        "requests": len(records),
        "prompt_tokens": round(statistics.mean(len(r.prompt) for r in records), 1),
        "agreement": agreement(records),
        "drafters": {},
        "profiles": {},
        "ratios": {},
        "by_agreement": {},
        "gates": {},
    }
    for decoding in ("cold", "greedy"):
        answers = answers_of(records, decoding)
        found[f"{decoding}_tokens"] = round(statistics.mean(len(a.tokens) for a in answers), 1)
        drafts = all_drafts(records, decoding)
        found["drafters"][decoding] = {
            name: {str(k): row(play_all(each, answers, k)) for k in KS}
            for name, each in drafts.items()
        }
        found["profiles"][decoding] = {
            name: play_all(drafts[name], answers, K).profile(K) for name in WATCHED
        }
        found["ratios"][decoding] = {
            name: ratio(drafts[RECALL], drafts[name], answers, K) for name in WATCHED[:-1]
        }
        if decoding == "cold":
            for name in (BEST_NGRAM, RECALL):
                found["by_agreement"][name] = by_agreement(drafts[name], records, K)
                found["gates"][name] = {
                    gate: row(gated(drafts[name], records, K, gate)) for gate in GATES
                }
    answers = answers_of(records, "cold")
    found["at_once"] = {
        str(n): row(play_all(plan(MAKERS[RECALL](records), answers, n), answers, K))
        for n in (1, AT_ONCE, len(records))
    }
    return found


def ratio(
    left: Sequence[Drafts], right: Sequence[Drafts], answers: Sequence[Answer], k: int
) -> list[float]:
    """How many times the tokens per step of ``right`` those of ``left`` are, over all answers.

    Returns:
        The ratio, and the 2.5 % and 97.5 % quantiles of it over answers drawn with replacement.
    """
    tallies = [[play_all([d], [a], k) for d, a in zip(x, answers, strict=True)]
               for x in (left, right)]  # fmt: skip
    tokens, steps = (
        np.array([[getattr(tally, name) for tally in side] for side in tallies])
        for name in ("tokens", "steps")
    )

    def of(chosen: Any) -> float:
        speeds = tokens[:, chosen].sum(1) / np.maximum(steps[:, chosen].sum(1), 1)
        return float(speeds[0] / max(speeds[1], 1e-9))

    rng = np.random.default_rng(0)
    n = len(answers)
    drawn = [of(rng.integers(n, size=n)) for _ in range(1000)]
    return [round(x, 3) for x in (of(np.arange(n)), *np.quantile(drawn, (0.025, 0.975)).tolist())]


def mixed(all_records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float]]:
    """The recommended drafter with one memory for the requests of all workloads, in turns.

    Args:
        all_records: By workload, all of one model.
    """
    most = max(map(len, all_records.values()))
    order = [(name, i) for i in range(most) for name, each in all_records.items() if i < len(each)]
    records = [all_records[name][i] for name, i in order]
    answers = answers_of(records, "cold")
    drafts = plan(MAKERS[RECALL](records), answers)
    found = {}
    for name in all_records:
        places = [place for place, (other, _) in enumerate(order) if other == name]
        chosen = [drafts[place] for place in places], [answers[place] for place in places]
        found[name] = row(play_all(*chosen, K))
    return found


def write(found: Mapping[str, Any]) -> None:
    """Keep what was measured of a workload."""
    write_json(MEASURED / f"{found['workload']}.json", found)


def read() -> list[dict[str, Any]]:
    """All that is kept, in the workloads' order."""
    paths = [MEASURED / f"{workload.name}.json" for workload in WORKLOADS]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


# Tables


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for each in rows:
        yield "| " + " | ".join(each) + " |"
    yield ""


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _cell(one: Mapping[str, float]) -> str:
    return (
        f"{one['tokens_per_step']:.2f} ({_share(one['acceptance'])}, {one['drafted_per_step']:.1f})"
    )


def worth(one: Mapping[str, float]) -> float:
    """Tokens of a step, where each drafted token makes it dearer by ``COST``."""
    return one["tokens_per_step"] / (1 + COST * one["drafted_per_step"])


def _drafters(all_found: Sequence[Mapping[str, Any]], decoding: str, k: int) -> Iterator[str]:
    names = dict.fromkeys(name for found in all_found for name in found["drafters"][decoding])
    rows = []
    for name in names:
        each = [found["drafters"][decoding].get(name, {}).get(str(k)) for found in all_found]
        rows.append([name, *("-" if one is None else _cell(one) for one in each)])
    yield from _table(["drafter", *(found["workload"] for found in all_found)], rows)


def tables(all_found: Sequence[Mapping[str, Any]], mix: Mapping[str, Any]) -> str:
    """The page."""
    return "\n".join(_page(all_found, mix))


def _page(all_found: Sequence[Mapping[str, Any]], mix: Mapping[str, Any]) -> Iterator[str]:
    yield "# Drafters for contrastive requests"
    yield ""
    yield (
        "Written by `python -m benchmarks.drafting`. Greedy answers of real models, decoded in "
        "float32 without speculation, and drafters played over them: no times, counts only. A "
        "step is a forward pass after the prefill; it emits the drafts that agree, and one token. "
        f"{AT_ONCE} requests are side by side."
    )
    yield ""
    names = [found["workload"] for found in all_found]
    yield "## Workloads"
    yield ""
    keys = list(all_found[0]["agreement"])[1:]
    yield from _table(
        ["workload", "what", "contrast", "requests", "prompt", "answer, contrast",
         "answer, greedy", *keys],
        [
            [
                found["workload"], f"{found['about']} ({found['model']})", found["preset"],
                str(found["requests"]), f"{found['prompt_tokens']:.0f}",
                f"{found['cold_tokens']:.0f}", f"{found['greedy_tokens']:.0f}",
                *(f"{100 * found['agreement'][key]:.1f} %" for key in keys),
            ]
            for found in all_found
        ],
    )  # fmt: skip
    yield (
        "Prompts and answers in tokens, on average. The last columns are shares of the steps of "
        "the contrast's answers; the last one says how far two libraries agree."
    )
    yield ""
    for k in KS:
        for decoding, title in (("cold", "the contrast"), ("greedy", "the expert alone")):
            yield f"## k = {k}, {title}"
            yield ""
            yield "Tokens per step (acceptance of a drafted token, drafted tokens per step)."
            yield ""
            yield from _drafters(all_found, decoding, k)
    yield f"## What drafting is worth, k = {K}"
    yield ""
    yield f"Tokens per step, each drafted token making a step dearer by {COST:g} of a step."
    yield ""
    for decoding in ("cold", "greedy"):
        rows = [
            [name, *(f"{worth(f['drafters'][decoding][name][str(K)]):.2f}" for f in all_found)]
            for name in MAKERS
        ]
        yield from _table([decoding, *names], rows)
    yield f"## {RECALL} against others, k = {K}"
    yield ""
    yield "How many times their tokens per step, and the 95 % interval over requests."
    yield ""
    for decoding in ("cold", "greedy"):
        rows = [
            [
                name,
                *(
                    "{:.2f} ({:.2f} to {:.2f})".format(*found["ratios"][decoding][name])
                    for found in all_found
                ),
            ]
            for name in WATCHED[:-1]
        ]
        yield from _table([decoding, *names], rows)
    yield f"## Profiles of {RECALL}, k = {K}"
    yield ""
    yield "Of all steps those without a draft; of the others, how many drafts are accepted."
    yield ""
    for decoding in ("cold", "greedy"):
        rows = []
        for found in all_found:
            profile = found["profiles"][decoding][RECALL]
            shares = [_share(share) for share in profile["accepted"]]
            rows.append([found["workload"], _share(profile["without_draft"]), *shares])
        yield from _table([decoding, "no draft", *map(str, range(K + 1))], rows)
    yield "## Where the streams disagree"
    yield ""
    yield f"Acceptance of drafts that came to be judged (how many), k = {K}."
    yield ""
    for name in (BEST_NGRAM, RECALL):
        kinds = dict.fromkeys(kind for found in all_found for kind in found["by_agreement"][name])
        rows = []
        for kind in kinds:
            each = [found["by_agreement"][name].get(kind) for found in all_found]
            said = ("-" if o is None else f"{_share(o['accepted'])} ({o['judged']})" for o in each)
            rows.append([kind, *said])
        yield from _table([name, *names], rows)
    yield "## Gates"
    yield ""
    yield "As above: tokens per step (acceptance, drafted tokens per step)."
    yield ""
    for name in (BEST_NGRAM, RECALL):
        rows = [
            [gate, *(_cell(found["gates"][name][gate]) for found in all_found)] for gate in GATES
        ]
        yield from _table([name, *names], rows)
    yield f"## How much {RECALL} depends on who else is there"
    yield ""
    heads = ("one at a time", f"{AT_ONCE} at once", "all at once")
    rows = [
        [head, *(_cell(list(found["at_once"].values())[i]) for found in all_found)]
        for i, head in enumerate(heads)
    ]
    last = (_cell(mix[name]) if name in mix else "-" for name in names)
    yield from _table(["requests", *names], [*rows, ["one memory for all workloads", *last]])
