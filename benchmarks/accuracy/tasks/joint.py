# SPDX-License-Identifier: Apache-2.0
"""What is followed must be right, too: instructions with questions whose answers are known.

An answer counts if it follows the instruction of the system prompt **and** is right ("both"). The
instructions, their words and the check are IFEval's (arXiv 2311.07911, Apache-2.0) as the package
if-verifiable keeps them; whether lm-evaluation-harness' check of the same answer says the same is a
measure besides. Small and capital letters are judged by the letters alone: both packages ask
langdetect besides whether the answer is English, for which "paris" is Indonesian. An answer that
merely copies the example of the instruction's own words has not followed it. The amateur lacks the
system prompt.

Besides one instruction: two in one system prompt, one amid a long system prompt, one after earlier
turns, and users' requests that others wrote (IFBench, arXiv 2507.02833), whose answers nobody
knows: there "right" is no loop. The control's system prompt has nothing to do with the question.
And the like for texts: two questions at a time, of which the text answers one, against memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any

from benchmarks.accuracy import packages
from benchmarks.accuracy.models import Model
from benchmarks.accuracy.problem import Cell, Problem, Prompt, Split, split_of
from benchmarks.accuracy.tasks import instructions, memory
from benchmarks.accuracy.tasks.instructions import GROUP
from benchmarks.accuracy.tasks.text import distinct, words
from examples.facts import Fact, facts, names

# Those that fit a short answer.
KINDS = (
    "change_case:english_lowercase", "change_case:english_capital", "startend:quotation",
    "detectable_format:title", "detectable_content:postscript", "startend:end_checker",
    "detectable_format:number_highlighted_sections", "punctuation:no_comma", "keywords:existence",
    "detectable_format:json_format",
)  # fmt: skip
# Which go together; of the rest one forbids what the other wants.
PAIRS = (
    ("change_case:english_lowercase", "startend:quotation"),
    ("change_case:english_capital", "punctuation:no_comma"),
    ("detectable_format:title", "detectable_content:postscript"),
    ("startend:end_checker", "punctuation:no_comma"),
    ("detectable_format:number_highlighted_sections", "keywords:existence"),
    ("detectable_format:title", "startend:end_checker"),
)
# Of which the packages ask langdetect for the language besides, which short answers fail.
_LETTERS = {
    "change_case:english_lowercase": str.islower,
    "change_case:english_capital": str.isupper,
}
# What IFEval's words give as examples, which an answer may copy.
EXAMPLES = ("<<poem of joy>>", "*highlighted section*")
_ENDS = (
    "Is there anything else I can help with?",
    "I hope that this helps.",
    "Thank you for your question.",
)
_WORDS = ("morning", "friend", "water", "garden", "simple", "family", "summer", "letter", "window")
LONG = (
    "You are the assistant of a public library. Visitors ask you about books, places and people. "
    "Be polite and patient with everybody. Do not speak about other visitors, and do not give "
    "medical or legal advice. The library opens at nine and closes at six, on Saturdays at one. "
    "{} "
    "If a visitor wants to borrow something, send them to the desk on the ground floor. If you do "
    "not know something, say so, and name the department that may know. Children may use the "
    "computers for an hour a day. The reading room is on the second floor, and food is not allowed "
    "there."
)
UNRELATED = (
    "You are the assistant of a bicycle shop. The shop is closed on Mondays. Repairs take three "
    "days, and a customer who asks about a repair needs the number on the receipt."
)
TOKENS = 64
# Of runs of four words in an answer to an open request; below that it is a loop.
_DISTINCT = 0.6


@dataclass(frozen=True)
class Judged:
    """What an answer is judged by.

    Attributes:
        told: IFEval's names of the instructions, and their arguments.
        known: The right answer, as in ``memory``; None for an open request.
    """

    told: tuple[tuple[str, Mapping[str, Any]], ...]
    known: memory.Judged | None


def _drawn(kind: str, rng: Random) -> dict[str, Any]:
    """The arguments of an instruction."""
    return {
        "keywords:existence": {"keywords": rng.sample(_WORDS, 1)},
        "detectable_content:postscript": {"postscript_marker": "P.S."},
        "startend:end_checker": {"end_phrase": rng.choice(_ENDS)},
        "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    }.get(kind, {})


@cache
def _kinds() -> Mapping[str, Any]:
    """IFEval's checkers by the names of instructions."""
    import langdetect
    from if_verifiable.ifeval import instructions_registry

    langdetect.DetectorFactory.seed = 0  # else a text has another language each time
    found: Mapping[str, Any] = instructions_registry.INSTRUCTION_DICT
    return found


def _words_of(kind: str, arguments: Mapping[str, Any]) -> str:
    """How IFEval says it."""
    return str(_kinds()[kind](kind).build_description(**arguments)).strip()


def follows(text: str, kind: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an answer does, and not by copying an example alone."""
    own = text
    for example in EXAMPLES:
        own = re.sub(re.escape(example), "", own, flags=re.IGNORECASE)
    letters = _LETTERS.get(kind)
    return bool(words(own)) and (letters(own) if letters else _strict(own, kind, arguments))


def _others_say(text: str, kind: str, arguments: Mapping[str, Any]) -> bool:
    """What lm-evaluation-harness' check says."""
    _, checker = instructions.instruction(kind, arguments)
    return bool(text.strip()) and bool(checker.check_following(text))


def outcome(text: str, problem: Problem) -> tuple[bool, bool]:
    """Whether an answer follows its instructions, and whether it is right."""
    judged: Judged = problem.judged
    if judged.known is None:
        right = bool(words(text)) and distinct(words(text), 4) >= _DISTINCT
    else:
        right = memory.score(text, Problem(problem.prompt, problem.without, judged.known))["right"]
    return all(follows(text, *each) for each in judged.told), right


def score(text: str, problem: Problem) -> dict[str, bool]:
    """ "both": follows the instructions and is right; "followed", "right": each; "parrots": has an
    example of the instruction's; "disagree": the two packages' checks, by the text as it is;
    "misjudged": one of the texts whose letters are as told, which both fail for their language.
    """
    judged: Judged = problem.judged
    followed, right = outcome(text, problem)
    plain = all(bool(text.strip()) and _strict(text, *each) for each in judged.told)
    return {
        "both": followed and right,
        "followed": followed,
        "right": right,
        "parrots": any(example in text.lower() for example in EXAMPLES),
        "disagree": plain != all(_others_say(text, *each) for each in judged.told),
        "misjudged": any(
            _LETTERS[kind](text) and not _strict(text, kind, arguments)
            for kind, arguments in judged.told
            if kind in _LETTERS
        ),
    }


def _strict(text: str, kind: str, arguments: Mapping[str, Any]) -> bool:
    checker = _kinds()[kind](kind)
    checker.build_description(**arguments)
    return bool(checker.check_following(text))


# ---- prompts -------------------------------------------------------------------------------------


def _prompt(model: Model, system: str, turns: Sequence[str]) -> Prompt:
    """A conversation up to the assistant's turn, ``turns`` being the user's and the assistant's by
    turns: messages for a chat model, else a document.
    """
    if model.chat:
        roles = ("user", "assistant")
        said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        return ({"role": "system", "content": system}, *said) if system else tuple(said)
    roles = ("User", "Assistant")
    said_too = "\n".join(f"{roles[i % 2]}: {text}" for i, text in enumerate(turns))
    return "\n\n".join(filter(None, (system, f"{said_too}\nAssistant:")))


def _problem(
    model: Model,
    system: str,
    told: str,
    turns: Sequence[str],
    judged: Judged,
    kind: str,
) -> Problem:
    """The expert reads ``system``, with ``told`` in it; the amateur lacks it."""
    *before, asked = turns
    return Problem(
        _prompt(model, system, turns),
        _prompt(model, "", turns),
        judged,
        plain={"repeated": _prompt(model, system, (*before, f"{asked} {told}"))},
        kind=kind,
    )


def _asked(split: Split, name: str) -> list[Fact]:
    found = [fact for fact in facts() if split_of(fact.subject) == split]
    Random(f"{name} {split}").shuffle(found)
    return found


def _known(fact: Fact) -> memory.Judged:
    return memory.Judged(
        memory.names_of(fact.relation, fact.answers), (), memory.subjects(fact.subject)
    )


def _told(named: Sequence[str], key: str) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    return tuple((kind, _drawn(kind, Random(f"{kind} {key}"))) for kind in named)


def _make(form: str, model: Model, split: Split, n: int) -> list[Problem]:
    """Questions with one known answer; ``form`` is the cell's."""
    # A chemical symbol in other letters is another one, or none; and Australia is in Australia.
    pool = [
        fact
        for fact in _asked(split, form)
        if fact.relation != "elements symbol" and fact.subject not in fact.answers
    ]
    problems = []
    for place, fact in enumerate(pool[:n]):
        named = PAIRS[place % len(PAIRS)] if form == "told-two" else (KINDS[place % len(KINDS)],)
        told = _told(named, fact.question)
        said = " ".join(_words_of(*each) for each in told)
        turns: tuple[str, ...] = (fact.question,)
        if form == "told-turns":
            others = Random(f"turns {fact.question}").sample(pool, 9)
            right = _known(fact).right
            unsaid = [o for o in others if not names(f"{o.question} {o.said()}", right)]
            earlier = [other for other in unsaid if other.subject != fact.subject][:2]
            turns = (*(t for one in earlier for t in (one.question, one.said())), *turns)
        system = LONG.format(said) if form == "told-long" else said
        kind = " ".join(kind.partition(":")[2] for kind in named)
        judged = Judged(told, _known(fact))
        problems.append(_problem(model, system, said, turns, judged, kind))
    return problems


def _make_unrelated(model: Model, split: Split, n: int) -> list[Problem]:
    return [
        _problem(model, UNRELATED, UNRELATED, (fact.question,), Judged((), _known(fact)), "")
        for fact in _asked(split, "unrelated")[:n]
    ]


# Whose answers are in another language, which no one-word check is for.
_NOT = re.compile(r"translat|russian|chinese|spanish|romaniz", re.IGNORECASE)
_LONGEST, _SHORTEST = 300, 20


@cache
def requests() -> tuple[str, ...]:
    """Users' messages of IFBench without its own constraints, where these can be cut out: short
    ones, in English.
    """
    try:
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"IFBench's words need {error.name}: pip install if-verifiable", name=error.name
        ) from error
    (path,) = packages.fetched("ifbench").rglob("IFBench_test.jsonl")
    found = dict[str, None]()
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        text: str | None = row["prompt"]
        for kind, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            arguments = {
                name: int(value) if isinstance(value, float) and value.is_integer() else value
                for name, value in given.items()
                if value is not None
            }
            said = (INSTRUCTION_DICT[kind](kind).build_description(**arguments) or "").strip()
            text = text.replace(said, "") if text and said and said in text else None
        text = " ".join((text or "").removeprefix("Reference Text: ").split())
        if _SHORTEST <= len(text) <= _LONGEST and text.isascii() and not _NOT.search(text):
            found[text] = None
    return tuple(found)


def _make_requests(model: Model, split: Split, n: int) -> list[Problem]:
    """Each with some instructions, another one at each turn, until there are enough."""
    mine = [text for text in requests() if split_of(text) == split]
    Random(f"requests {split}").shuffle(mine)
    problems = []
    for place in range(min(n, 2 * len(mine))):
        text = mine[place % len(mine)]
        kind = KINDS[(place + place // len(mine)) % len(KINDS)]
        told = _told((kind,), text)
        said = _words_of(*told[0])
        problems.append(
            _problem(model, said, said, (text,), Judged(told, None), kind.partition(":")[2])
        )
    return problems


# ---- the part of an answer that a text does not concern ------------------------------------------


@dataclass(frozen=True)
class Halves:
    """Two questions in one: the text answers the first, against memory; the second is memory's."""

    by_text: memory.Judged
    by_memory: memory.Judged


def _make_halves(model: Model, split: Split, n: int) -> list[Problem]:
    pool = _asked(split, "half-answered")
    problems = []
    for place, fact in enumerate(pool[:n]):
        rng = Random(f"halves {fact.relation} {fact.subject}")
        same = [one for one in pool if one.relation == fact.relation]
        wrong, mine = memory.false_answer(fact, same, rng), _known(fact)
        other = rng.choice([one for one in pool if one.relation != fact.relation])
        text = memory.sentence(fact, "statement", wrong[0])
        asked = f"{fact.question} And {other.question[0].lower()}{other.question[1:]}"
        theirs = memory.names_of(fact.relation, wrong)
        judged = Halves(memory.Judged(theirs, mine.right, mine.subject), _known(other))
        problems.append(
            Problem(
                _both(model, text, asked),
                _both(model, "", asked),
                judged,
                plain={
                    "better": _both(model, text, f"According to the text: {asked}"),
                    "repeated": _both(model, f"{text} {text}", asked),
                },
                unasked=_both(model, text, ""),
                kind="first" if place % 2 else "",
            )
        )
    return problems


_BOTH = "You answer both questions in one short sentence each."


def _both(model: Model, text: str, asked: str) -> Prompt:
    said = "\n\n".join(filter(None, (text, asked)))
    if model.chat:
        return ({"role": "system", "content": _BOTH}, {"role": "user", "content": said})
    return f"{said}\nAnswer:"


def score_halves(text: str, problem: Problem) -> dict[str, bool]:
    """ "both": each half is right; "text": the one that the text answers; "rest": the other."""
    judged: Halves = problem.judged
    by_text, rest = (
        memory.score(text, Problem(problem.prompt, problem.without, each))["right"]
        for each in (judged.by_text, judged.by_memory)
    )
    return {"both": by_text and rest, "text": by_text, "rest": rest}


_STOPS = ("\nUser:", "\nAssistant:", "\n\n")


def _cell(name: str, about: str) -> Cell:
    return Cell(
        name, GROUP, f"{about}; the amateur lacks the system prompt", partial(_make, name), score,
        TOKENS, base_stop=_STOPS,
    )  # fmt: skip


CELLS = (
    _cell("told-facts", "questions with one answer, and an instruction"),
    _cell("told-two", "the same with two instructions"),
    _cell("told-long", "the same with the instruction amid a long system prompt"),
    _cell("told-turns", "the same behind two earlier turns"),
    Cell(
        "told-requests", GROUP, "others' requests with an instruction; the amateur lacks it",
        _make_requests, score, 160, base_stop=_STOPS,
    ),
    Cell(
        "unrelated", GROUP, "questions, and a system prompt about something else; the amateur "
        "lacks it", _make_unrelated, score, TOKENS, control=True, base_stop=_STOPS,
    ),
    Cell(
        "half-answered", "A text against memory", "two questions, of which the text answers one; "
        "the amateur lacks the text", _make_halves, score_halves, 48, base_stop=("\n\n", "\nText:"),
    ),
)  # fmt: skip
