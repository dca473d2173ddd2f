# SPDX-License-Identifier: Apache-2.0
"""Facts are found in answers."""

import pytest

from examples.facts import names

pytestmark = pytest.mark.unit


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
