# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-cold explain`` makes of what an engine tells; the numbers are in
``server/test_explain``.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.browser.reports import end_of
from tests.questions import Prompt, questions
from tests.unit.test_explain_images import BOTH, PICTURED
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.explain import account, visible
from vllm_cold.tools.explain.record import Answer

pytestmark = pytest.mark.unit


def told(**changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "candidates": 9,
        "tokens": [5, 3, 8],
        "texts": [" a", "\ufffd", None],
        "scores": [2.0, 1.5, None],
        "logits": [[1.0, 3.0, 3.0], [0.0, 1.0, None], None],
        "log_sums": [3.5, 2.0, None],
        "weights": [-0.5, None],
        "divergences": [0.25, None],
    }
    return {**given, **changed}


def made(tokens: list[int], *steps: dict[str, Any], greedy: bool = False) -> Answer:
    [question] = questions(["xy"], preset="cad", part="0:1", rule="mti")
    return account.make_answer(question, greedy, "", end_of(tokens, steps, "stop", 3))


def test_a_step() -> None:
    both = told(weights=[-0.5, 1.0])
    first, second = made([5, 5], both, told()).steps
    assert [(c.token, c.text, c.valid) for c in second.candidates] == [
        (5, "␣a", True), (3, "⟨3⟩", True), (8, "⟨8⟩", False)
    ]  # fmt: skip
    best, other, last = second.candidates
    assert (best.expert, last.amateurs) == (pytest.approx(0.082085), (0.0, None))
    assert (best.taken_by, other.taken_by) == (("cad",), ("greedy",))
    assert (second.greedy, second.differs, second.valid_size) == (3, True, 9)
    assert (second.weights, second.divergence, second.level) == ((-0.5, None), 0.25, 4)
    assert (first.ends, second.ends) == ((2,), ())
    # Of equal ones an engine may take any.
    [step] = made([8], told(), greedy=True).steps
    assert (step.greedy, step.differs, step.weights) == (8, False, ())
    with pytest.raises(ToolError, match="a token was chosen that is not among the 20 best"):
        made([6], told())


def budget(**changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "bits": 8.0,
        "bits_per_token": [0.0, 0.5],
        "refund": 0.0,
        "spent": [0.75, -0.5],
        "left": [7.25, 8.0],
        "reached": [False, True],
    }
    return {**given, **changed}


def bounded(steps: list[dict[str, Any]], **changed: Any) -> Answer:
    texts = {"preset": "bound", "without_text": ["a", "b"], "bits": 8}
    [question] = questions(["abc"], **texts)
    fields = end_of([5] * len(steps), steps, "stop", 3)
    fields["kv_transfer_params"]["cold"]["budget"] = budget(**changed)
    return account.make_answer(question, False, "", fields)


def test_an_answer_with_limits() -> None:
    """A rule of scores has no weights, so nothing is idle; what has ended has no bits."""
    here = told(weights=[0.0, 0.0], cost=[0.75, -0.5], left=[8.0, 8.0], limited=[False, True])
    gone = told(weights=[0.0, None], cost=[0.0, None], left=[7.25, None], limited=[False, None])
    answer = bounded([here, gone])
    first, second = answer.steps
    assert first.weights == second.weights == () and (first.ends, second.ends) == ((2,), ())
    assert (first.cost, first.left, first.limited) == ((0.75, -0.5), (8.0, 8.0), (False, True))
    assert (second.cost, second.left) == ((0.0, None), (7.25, None))
    assert (first.is_limited, second.is_limited) == (True, False)
    assert answer.summary.endswith(
        " · amateur 1: spent 0.8 bits, 7.2 left of 8, limit not reached"
        " · amateur 2: spent -0.5 bits, 8.0 left of 8 + 0.5 a token, limit reached"
    )
    one, two = answer.limits
    assert one.shares(0.75, 8.0, 9.0) == (7.25 / 8, 1.0)
    assert two.shares(-0.5, 4.0, 9.0) == (0.5, 0.5)
    assert two.shares(None, None, 9.0) == (0.0, 0.0)
    nothing, _ = bounded([here], bits=[0.0, 1.0]).limits
    assert nothing.shares(0.0, 0.0, 1.0) == (0.0, 0.0)
    # What is not limited is measured.
    free, _ = bounded([here], bits=1e6, bits_per_token=0.0).limits
    assert free.bits is None and free.summary == "spent 0.8 bits, no limit"
    assert free.shares(0.75, 1e6, 1.5) == (0.0, 0.5)
    # Greedy's own answer has none.
    assert made([5], told(), greedy=True).limits == ()


def test_texts() -> None:
    assert account.spread("The capital", ["The", "capital", "</s>"]) == ["The", " capital", "</s>"]
    assert account.spread("a漢b", ["a", "", "漢", "b"]) == ["a", "", "漢", "b"]
    assert "".join(account.spread("x  y", ["x", " ", "y"])) == "x  y"
    assert visible.in_text("a\n\n", 1) == "a⏎\n⏎\n" and visible.in_text("  ", 1) == "␣␣"
    assert visible.in_text("", 17) == visible.alone("", 17) == "⟨17⟩"
    assert visible.in_text("\x1b[31m\u202e\u00a0", 1) == "⟨U+001B⟩[31m⟨U+202E⟩⟨U+00A0⟩"
    assert visible.alone(" é漢🙂\n\t", 1) == "␣é漢🙂⏎⇥"


SERVER: Any = SimpleNamespace(title="m", base="base", about="made up", expert="adapter")


CHAT = (("system", "ab"), ("user", "c"))
TWO: dict[str, Any] = {"amateur": ["base", ""], "amateur_prompt": ["", "xy"]}
OWN = '[{"role": "user", "content": "x"}]'
SEEN = "[image one.png, 5 × 4, blur:2]\n[image two.png, 7 × 9, blur:2]\ncd"


@pytest.mark.parametrize(
    ("prompt", "contrast", "said"),
    [
        ("ab", {"rule": "adaptive"}, [("base model, weight adaptive", [])]),
        (
            "ab",
            {**TWO, "weights": ["mti", 0.25]},
            [("base model, weight mti", []), ("adapter, text of its own, weight +0.25", ["xy"])],
        ),
        (
            CHAT,
            {"without": "system", "preset": "cfg"},
            [("adapter without system, weight -0.5", ["c"])],
        ),
        ("abcd", {"part": "1:2,3:4"}, [("adapter without 1:2,3:4, weight -0.5", ["ac"])]),
        (CHAT, {"amateur_messages": OWN}, [("adapter, messages of its own, weight -0.5", ["x"])]),
        (
            "abcd",
            {"preset": "bound", "without_text": "bc", "bits": 8},
            [("adapter without a text, limit 8 bits", ["ad"])],
        ),
        (
            CHAT,
            {
                "preset": "bound",
                "without_text": ["a", "c"],
                "bits": [2.5, 1e6],
                "bits_per_token": 0.25,
            },
            [
                ("adapter without a text, limit 2.5 bits + 0.25 a token", ["b", "c"]),
                ("adapter without a text, no limit", ["ab", ""]),
            ],
        ),
        (BOTH, {"images": "blur:2"}, [("adapter blur:2, weight -0.5", [SEEN])]),
        (PICTURED, {"images": "none"}, [("adapter without images, weight -0.5", ["ab", "c"])]),
    ],
)
def test_what_the_report_says_of_amateurs(
    prompt: Prompt, contrast: dict[str, Any], said: list[Any]
) -> None:
    answers = [made([5], told(), greedy=greedy) for greedy in (False, True)]
    report = account.make_report(SERVER, questions([prompt], **contrast), [answers])
    is_bound = contrast.get("preset") == "bound"
    assert report.settings == ("" if is_bound else f"alpha {0 if 'preset' in contrast else 0.1:g}")
    assert report.has_weights is not is_bound
    amateurs = report.explanations[0].amateurs
    assert [(one.label, [piece.text for piece in one.pieces]) for one in amateurs] == said
