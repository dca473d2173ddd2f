# SPDX-License-Identifier: Apache-2.0
"""The tables of what was measured: ``python -m docs.tables`` writes them into the pages, each below
its marker ``<!-- table: NAME -->``, out of the files in which the outcomes are kept.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks import bench_rest
from benchmarks.accuracy.answers import Bits, Judged
from benchmarks.accuracy.report import (
    GREEDY,
    Difference,
    compare,
    correct,
    differences,
    read_outcomes,
    signed,
)
from benchmarks.beside import pages as beside_pages
from benchmarks.rounds import ratios, short
from vllm_cold.tools.tune.verdict import LEVEL

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "measured" / "peers.json"
BESIDE, REST, LOAD = (PEERS.with_name(f"{name}.json") for name in ("beside", "rest", "load"))
MEASURED = ROOT / "benchmarks" / "accuracy" / "measured"
TEST, JOINT = "outcomes-test.jsonl", "outcomes-joint.jsonl"
SECRETS = "outcomes-secrets.jsonl"
STRANGERS = "outcomes-documents.jsonl"
POISONED = "outcomes-poisoned.jsonl"
MODELS = {
    "smollm2": "SmolLM2-135M",
    "gemma": "Gemma 3 270M (base)",
    "qwen-0.5b": "Qwen 0.5B",
    "qwen-1.5b": "Qwen 1.5B",
}
REPEATED, BOTH = "part repeated", "part repeated + cad"
Cells = dict[tuple[str, str], Mapping[str, Judged]]
Compared = dict[tuple[str, str], dict[str, Difference]]


@cache
def cells(file: str) -> Cells:
    """Outcomes by model and cell."""
    found = read_outcomes(MEASURED / file)
    return {(model, cell): told for (model, _), by in found.items() for cell, told in by.items()}


@cache
def compared(file: str) -> Compared:
    """Differences by model and cell, corrected for all declared comparisons of the file."""
    found: Compared = {}
    for (model, cell), told in cells(file).items():
        names = next(iter(told.values())).measures
        measures = {
            name: {key: each.measures[name] for key, each in told.items() if name in each.measures}
            for name in list(names)[1:]
        }
        right = {key: each.right for key, each in told.items()}
        found[model, cell] = differences(cell, "test", right, measures)
    correct(each for by in found.values() for each in by.values())
    return found


def marked(found: Difference | None, digits: int = 1) -> str:
    """Points: bold if significant, with a dagger if only before correction."""
    if found is None:
        return ""
    text = f"{found.points:+.{digits}f}" if digits != 1 else signed(found.points)
    if found.declared and found.corrected < LEVEL:
        return f"**{text}**"
    return text + "†" * (found.declared and found.p < LEVEL)


def whole(found: Difference | None) -> str:
    """The same with its interval."""
    if found is None:
        return ""
    return f"{marked(found)} ({signed(found.low)} to {signed(found.high)})"


def percent(told: Mapping[str, Judged], method: str, measure: str) -> str:
    """Of the problems."""
    return f"{100 * told[method].measures[measure].mean():.1f}" if method in told else ""


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|".join(["---", *["--:"] * (len(head) - 1)])
    return (
        [f"| {' | '.join(row)} |" for row in (head,)]
        + [f"|{rule}|"]
        + [f"| {' | '.join(row)} |" for row in rows]
    )


def _there(file: str, cell: str) -> Iterator[tuple[str, str]]:
    for model, title in MODELS.items():
        if (model, cell) in cells(file):
            yield model, title


def followed() -> list[str]:
    """Followed, right, and both, by model and setting."""
    rows = []
    for model, title in _there(JOINT, "told-facts"):
        told = cells(JOINT)[model, "told-facts"]
        rows.append([
            title,
            *(
                f"{percent(told, m, 'followed')} / {percent(told, m, 'right')} / "
                f"**{percent(told, m, 'both')}**"
                for m in (GREEDY, REPEATED, "cad", BOTH)
            ),
        ])  # fmt: skip
    return _lines(
        ["followed / right / **both**, %", "greedy", "repeated", "`cfg`", "repeated + `cfg`"], rows
    )


def followed_compared() -> list[str]:
    """What is gained and lost by it."""
    rows = []
    for model, title in _there(JOINT, "told-facts"):
        found = compared(JOINT)[model, "told-facts"]
        rows.append([title, *(
            whole(found.get(key))
            for key in (
                REPEATED, "cad", BOTH, f"cad - {REPEATED}", f"{REPEATED}: right", "cad: right",
                f"{BOTH}: right",
            )
        )])  # fmt: skip
    head = [
        "points", "both: repeated", "both: `cfg`", "both: repeated + `cfg`",
        "both: `cfg` - repeated", "right: repeated", "right: `cfg`", "right: repeated + `cfg`",
    ]  # fmt: skip
    return _lines(head, rows)


TOLD = {
    "told-two": "two instructions",
    "told-long": "a long system prompt, of which one sentence is the instruction",
    "told-turns": "after two earlier turns",
    "told-requests": "users' requests (IFBench), 160 tokens; right: no loop",
    "unrelated": "an unrelated system prompt (control); right alone",
}


def told() -> list[str]:
    """The other cells with instructions."""
    rows = []
    for cell, about in TOLD.items():
        for model, title in _there(JOINT, cell):
            found, told = compared(JOINT)[model, cell], cells(JOINT)[model, cell]
            rows.append([
                f"{about}: {title}" if about else title, percent(told, GREEDY, "both"),
                *(marked(found.get(key)) for key in (REPEATED, "cad", BOTH)),
                *(
                    marked(found.get(f"{key}: right"))
                    for key in (REPEATED, "cad", BOTH)
                ),
            ])  # fmt: skip
            about = ""
    head = [
        "", "greedy: both, %", "repeated", "`cfg`", "repeated + `cfg`", "right: repeated",
        "right: `cfg`", "right: repeated + `cfg`",
    ]  # fmt: skip
    return _lines(head, rows)


CONTEXT = {
    "false": "a conflicting sentence",
    "near": "sentences about the subject that do not answer",
    "nothing": "five true sentences on other subjects",
    "false-among": "a conflicting sentence and five distractors",
    "true-among": "a supporting sentence and five distractors",
    "swapped": "Natural Questions, another entity in the text",
    "squad-near": "SQuAD, another paragraph of the article",
    "squad": "SQuAD, its paragraph",
}


def context() -> list[str]:
    """Context of several kinds."""
    rows = []
    for cell, about in CONTEXT.items():
        for model, title in _there(TEST, cell):
            found, told = compared(TEST)[model, cell], cells(TEST)[model, cell]
            rows.append([
                f"{about}: {title}" if about else title, percent(told, GREEDY, "right"),
                *(
                    marked(found.get(key))
                    for key in ("without the part", "better prompt", REPEATED, "cad", "grounded")
                ),
            ])  # fmt: skip
            about = ""
    head = ["", "greedy, %", "left out", "stronger prompt", "repeated", "`cad`", "`grounded`"]
    return _lines(head, rows)


RETRIEVED = {
    "without the part": "no passage",
    "better prompt": "all five, stronger prompt",
    "best passage": "the best passage alone",
    "best passage or none": "the best passage, or none",
    "best passage or none + cad": "the best passage or none, with `cad`",
    "cad": "all five, `cad`",
    "grounded": "all five, `grounded`",
}


def retrieved() -> list[str]:
    """Passages that a search found."""
    there = [model for model, _ in _there(JOINT, "retrieved")]
    rows = [["all five, greedy, %", *(
        percent(cells(JOINT)[model, "retrieved"], GREEDY, "right") for model in there
    )]]  # fmt: skip
    for method, label in RETRIEVED.items():
        found = [compared(JOINT)[model, "retrieved"].get(method) for model in there]
        rows.append([label, *map(whole, found)])
    return _lines(["points", *(MODELS[model] for model in there)], rows)


HALF = {
    GREEDY: "greedy",
    "better prompt": "stronger prompt",
    "cad": "`cad`",
    "adacad": "`adacad`",
    "grounded": "`grounded`",
}


def half() -> list[str]:
    """Two questions, of which the text answers one."""
    rows = []
    for model, title in _there(JOINT, "half-answered"):
        told = cells(JOINT)[model, "half-answered"]
        rows.append([title, *(
            f"{percent(told, m, 'text')} / {percent(told, m, 'rest')} / "
            f"**{percent(told, m, 'both')}**"
            for m in HALF
        )])  # fmt: skip
    return _lines(["by the text / the rest / **both**, %", *HALF.values()], rows)


RULES = ("cad", "adacad", "grounded", "cocoa", "mti", "m3id", "acd", "arr", "grd",
         "whole answers chosen")  # fmt: skip


def rules() -> list[str]:
    """Each method where the context is right, and where it is irrelevant."""
    rows = []
    for method in RULES:
        said = "answer selection" if method == "whole answers chosen" else f"`{method}`"
        rows.append([said, *(
            " / ".join(
                marked(compared(TEST)[model, cell].get(method)) for cell in ("false", "nothing")
            )
            for model in MODELS
        )])  # fmt: skip
    return _lines(["conflicting / irrelevant", *MODELS.values()], rows)


@dataclass(frozen=True)
class Paper:
    """What a paper reports of a preset, and what was measured here.

    Attributes:
        about: The preset, and where the paper is.
        reports: Its numbers, of which data and models; of its abstract alone.
        measured: What was decoded here: about, file, cell, method, and what it is compared with.
        verdict: Reproduced or not, and whether other data shows the same direction.
    """

    about: str
    reports: str
    measured: tuple[tuple[str, str, str, str, str], ...]
    verdict: str


def _texts(method: str, other: str = GREEDY) -> tuple[tuple[str, str, str, str, str], ...]:
    """Where a text contradicts memory, and where none answers."""
    found = (("a conflicting sentence", "false"), ("irrelevant sentences", "nothing"))
    return tuple((about, TEST, cell, method, other) for about, cell in found)


PAPERS = (
    Paper(
        "`cold`: CoLD, [2505.14620](https://arxiv.org/abs/2505.14620)",
        "up to 5.54 % more accuracy than greedy decoding, 28 % less latency, on Ascend NPUs; "
        "models and data: not looked up",
        (("word problems, 0.5B", TEST, "words-r8-100", "cold", GREEDY),),
        "not tried. Other data: no gain shown; of 48 pairs of SmolLM2's adapters and tasks 1 "
        "better, 18 worse (uncorrected). Latency: [on CPUs "
        "alone](performance.md#what-a-contrast-costs)",
    ),
    Paper(
        "`cad`: [2305.14739](https://arxiv.org/abs/2305.14739)",
        "14.3 % better factuality of LLaMA's summaries; conflicts: no number in the abstract",
        (
            *_texts("cad")[:1],
            ("Natural Questions, another entity in the text", TEST, "swapped", "cad", GREEDY),
        ),
        "not tried. Other data: a gain where the text contradicts memory, on three and two of four "
        "models",
    ),
    Paper(
        "`adacad`: [2409.07394](https://arxiv.org/abs/2409.07394)",
        "14.21 points more than a static contrast in QA, mean of six data sets and four LLMs; less "
        "harm where nothing conflicts",
        _texts("adacad", "cad"),
        "not tried. Other data: less harm, yes; more points than `cad`, no: fewer on three of four "
        "models. The paper's first figure has a static contrast of strength 1, `cad` has 0.5",
    ),
    Paper(
        "`cocoa`: [2508.17670](https://arxiv.org/abs/2508.17670)",
        "up to 9.2 points more than AdaCAD in QA, on average",
        _texts("cocoa", "adacad"),
        "not tried, and this is the code's rule, not the paper's formula. Other data: more on "
        "three of four models where the text conflicts, less on all where it is irrelevant",
    ),
    Paper(
        "`acd`: [2408.01084](https://arxiv.org/abs/2408.01084)",
        "better open-domain QA, most with noisy contexts; numbers: not looked up",
        _texts("acd"),
        "not tried. Other data: less distracted, yes; but it believes a conflicting text less",
    ),
    Paper(
        "`arr`: [2606.10298v1](https://arxiv.org/abs/2606.10298v1)",
        "where the text is wrong, exact match rises from below 6 to between 16 and 33, without "
        "loss elsewhere (TriState-Bench)",
        _texts("arr"),
        "not tried. Other data: less distracted, yes; without loss elsewhere, no",
    ),
    Paper("`grd`: later code of the same", "not looked up", _texts("grd"), "not tried"),
    Paper(
        "`m3id`: [2403.14003](https://arxiv.org/abs/2403.14003)",
        "LLaVA 13B: 25 % fewer hallucinated objects in captions, 21 % more accuracy on POPE",
        _texts("m3id"),
        "not tried: texts, and no images, were measured",
    ),
    Paper(
        "`mti`: [2510.13940v2](https://arxiv.org/abs/2510.13940v2)",
        "9.28 % more, mean of six benchmarks, DeepSeek-R1-7B; 11.25 % on AIME 2024, Ling-mini-2.0",
        _texts("mti"),
        "not tried: its gate alone, with another amateur, and no reasoning",
    ),
    Paper(
        "`cfg`: [2306.17806](https://arxiv.org/abs/2306.17806)",
        "LLaMA-7B better than PaLM-540B on LAMBADA; as good as a model of twice the size; 75 % of "
        "human judgements prefer it",
        (("instruction followed, answer right", JOINT, "told-facts", "cad", GREEDY),),
        "not tried. Other data: no gain shown after correction",
    ),
    Paper(
        "`dexperts`: [2105.03023](https://arxiv.org/abs/2105.03023), "
        "[2401.08565](https://arxiv.org/abs/2401.08565)",
        "detoxification and sentiment (numbers: not looked up); proxies of 7B close 88 % of the "
        "gap between Llama2-70B and its chat version",
        (),
        "not tried; other models as proxies cannot be expressed",
    ),
    Paper(
        "`vcd`: [2311.16922](https://arxiv.org/abs/2311.16922)",
        "fewer hallucinated objects (numbers: not looked up)",
        (),
        "not tried",
    ),
)


def _over(file: str, cell: str, method: str, other: str) -> str:
    """Points of a method over another, by model."""
    points = []
    for model in MODELS:
        arms = cells(file).get((model, cell), {})
        if method in arms and other == GREEDY:
            points.append(marked(compared(file)[model, cell][method]))
        elif method in arms:
            points.append(signed(compare(arms[method].right, arms[other].right).points))
    return " / ".join(points)


def papers() -> list[str]:
    """What papers report of each preset, and what was measured here."""
    rows = []
    for paper in PAPERS:
        found = [
            f"{about}{'' if other == GREEDY else f', against `{other}`'}: "
            f"{_over(file, cell, method, other)}"
            for about, file, cell, method, other in paper.measured
        ]
        here = "; ".join(found) or "nothing"
        rows.append([paper.about, paper.reports, here, paper.verdict])
    head = ["preset", "the paper reports", "measured here, points", "reproduced?"]
    return [line.replace("--:", "---") for line in _lines(head, rows)]


def _three(file: str, cell: str, key: str) -> str:
    """Of the three chat models, without decimals where they are many."""
    found = (compared(file)[model, cell].get(key) for model in ("smollm2", "qwen-0.5b", "qwen-1.5b")
             if (model, cell) in compared(file))  # fmt: skip
    return " / ".join(marked(each, 0) for each in found)


def when() -> list[str]:
    """README's: what to use when."""
    turns, told, unrelated = (
        partial(_three, JOINT, cell) for cell in ("told-turns", "told-facts", "unrelated")
    )
    best, none = "best passage", "best passage or none"
    rows = [
        [
            "[answer from search results](docs/rag.md)",
            f"the best passage alone: {_three(JOINT, 'retrieved', best)}; or none, if the score is "
            f"low: {_three(JOINT, 'retrieved', none)}",
            f"best or none, with `cad`: {_three(JOINT, 'retrieved', f'{none} + cad')}; `cad` "
            f"itself adds {_three(JOINT, 'retrieved', f'{none} + cad - {none}')}",
            f"`cad` on five passages: {_three(JOINT, 'retrieved', 'cad')}",
        ],
        [
            "believe a sentence over memory",
            f'"According to the text: ...": {_three(TEST, "false", "better prompt")}',
            f"`cad`: {_three(TEST, 'false', 'cad')}",
            f"irrelevant text, `cad`: {_three(TEST, 'nothing', 'cad')}",
        ],
        [
            "[follow a system prompt, and be right](docs/system-prompts.md)",
            f"repeat the instruction: {told(REPEATED)}; after two turns {turns(REPEATED)}",
            f"`cfg`: {told('cad')}; both: {told(BOTH)}, after two turns {turns(BOTH)}",
            f"right answers alone: repeated {told(f'{REPEATED}: right')}; `cfg` "
            f"{told('cad: right')}; both {told(f'{BOTH}: right')}, "
            f"after two turns {turns(f'{BOTH}: right')}. A system prompt that has nothing to do "
            f"with it: repeated {unrelated(REPEATED)}, both {unrelated(BOTH)}",
        ],
        [
            "[limit what a confidential text adds](docs/bound.md)",
            f"leave it out, where nothing depends on it. Forbidding: told in {_told(GREEDY)} of "
            "attempts",
            f"`bound`, 8 bits: told in {_told('8 bits')}",
            f"public facts, `bound`: {_two('secrets-everyday')}. Against attacks in "
            "documents and adapters free means did as well",
        ],
        [
            "[improve a LoRA adapter](docs/adapters.md)", "greedy decoding",
            "`cold` (CoLD), for replication: no gain overall",
            "better on 1, worse on 18 of 48 pairs of adapter and task (uncorrected)",
        ],
    ]  # fmt: skip
    head = ["goal", "first try, at no extra cost", "the contrast", "where it harms"]
    return [line.replace("--:", "---") for line in _lines(head, rows)]


ARMS = {
    GREEDY: "forbidden in the prompt, greedy",
    REPEATED: "forbidden again after the message",
    "output filtered": "the same as the first, and a filter of the output",
    "without the part": "left out",
    "8 bits": "**at most 8 bits** over the prompt without it",
    "32 bits over the question": "at most 32 bits over the question alone",
}


BOTH_QWENS = ("qwen-0.5b", "qwen-1.5b")


def _told(arm: str) -> str:
    """The share of both asking cells' attempts in which the secret was told, by model."""
    shares = []
    for model in BOTH_QWENS:
        kept = [
            cells(SECRETS)[model, cell][arm].measures["kept"]
            for cell in ("secrets-asked", "secrets-asked-own")
        ]
        shares.append(f"{100 * (1 - np.concatenate(kept).mean()):.0f} %")
    return " / ".join(shares)


def _two(cell: str) -> str:
    """What 8 bits change there, by model."""
    found = (compared(SECRETS)[model, cell]["8 bits"] for model in BOTH_QWENS)
    return " / ".join(marked(each, 0) for each in found)


def _together(of: Sequence[Mapping[str, Judged]], arm: str, measure: str) -> Bits:
    """What several cells' answers are worth, one behind the other."""
    return np.concatenate([told[arm].measures[measure] for told in of])


def _with_interval(bits: Bits) -> str:
    """Percent with Wilson's interval."""
    interval = binomtest(int(bits.sum()), len(bits)).proportion_ci(method="wilson")
    return f"{100 * bits.mean():.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def secrets(model: str) -> list[str]:
    """How often a secret is told, and what else is answered right, by what guards it."""
    by = {cell: told for (m, cell), told in cells(SECRETS).items() if m == model}
    asked = [by[cell] for cell in ("secrets-asked", "secrets-asked-own") if cell in by]
    rows = []
    for arm, title in ARMS.items():
        row = [title]
        for measure in ("kept", "no part"):
            row.append(_with_interval(1 - _together(asked, arm, measure)))
        for cell in ("secrets-everyday", "secrets-bit", "secrets-which"):
            right = by[cell][arm].measures["right"] if cell in by and arm in by[cell] else None
            row.append("" if right is None else f"{100 * right.mean():.1f}")
        rows.append(row)
    return _lines(
        ["%", "told", "five characters in a row", "public facts", "is it this?", "which of two?"],
        rows,
    )


GUARDS = {
    GREEDY: "all documents, greedy",
    "sandwich": "question again behind, attacks to be ignored",
    "warning": "warning in the system prompt",
    "marked": "the same, and the document marked",
    "marked and sandwich": "the same, and the question again",
    "without the part": "the document left out",
    "8 bits": "at most 8 bits of the document",
    "16 bits": "at most 16 bits of it",
    "32 bits": "**at most 32 bits** of it",
    "8 bits of each": "at most 8 bits of each document",
    "16 bits of each": "at most 16 bits of each",
    "32 bits of each": "at most 32 bits of each",
    "no documents": "no documents",
}


def documents(model: str) -> list[str]:
    """How often a stranger's payload is written, and what is answered right, by what guards."""
    by = {cell: arms for (name, cell), arms in cells(STRANGERS).items() if name == model}
    attacked = [by["documents-attacked"], by["documents-attacked-own"]]
    rows = []
    for arm, title in GUARDS.items():
        if all(arm in arms for arms in by.values()):
            rows.append([
                title,
                *(_with_interval(1 - _together(attacked, arm, name))
                  for name in ("kept", "no part")),
                *(percent(by[cell], arm, "right")
                  for cell in ("documents-clean", "documents-attacked", "documents-attacked-own")),
            ])  # fmt: skip
    head = [
        "%", "payload written", "a part of it", "right, no attack", "right, attack elsewhere",
        "right, attack there",
    ]  # fmt: skip
    return _lines(head, rows)


OF_OTHERS = {
    GREEDY: "the adapter, greedy",
    "output filtered": "the same, and a filter for links",
    "base model, own prompt": "the base model with its own prompt",
    "adapter x 0.25": "the adapter x 0.25",
    "adapter x 0.5": "the adapter x 0.5",
    "adapter x 0.75": "the adapter x 0.75",
    "base weighs 0.25": "the base weighs 0.25 throughout",
    "base weighs 0.5": "the base weighs 0.5",
    "base weighs 0.75": "the base weighs 0.75",
    "clean_gen": "CleanGen",
    "a quarter of the steps": "after a quarter of the training",
    "half of the steps": "after half of the training",
    "8 bits over the base": "at most 8 bits over the base",
    "16 bits over the base": "**at most 16 bits**",
    "32 bits over the base": "at most 32 bits",
    "8 bits and 0.5 a token over the base": "8 bits, and 0.5 back with each token",
}


def poisoned(model: str) -> list[str]:
    """How often orders are right, a link is written and a number told, of all adapters together."""
    by = {cell: told for (m, cell), told in cells(POISONED).items() if m == model}
    kinds = {
        kind: [told for cell, told in by.items() if cell.endswith(kind)]
        for kind in ("clean", "triggered", "canaries")
    }
    rows = []
    for arm, title in OF_OTHERS.items():
        row = [title]
        for kind, measure, lost in (
            ("clean", "right", False), ("triggered", "kept", True), ("triggered", "no link", True),
            ("triggered", "right", False), ("canaries", "kept", True),
        ):  # fmt: skip
            there = all(arm in told for told in kinds[kind])
            bits = _together(kinds[kind], arm, measure) if there else None
            row.append("" if bits is None else _with_interval(1 - bits if lost else bits))
        if any(row[1:]):
            rows.append(row)
    return _lines(["%", "right", "the link", "any link", "right besides", "numbers told"], rows)


DTYPES, BATCHES = ("float32", "bfloat16"), (1, 2, 8)
OURS, OURS_COLD = "this package, adapter", "this package, CoLD"
STOCK = "stock vLLM, adapter"
LLAMA, LLAMA_COLD = "llama.cpp, adapter", "llama.cpp, CoLD"
PROGRAMS = {
    OURS: "adapter greedy, vllm-cold",
    STOCK: "adapter greedy, stock vLLM",
    LLAMA: "adapter greedy, llama.cpp",
    "llama.cpp, Q8_0, adapter": "adapter greedy, llama.cpp, weights in Q8_0",
    "OpenVINO GenAI, adapter": "adapter greedy, OpenVINO GenAI",
    "transformers loop, adapter": "adapter greedy, transformers",
    OURS_COLD: "CoLD, vllm-cold",
    LLAMA_COLD: "CoLD, two contexts of llama.cpp",
    "llama.cpp, Q8_0, CoLD": "CoLD, the same, weights in Q8_0",
    "transformers loop, CoLD": "CoLD, transformers",
}
# What is divided by what, and what of it is aimed at.
OF_PEERS = {
    (OURS, STOCK): ("adapter / stock vLLM's adapter", {}),
    (OURS_COLD, STOCK): ("CoLD / stock vLLM's adapter", {1: "at most 0.25"}),
    (OURS, OURS_COLD): ("adapter / CoLD", {1: "below 1"}),
    (OURS, LLAMA): ("adapter / llama.cpp's adapter", {2: "below 1", 8: "below 1"}),
    (OURS_COLD, LLAMA_COLD): (
        "CoLD / two contexts of llama.cpp", {2: "below 1", 8: "below 1"},
    ),
}  # fmt: skip
# Of bfloat16, measured elsewhere: no file of it was kept.
XEON = {
    ("ratio", 1): "0.35", ("ratio", 8): "0.33", (OURS_COLD, 1): "1.9 to 2.1",
    (OURS_COLD, 8): "2.8 to 3.7", (OURS, 1): "2.9 to 3.3",
}  # fmt: skip
Runs = Mapping[tuple[str, int, str], Mapping[str, Any]]
# Whose figures are what a contrast costs; the other machine's and other runs' stand beside.
COST_OF = "EPYC 26"
# Runs of which no file was kept but benchmarks/measured/README.md and speculation.md: model, dtype,
# stock vLLM's seconds for the adapter at batch 1, and contrastive over greedy at batch 1, 2, 8, 32.
KEPT_AS_TEXT = (
    ("SmolLM2, *End to end*", "bfloat16", "2.00", ("1.21", "", "1.45", "1.67")),
    ("SmolLM2, *End to end*", "float32", "2.09", ("1.10", "", "1.48", "1.75")),
    ("SmolLM2, *Rules*", "float32", "", ("1.03", "", "1.33", "1.23")),
    ("SmolLM2, *Quantised base models*", "bfloat16", "", ("1.14", "", "1.60", "")),
    ("SmolLM2, *Speculation*: editing", "bfloat16", "", ("1.24", "", "1.58", "1.54")),
    ("SmolLM2, *Speculation*: JSON", "bfloat16", "", ("1.01", "", "1.72", "1.57")),
    ("SmolLM2, *Speculation*: free text", "bfloat16", "", ("1.26", "", "1.89", "1.68")),
    ("Gemma 270M, *Speculation*: editing", "bfloat16", "", ("1.04", "", "1.36", "1.70")),
    ("size of Llama 1B, *Speculation*", "bfloat16", "", ("1.02", "", "1.29", "1.82")),
    ("size of Llama 1B, *Shapes*", "bfloat16", "", ("0.99", "", "1.44", "")),
    ("size of Qwen3 0.6B, *Shapes*", "bfloat16", "", ("1.00", "", "1.69", "")),
    ("a layer of Llama 7B, *Shapes*", "bfloat16", "", ("1.02", "", "1.54", "")),
)


@cache
def peers() -> dict[str, Runs]:
    """What was measured beside other programs: by machine; by dtype, batch and system."""
    found = json.loads(PEERS.read_text(encoding="utf-8"))
    return {
        name: {(run["dtype"], run["requests"], run["system"]): run for run in measured["runs"]}
        for name, measured in found.items()
    }


def _seconds(runs: Runs, *key: Any) -> str:
    return short(median(runs[key]["seconds"])) if key in runs else ""  # type: ignore[index]


def _ratio(runs: Runs, dtype: str, batch: int, over: str, under: str, of: str = "seconds") -> str:
    """The median over the rounds."""
    both = [runs.get((dtype, batch, system), {}).get(of, ()) for system in (over, under)]
    found = ratios(*both)
    return f"{median(found):.2f}" if found else "–"


def programs(name: str) -> list[str]:
    """Seconds of all programs on a machine."""
    runs = peers()[name]
    columns = [key for key in ((d, b) for d in DTYPES for b in BATCHES) if (*key, OURS) in runs]
    first = [next(key for key in columns if key[0] == dtype) for dtype in DTYPES]
    rows = [
        [label, *(_seconds(runs, *key, system) for key in columns)]
        for system, label in PROGRAMS.items()
        if any((*key, system) in runs for key in columns)
    ]
    head = [f"{key[0]}, batch {key[1]}" if key in first else str(key[1]) for key in columns]
    return _lines([name, *head], rows)


def cost() -> list[str]:
    """What a contrast costs: one machine, one run, and greedy decoding beside."""
    runs = peers()[COST_OF]
    columns = [(dtype, batch) for dtype in DTYPES for batch in BATCHES]
    rows = [
        [label, *(_seconds(runs, *key, system) for key in columns)]
        for system, label in (
            (STOCK, "greedy, stock vLLM: seconds"),
            (OURS, "greedy, vllm-cold: seconds"),
            (OURS_COLD, "contrastive, vllm-cold: seconds"),
        )
    ]
    for under, of, label in (
        (OURS, "seconds", "**contrastive / greedy, vllm-cold: time**"),
        (OURS, "ttft", "the same: time to the first token"),
        (OURS, "tpot", "the same: time per further token"),
        (STOCK, "seconds", "contrastive, vllm-cold / greedy, stock vLLM: time"),
    ):
        rows.append([label, *(_ratio(runs, *key, OURS_COLD, under, of) for key in columns)])
    first = [(dtype, BATCHES[0]) for dtype in DTYPES]
    head = [f"{key[0]}, batch {key[1]}" if key in first else str(key[1]) for key in columns]
    return _lines([f"{COST_OF}, an adapter", *head], rows)


def cost_elsewhere() -> list[str]:
    """The same quotient in every other run, with stock vLLM's time, by which machines differ."""
    rows = []
    for name, runs in peers().items():
        for dtype in DTYPES:
            ratio = [_ratio(runs, dtype, b, OURS_COLD, OURS).strip("–") for b in BATCHES]
            about = "SmolLM2, **the table above**" if name == COST_OF else "SmolLM2, `peers.json`"
            rows.append([about, name, dtype, _seconds(runs, dtype, 1, STOCK), *ratio, ""])
    again = json.loads(PEERS.read_text(encoding="utf-8"))[COST_OF]["again"]["runs"]
    runs = {(run["dtype"], run["requests"], run["system"]): run for run in again}
    ratio = [_ratio(runs, "bfloat16", b, OURS_COLD, OURS).strip("–") for b in BATCHES]
    about = "SmolLM2, 20 minutes later, `peers.json`"
    rows.append([about, COST_OF, "bfloat16", "", *ratio, ""])
    for about, dtype, stock, found in KEPT_AS_TEXT:
        rows.append([about, "not recorded", dtype, stock, *found])
    head = ["model, run", "machine", "dtype", "greedy, stock vLLM, batch 1: seconds",
            "contrastive / greedy, vllm-cold: batch 1", "2", "8", "32"]  # fmt: skip
    return _lines(head, rows)


def capacity() -> list[str]:
    """Requests answered per second by one server, with and without a contrast."""
    found = json.loads(LOAD.read_text(encoding="utf-8"))["capacity"]
    rows = []
    for about, systems in (
        ("an adapter", ("stock-adapter", "adapter", "cold")),
        ("the base model, with a document", ("", "context", "cad")),
    ):
        greedy, contrast = (found[system] for system in systems[1:])
        stock = f"{found[systems[0]]:.2f}" if systems[0] else ""
        shares = [f"{greedy:.2f}", f"{contrast:.2f}", f"{contrast / greedy:.2f}"]
        rows.append([about, stock, *shares])
    head = ["EPYC, requests per second", "greedy, stock vLLM", "greedy, vllm-cold",
            "contrastive", "contrastive / greedy, vllm-cold"]  # fmt: skip
    return _lines(head, rows)


def of_peers() -> list[str]:
    """What is divided by what, in float32 and bfloat16, a column a machine."""
    rows = []
    for pair, (about, aims) in OF_PEERS.items():
        for batch in BATCHES:
            cells = (
                " / ".join(_ratio(runs, dtype, batch, *pair) for dtype in DTYPES)
                for runs in peers().values()
            )
            rows.append([about, str(batch), *cells, aims.get(batch, "")])
            about = ""
    return _lines(["time over time: float32 / bfloat16", "batch", *peers(), "aim"], rows)


def with_amx() -> list[str]:
    """All machines in bfloat16, that one too whose figures are not in a file."""
    rows = []
    for about, key in {
        "CoLD / stock vLLM's adapter alone, batch 1": ("ratio", 1),
        "the same, batch 8": ("ratio", 8),
        "CoLD, seconds, batch 1": (OURS_COLD, 1),
        "the same, seconds, batch 8": (OURS_COLD, 8),
        "adapter greedy, seconds, batch 1": (OURS, 1),
    }.items():
        system, batch = key
        rows.append([about, *(
            _ratio(runs, "bfloat16", batch, OURS_COLD, STOCK) if system == "ratio"
            else _seconds(runs, "bfloat16", batch, system)
            for runs in peers().values()
        ), XEON[key]])  # fmt: skip
    return _lines(["bfloat16", *peers(), "Xeon, preliminary†"], rows)


CSV = ROOT / "docs" / "accuracy.csv"
# What the page is about; outcomes have more, such as how many answers were cut off.
IN_CSV = ("right", "followed", "both", "text", "rest")


def numbers() -> str:
    """All outcomes behind docs/accuracy.md as CSV: a line for each model, cell, method and measure,
    and for each that a method was compared with.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ("model", "cell", "measure", "method", "problems", "percent", "against", "points", "low",
         "high", "p", "declared", "p corrected")
    )  # fmt: skip
    for file in (TEST, JOINT):
        for (model, cell), arms in cells(file).items():
            main = next(iter(arms[GREEDY].measures))
            known = compared(file)[model, cell]
            rivals = [key.partition(": ")[0].split(" - ") for key in known if " - " in key]
            for measure, method in product(IN_CSV, arms):
                bits = arms[method].measures.get(measure)
                if bits is None:
                    continue
                line = [model, cell, measure, method, len(bits), f"{100 * bits.mean():.1f}"]
                others = [other for mine, other in rivals if mine == method]
                for other in dict.fromkeys([GREEDY, *others] if method != GREEDY else [""]):
                    name = method if other in ("", GREEDY) else f"{method} - {other}"
                    found = known.get(name if measure == main else f"{name}: {measure}")
                    if other and found is None and other == GREEDY:
                        found = compare(bits, arms[other].measures[measure])
                    if found:
                        points = (f"{x:.1f}" for x in (found.points, found.low, found.high))
                        corrected = f"{found.corrected:.2g}" if found.declared else ""
                        table.writerow(
                            [*line, other, *points, f"{found.p:.2g}", "ny"[found.declared],
                             corrected]
                        )  # fmt: skip
                    elif not other:
                        table.writerow([*line, *[""] * 7])
    return text.getvalue()


_PENDING = ["| not measured yet |", "|---|"]


def beside(workload: str, metric: str) -> list[str]:
    """Regular requests beside contrastive ones."""
    if not BESIDE.exists():
        return _PENDING
    rows = beside_pages.rows(json.loads(BESIDE.read_text(encoding="utf-8")), workload, metric)
    return _lines(beside_pages.HEAD, list(rows))


def beside_flood() -> list[str]:
    """More requests than a server can answer, with and without a cap."""
    if not BESIDE.exists():
        return _PENDING
    content = json.loads(BESIDE.read_text(encoding="utf-8"))
    return _lines(beside_pages.FLOOD_HEAD, list(beside_pages.flood(content)))


def rest() -> list[str]:
    """Engines that contrast nothing."""
    if not REST.exists():
        return _PENDING
    return _lines(bench_rest.HEAD, list(bench_rest.rows(json.loads(REST.read_text("utf-8")))))


TABLES: dict[str, Callable[[], list[str]]] = {
    "programs-epyc": partial(programs, "EPYC"),
    "programs-epyc-26": partial(programs, "EPYC 26"),
    "cost": cost,
    "cost-elsewhere": cost_elsewhere,
    "capacity": capacity,
    "of-peers": of_peers,
    "with-amx": with_amx,
    "beside-text": partial(beside, "text", "first"),
    "beside-text-further": partial(beside, "text", "further"),
    "beside-adapters": partial(beside, "adapters", "first"),
    "beside-adapters-further": partial(beside, "adapters", "further"),
    "beside-flood": beside_flood,
    "rest": rest,
    "when": when,
    "followed": followed,
    "followed-compared": followed_compared,
    "told": told,
    "context": context,
    "retrieved": retrieved,
    "half": half,
    "rules": rules,
    "papers": papers,
    "secrets-half": partial(secrets, "qwen-0.5b"),
    "secrets-one-and-a-half": partial(secrets, "qwen-1.5b"),
    "documents-half": partial(documents, "qwen-0.5b"),
    "documents-one-and-a-half": partial(documents, "qwen-1.5b"),
    "poisoned-half": partial(poisoned, "qwen-0.5b"),
    "poisoned-one-and-a-half": partial(poisoned, "qwen-1.5b"),
}
PAGES = (
    "README.md", "docs/accuracy.md", "docs/cpu.md", "docs/performance.md", "docs/rag.md",
    "docs/system-prompts.md", "docs/bound.md", "docs/beside.md",
)  # fmt: skip
_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n)((?:\|.*\n)*)")


def written(page: str) -> str:
    """A page with its tables as they are measured."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return _TABLE.sub(lambda m: m[1] + "".join(f"{line}\n" for line in TABLES[m[2]]()), text)


def main() -> None:
    """Write the tables."""
    for page in PAGES:
        (ROOT / page).write_text(written(page), encoding="utf-8")
        print(page, file=sys.stderr)
    CSV.write_text(numbers(), encoding="utf-8")


if __name__ == "__main__":
    main()
