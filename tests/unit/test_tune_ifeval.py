# SPDX-License-Identifier: Apache-2.0
"""IFEval's instructions are read before anything is decoded, and judged strictly."""

from typing import Any

import pytest

from vllm_cold.settings.amateurs import Text
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.tune.match import load_keeper, load_matcher
from vllm_cold.tools.tune.problems import Problem

pytestmark = pytest.mark.unit

TEXT = "The bridge is old and it has nine arches, as everybody knows."
Instructions = dict[str, dict[str, Any]]
BULLETS = "detectable_format:number_bullet_lists"
EXISTENCE, FREQUENCY, LETTERS = (
    f"keywords:{name}" for name in ("existence", "frequency", "letter_frequency")
)


def problem(instructions: Any, keep: Any = None) -> Problem:
    return Problem("p", 3, Text("How many arches?"), instructions, keep=keep)


def follows(output: str, instructions: Instructions) -> float:
    kinds = {"instruction_id_list": list(instructions), "kwargs": list(instructions.values())}
    one = problem({"key": 7, **kinds})
    return load_matcher("ifeval", [one])(output, one)


@pytest.mark.parametrize(
    ("instructions", "good", "bad"),
    [
        ({"punctuation:no_comma": {}}, TEXT.replace(",", ""), TEXT),
        ({"startend:quotation": {}}, f' "{TEXT}"\n', f'"{TEXT}'),
        ({"detectable_format:json_format": {}}, '```json\n{"arches": 9}\n```', "[" * 9999),
        ({"language:response_language": {"language": "en"}}, TEXT, "Il ponte ha nove archi, sai?"),
        # As a table has it: the columns of other kinds are empty.
        ({"keywords:existence": {"keywords": ["arch", "OLD"], "num_words": None}}, TEXT, "arch"),
        # All have to hold, of the output as it is.
        ({"startend:end_checker": {"end_phrase": "Y."}, "punctuation:no_comma": {}}, "X y.", "X"),
    ],
)  # fmt: skip
def test_an_instruction_is_followed_or_not(instructions: Instructions, good: str, bad: str) -> None:
    assert (follows(good, instructions), follows(bad, instructions)) == (1.0, 0.0)
    for empty in ("", " \n"):  # which has no comma either
        assert follows(empty, instructions) == 0.0


def test_the_same_text_has_the_same_language_each_time() -> None:
    instructions: Instructions = {"language:response_language": {"language": "en"}}
    assert len({follows("a on de", instructions) for _ in range(40)}) == 1


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ({"punctuation:no_commas": {}}, "'punctuation:no_commas': must be one of keywords:exist"),
        ({FREQUENCY: {"keyword": "a", "relation": "at least", "frequency": None}},
         f"{FREQUENCY}: kwargs must be keyword, frequency, relation, and are keyword, relation"),
        ({EXISTENCE: {"keywords": ["a", "("]}}, f"{EXISTENCE}: (error|PatternError): missing"),
        # Each of these would be replaced by a random one, or judged by letters.
        ({BULLETS: {"num_bullets": -1}}, f"{BULLETS}: does not take {{'num_bullets': -1}}"),
        ({LETTERS: {"letter": "#", "let_frequency": 4, "let_relation": "at least"}},
         f"{LETTERS}: does not take {{'letter': '#'"),
        ({EXISTENCE: {"keywords": "arch"}}, f"{EXISTENCE}: does not take {{'keywords': 'arch'}}"),
        ({}, "must be an object as in IFEval's data"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_named_with_its_line(
    instructions: Instructions, message: str
) -> None:
    with pytest.raises(
        ToolError, match=f"^--match='ifeval': line 3: cannot use the answer: .*{message}"
    ):
        follows("", instructions)


@pytest.mark.parametrize(
    "answer", ["text", [], {"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}]
)
def test_what_is_no_instruction(answer: Any) -> None:
    with pytest.raises(ToolError, match=r"^--keep='ifeval': line 3: cannot use the keep: must be"):
        load_keeper("ifeval", [problem("a", answer)])


def test_what_nltk_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds that count sentences, or words as they do, read a file of NLTK's."""
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [])
    kind = "length_constraints:number_sentences"
    needs = f"{kind}: needs a file of NLTK's: python -m nltk.downloader punkt_tab"
    with pytest.raises(ToolError, match=needs):
        follows("", {kind: {"num_sentences": 2, "relation": "at least"}})
