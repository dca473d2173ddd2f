# SPDX-License-Identifier: Apache-2.0
"""The facts: said, asked, and found in answers."""

import pytest

from examples.facts import Fact, facts, names, others

pytestmark = pytest.mark.unit


def test_a_wrong_answer_is_none_of_the_right_ones() -> None:
    for fact in facts():
        found = others(fact, facts())
        assert found
        assert not set(found) & set(fact.answers)
    sudan = Fact("countries language", "Sudan", ("Arabic",))
    assert "Arabic" not in others(sudan, facts())


@pytest.mark.parametrize(
    ("text", "answers", "named"),
    [
        ("It is in Asunción.", ("Asuncion",), True),
        ("The Yen", ("yen",), True),
        ("dollars", ("dollar",), True),
        ("Nigeria", ("Niger",), False),
        ("I think that it is Pb.", ("I",), False),
        ("Its symbol is I.", ("I",), True),
        ("it is iodine", ("I",), False),
        ("I'm sorry, I cannot say.", ("I",), False),
        ("As an AI model", ("As",), False),
        ("The symbol is He.", ("He",), True),
        ("the symbol is he", ("He",), False),
        ("", ("Lima",), False),
    ],
)
def test_names_are_words_of_their_own(text: str, answers: tuple[str, ...], named: bool) -> None:
    assert names(text, answers) is named
