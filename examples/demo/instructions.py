# SPDX-License-Identifier: Apache-2.0
"""Questions under an instruction in the system prompt: what is followed, what is right, and both.

The same model answers greedily, with the instruction repeated, and with a contrast with itself
without the instruction (classifier-free guidance). Questions, instructions and their checks are
those of ``benchmarks/accuracy``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Problem
from benchmarks.accuracy.tasks import CELLS, joint

HELD_OUT = 50
PRESET = "cfg"
_CELL = CELLS["told-facts"]
_CHAT = Model("demo", "the demo's", "chat", "examples.smollm2")
# As the table calls it: is the instruction repeated, and is there a contrast?
WAYS: Mapping[str, tuple[bool, bool]] = {
    "greedy": (False, False),
    "repeated": (True, False),
    "contrast": (False, True),
    "repeated, contrast": (True, True),
}


def held_out(count: int = HELD_OUT) -> list[Problem]:
    """Problems that are counted: sampled once, nothing was chosen on them."""
    return _CELL.problems(_CHAT, "test", count)


def answer(llm: Any, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Let an engine answer all problems in all ways, in one batch: texts by way."""
    from vllm import SamplingParams

    from vllm_cold import Amateur, ColdParams

    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": _CELL.max_tokens}
    chats, params = [], []
    for twice, contrast in WAYS.values():
        for problem in problems:
            chats.append(list(problem.plain["repeated"] if twice else problem.prompt))
            amateur = Amateur(prompt=list(problem.without))
            cfg = ColdParams.preset(PRESET, amateur=amateur, **options)
            params.append(cfg if contrast else SamplingParams(**options))
    texts = [one.outputs[0].text for one in llm.chat(chats, params, use_tqdm=False)]
    n = len(problems)
    return {way: texts[i * n : (i + 1) * n] for i, way in enumerate(WAYS)}


def table(problems: Sequence[Problem], answers: Mapping[str, Sequence[str]]) -> Table:
    """How many answers follow, are right, and both, in each way."""
    found = Table(expand=True)
    found.add_column(f"of {len(problems)} held out", no_wrap=True)
    for title in ("followed", "right", "followed and right"):
        found.add_column(title, ratio=1)
    for way, texts in answers.items():
        outcomes = [joint.outcome(*pair) for pair in zip(texts, problems, strict=True)]
        followed, right, both = (
            sum(each) for each in zip(*((f, r, f and r) for f, r in outcomes), strict=True)
        )
        found.add_row(way, *map(str, (followed, right, both)))
    return found


def note(problem: Problem) -> str:
    """How the table came about, and what to learn from it."""
    system, user = (str(each["content"]) for each in problem.prompt if not isinstance(each, str))
    return (
        f'[dim]Asked as in "{user}", under "{system}". Sampled at random. The contrast '
        f"is with the same model without the instruction (preset {PRESET}). What makes this model "
        "follow more makes fewer answers right; on larger ones less so (docs/accuracy.md). Count "
        "both at once on your own questions: vllm-cold tune.[/]"
    )
