# SPDX-License-Identifier: Apache-2.0
"""IFEval's instructions are read before anything is decoded, and judged strictly."""

from typing import Any

import pytest

from vllm_cold.settings.sources import Text
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.tune.match import load_keeper, load_matcher
from vllm_cold.tools.tune.problems import Problem

pytestmark = pytest.mark.unit

TEXT = "The bridge is old and it has nine arches, as everybody knows."
Said = dict[str, dict[str, Any]]
BULLETS = "detectable_format:number_bullet_lists"
EXISTENCE, FREQUENCY, LETTERS = (
    f"keywords:{name}" for name in ("existence", "frequency", "letter_frequency")
)


def problem(said: Any, keep: Any = None) -> Problem:
    return Problem("p", 3, Text("How many arches?"), said, keep=keep)


def follows(output: str, said: Said) -> float:
    kinds = {"instruction_id_list": list(said), "kwargs": list(said.values())}
    one = problem({"key": 7, **kinds})
    return load_matcher("ifeval", [one])(output, one)


@pytest.mark.parametrize(
    ("said", "good", "bad"),
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
def test_an_instruction_is_followed_or_not(said: Said, good: str, bad: str) -> None:
    assert (follows(good, said), follows(bad, said)) == (1.0, 0.0)
    for empty in ("", " \n"):  # which has no comma either
        assert follows(empty, said) == 0.0


def test_the_same_text_has_the_same_language_each_time() -> None:
    said: Said = {"language:response_language": {"language": "en"}}
    assert len({follows("a on de", said) for _ in range(40)}) == 1


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"punctuation:no_commas": {}}, "'punctuation:no_commas': must be one of keywords:exist"),
        ({"punctuation:no_comma": {"most": 1}}, "no_comma: kwargs must be none, and are most"),
        ({FREQUENCY: {"keyword": "a", "relation": "at least", "frequency": None}},
         f"{FREQUENCY}: kwargs must be keyword, frequency, relation, and are keyword, relation"),
        ({FREQUENCY: {"keyword": "a", "relation": "about", "frequency": 2}},
         f"{FREQUENCY}: The supported relation for comparison must be in"),
        ({"language:response_language": {"language": "xx"}}, "_language: KeyError: 'xx'"),
        ({EXISTENCE: {"keywords": ["a", "("]}}, f"{EXISTENCE}: (error|PatternError): missing"),
        ({BULLETS: {"num_bullets": "2"}}, f"{BULLETS}: TypeError: '<' not supported"),
        # Each of these would be replaced by a random one, or judged by letters.
        ({BULLETS: {"num_bullets": -1}}, f"{BULLETS}: does not take {{'num_bullets': -1}}"),
        ({LETTERS: {"letter": "#", "let_frequency": 4, "let_relation": "at least"}},
         f"{LETTERS}: does not take {{'letter': '#'"),
        ({EXISTENCE: {"keywords": "arch"}}, f"{EXISTENCE}: does not take {{'keywords': 'arch'}}"),
        ({"keywords:forbidden_words": {"forbidden_words": []}}, "forbidden_words: does not take"),
        ({}, "must be an object as in IFEval's data"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_named_with_its_line(said: Said, message: str) -> None:
    with pytest.raises(
        ToolError, match=f"^--match='ifeval': line 3: cannot use the answer: .*{message}"
    ):
        follows("", said)


@pytest.mark.parametrize(
    "said", [None, "text", [], {"instruction_id_list": ["punctuation:no_comma"]},
             {"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}],
)  # fmt: skip
def test_what_is_no_instruction(said: Any) -> None:
    with pytest.raises(ToolError, match=r"line 3: cannot use the answer: must be an object as in"):
        load_matcher("ifeval", [problem(said)])
    if said is not None:
        with pytest.raises(
            ToolError, match=r"^--keep='ifeval': line 3: cannot use the keep: must be"
        ):
            load_keeper("ifeval", [problem("a", said)])


def test_what_nltk_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two kinds that count sentences, or words as they do, read a file of NLTK's."""
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [])
    for kind, given in (
        ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}),
        ("change_case:capital_word_frequency",
         {"capital_frequency": 2, "capital_relation": "at least"}),
    ):  # fmt: skip
        said = f"{kind}: needs a file of NLTK's: python -m nltk.downloader punkt_tab"
        with pytest.raises(ToolError, match=said):
            follows("", {kind: given})
