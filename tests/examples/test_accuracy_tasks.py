# SPDX-License-Identifier: Apache-2.0
"""The accuracy benchmark's problems: those that the published figures are of, each in one split,
and what is judged in two ways at once.
"""

import hashlib
from dataclasses import replace

import pytest

from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Prompt, Split
from benchmarks.accuracy.report import PROBLEMS
from benchmarks.accuracy.tasks import CELLS, joint

pytestmark = pytest.mark.unit

CHAT = Model("small", "Small", "chat", "nowhere")
BASE = replace(CHAT, kind="base")
SPLITS: tuple[Split, ...] = ("dev", "test")
# Digests of the problems, of the cells that need no others' data: with other problems, what is
# decoded cannot be compared with docs/accuracy.md.
MEASURED = {
    "false": "b1c296b6c4912a3c",
    "near": "4cb8b3c739fd7a11",
    "nothing": "f204058debd83dfc",
    "false-among": "7078bd7a1818a462",
    "true-among": "1912cbf7c72b47f7",
    "retrieved": "787f1eebd523577b",
    "instructions": "979cdcb9d9e6b9dd",
    "plain-questions": "f6efa166309fbca8",
    "told-facts": "e24cf57ba3aef8cb",
    "told-two": "f296ea819d9d12e6",
    "told-long": "22bcf63b637c70d5",
    "told-turns": "fe4eccd2f97f5bd0",
    "unrelated": "dcdfa57fd6a9fee4",
    "half-answered": "4068ff0aee1c1deb",
    "words-r8-100": "5c86843b68161a40",
}


def text_of(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(message["content"] for message in prompt)


@pytest.mark.parametrize("name", MEASURED)
def test_problems_are_those_that_were_measured(name: str) -> None:
    if name == "instructions" or name.startswith("told"):
        pytest.importorskip("langdetect")
    digest, seen, cell = hashlib.sha256(), set[str](), CELLS[name]
    for split in SPLITS:
        for model in (model for model in (CHAT, BASE) if cell.is_for(model)):
            problems = cell.make(model, split, PROBLEMS[split])
            assert cell.make(model, split, 7) == problems[:7]
            digest.update(repr(problems).encode())
            prompts = {text_of(problem.prompt) for problem in problems}
            assert len(prompts) == len(problems) >= 10 and not prompts & seen
        seen |= prompts
    assert digest.hexdigest()[:16] == MEASURED[name]


def test_an_answer_must_follow_and_be_right() -> None:
    (problem,) = (
        problem for problem in CELLS["told-facts"].make(CHAT, "test", 10) if problem.kind == "title"
    )
    right = problem.judged.known.right[0]
    for text, both, followed, is_right, parrots in (
        (f"<<Answer>> {right}", True, True, True, False),
        (f"<<{right}>>", True, True, True, False),
        (right, False, False, True, False),
        ("<<Answer>> none", False, True, False, False),
        (f"<<poem of joy>> {right}", False, False, True, True),
        (f"<<Poem of Joy>> <<Answer>> {right}", True, True, True, True),
        ("", False, False, False, False),
    ):
        assert joint.score(text, problem) == {
            "both": both, "followed": followed, "right": is_right, "parrots": parrots,
            "disagree": False, "misjudged": False,
        }, text  # fmt: skip


def test_of_two_questions_each_half_is_judged() -> None:
    problem = CELLS["half-answered"].make(CHAT, "test", 1)[0]
    text, rest = problem.judged.by_text, problem.judged.by_memory
    for answer, outcome in (
        (f"{text.right[0]}. {rest.right[0]}", (True, True, True)),
        (f"{text.right[0]}.", (False, True, False)),
        (f"{text.wrong[0]}. {rest.right[0]}", (False, False, True)),
    ):
        assert tuple(joint.score_halves(answer, problem).values()) == outcome
    assert text.right[0] in text_of(problem.prompt)
    assert text.right[0] not in text_of(problem.without)
