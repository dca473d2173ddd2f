# SPDX-License-Identifier: Apache-2.0
"""The example tasks as plain data: seeded problems, and a rule that says if an answer is right.

Training, demo and benchmarks all read their problems here. Two tasks are defined:

* ``sorting``: sort 3 to 10 numbers (the problems of reasoning-gym's ``number_sorting``);
* ``orders``: write an order, given as a sentence, as one line of JSON with fixed keys, with
  the amount as a number and the date as YYYY-MM-DD.

Splits cannot overlap, however many problems are asked for: a hash of the prompt says to which
split a problem belongs, and each split keeps its own only.
"""

from __future__ import annotations

import ast
import datetime
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, Literal, cast

Split = Literal["train", "dev", "test"]

_SPLITS: tuple[Split, ...] = ("train", "dev", "test")

# reasoning-gym makes item i of seed s from s + i: neighbouring seeds share nearly all items.
# Seeds this far apart share none, and stay recorded next to the adapters.
SPLIT_SEEDS: dict[Split, int] = {"train": 1_000_000, "dev": 50_000_000, "test": 100_000_000}


@dataclass(frozen=True)
class Problem:
    """One problem: the user's message, and a right answer to it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A kind of problem that can be generated from seeds and scored without a judge.

    Attributes:
        name: the task's name, also that of its adapter's folder.
        description: one line for people.
        max_tokens: tokens enough for any right answer.
        make: gives the problem of one seed; the same seed gives the same problem.
        is_right: says whether an answer solves a problem.
    """

    name: str
    description: str
    max_tokens: int
    make: Callable[[int], Problem]
    is_right: Callable[[str, Problem], bool]

    def prompts(self, split: Split, n: int) -> list[Problem]:
        """Return the first ``n`` problems of a split, all different.

        The list for a smaller ``n`` is the beginning of the list for a larger one.

        Raises:
            ValueError: ``split`` is none of train, dev, test, or the split has fewer than ``n``.
        """
        if split not in _SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(_SPLITS)}")
        seed = SPLIT_SEEDS[split]
        last = seed + 1000 * (n + 10)
        kept: dict[str, Problem] = {}
        while len(kept) < n:
            if seed == last:
                raise ValueError(f"{self.name}: the split {split!r} has no {n} different problems")
            problem = self.make(seed)
            seed += 1
            # crc32, not hash(): Python's hash of a string differs from process to process.
            if _SPLITS[zlib.crc32(problem.prompt.encode()) % len(_SPLITS)] == split:
                kept.setdefault(problem.prompt, problem)
        return list(kept.values())

    def score(self, answer_text: str, problem: Problem) -> bool:
        """Say whether ``answer_text``, a model's whole answer, solves ``problem``."""
        return self.is_right(answer_text, problem)


def messages(problem: Problem) -> list[dict[str, str]]:
    """Return the problem as chat messages, the form that chat endpoints take."""
    return [{"role": "user", "content": problem.prompt}]


def chat_prompt(tokenizer: Any, problem: Problem) -> str:
    """Return the problem as prompt text, in the tokenizer's chat template.

    The text has every special token already: tokenize it with ``add_special_tokens=False``.
    """
    text = tokenizer.apply_chat_template(
        messages(problem), tokenize=False, add_generation_prompt=True
    )
    return cast(str, text)


# Sorting


@cache
def _number_sorting() -> Any:
    try:
        import reasoning_gym  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the sorting task needs reasoning-gym: pip install reasoning-gym", name=error.name
        ) from error
    return reasoning_gym.create_dataset("number_sorting", seed=0, size=2**31)


def _make_sorting(seed: int) -> Problem:
    item = _number_sorting()[seed]
    # The first line states the problem. The rest is six times as long as needed to fix the
    # answer's format, and every token costs time on a CPU.
    question = item["question"].splitlines()[0]
    hint = "Answer with a list of strings, such as ['-7.5', '2', '11.25']."
    return Problem(prompt=f"{question}\n{hint}", answer=item["answer"])


def _is_sorted_right(answer_text: str, problem: Problem) -> bool:
    try:
        given = ast.literal_eval(answer_text.strip())
        if not isinstance(given, list):
            return False
        numbers = [float(number) for number in given]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    # reasoning-gym's own scorer forgives errors up to 1 in each number; this one forgives none.
    return numbers == [float(number) for number in ast.literal_eval(problem.answer)]


# Orders

_NAMES = """
    Amara Aylin Bruno Chidi Chloe Dmitri Elena Farid Fatima Greta Hanna Hiro Ines Ivan Jamal
    Jonas Kavya Kenji Leila Liam Lucia Marco Maya Mei Nadia Noah Olga Omar Priya Quentin Rosa
    Ruth Samir Sofia Tariq Tessa Uma Viktor Wei Yara Yusuf Zoe
"""
_CITIES = """
    Accra Athens Bergen Bogota Cairo Cape_Town Delhi Dublin Geneva Hanoi Helsinki Istanbul Kyoto
    Lagos Lima Lisbon Madrid Montreal Nairobi New_York Oslo Porto Prague Quito Riga San_Diego
    Seoul Sydney Tunis Vienna Warsaw Zagreb
"""
_ITEMS = """
    backpack blanket candle carpet chair clock cushion desk drum guitar hammer helmet jacket
    kettle ladder lamp mirror mug notebook pillow printer puzzle radio scarf teapot telescope
    tent tripod umbrella vase
"""
_COLOURS = "black blue brown green grey orange pink purple red white yellow"
_BELOW_TWENTY = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen
"""
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
_MONTHS = """
    January February March April May June July August September October November December
"""
_SENTENCES = (
    "On {date}, {name} from {city} ordered {amount} {colour} {item}s.",
    "{name} in {city} asked for {amount} {colour} {item}s on {date}.",
    "Please send {amount} {colour} {item}s to {name} in {city} by {date}.",
    "{amount} {colour} {item}s, paid on {date} by {name}, go to {city}.",
    "We need {amount} {item}s in {colour} for {name}, who wants them in {city} on {date}.",
    "An order came in on {date}: {amount} {colour} {item}s for {name}, {city}.",
)
# States all that the scoring asks for: without it the base model would have to guess.
_ORDER_FORMAT = (
    "Answer with one line of JSON and nothing else: the order's name, city, amount (a number), "
    "colour, item (singular) and date (YYYY-MM-DD)."
)


def _words(text: str) -> list[str]:
    """Split one of the word lists above; an underscore stands for a space in a name."""
    return [word.replace("_", " ") for word in text.split()]


def _in_words(number: int) -> str:
    """Spell a number below 100."""
    if number < 20:
        return _words(_BELOW_TWENTY)[number]
    tens, ones = divmod(number, 10)
    return _words(_TENS)[tens] + (f"-{_words(_BELOW_TWENTY)[ones]}" if ones else "")


def _spell_date(date: datetime.date, rng: Random) -> str:
    """Write a date in one of the ways in which people write dates."""
    month = _words(_MONTHS)[date.month - 1]
    suffix = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
    day = f"{date.day}{suffix.get(date.day, 'th')}"
    return rng.choice(
        (
            f"{date.day} {month} {date.year}",
            f"{month} {date.day}, {date.year}",
            f"the {day} of {month} {date.year}",
        )
    )


def _make_order(seed: int) -> Problem:
    rng = Random(seed)
    amount = rng.randint(2, 99)
    date = datetime.date(2015, 1, 1) + datetime.timedelta(days=rng.randrange(5000))
    order: dict[str, str | int] = {
        "name": rng.choice(_words(_NAMES)),
        "city": rng.choice(_words(_CITIES)),
        "amount": amount,
        "colour": rng.choice(_words(_COLOURS)),
        "item": rng.choice(_words(_ITEMS)),
        "date": date.isoformat(),
    }
    spelled = order | {
        "amount": _in_words(amount) if rng.random() < 0.7 else str(amount),
        "date": _spell_date(date, rng),
    }
    sentence = rng.choice(_SENTENCES).format(**spelled)
    sentence = sentence[0].upper() + sentence[1:]
    return Problem(prompt=f"{sentence}\n{_ORDER_FORMAT}", answer=json.dumps(order))


def _is_order_right(answer_text: str, problem: Problem) -> bool:
    try:
        given = json.loads(answer_text)
    except (ValueError, RecursionError):
        return False
    return bool(given == json.loads(problem.answer))


SORTING = Task(
    name="sorting",
    description="sort 3 to 10 numbers",
    max_tokens=128,
    make=_make_sorting,
    is_right=_is_sorted_right,
)
ORDERS = Task(
    name="orders",
    description="write an order, given as a sentence, as JSON",
    max_tokens=80,
    make=_make_order,
    is_right=_is_order_right,
)
TASKS: dict[str, Task] = {task.name: task for task in (SORTING, ORDERS)}
