# SPDX-License-Identifier: Apache-2.0
"""Simple questions with one right answer: what a contrast must not harm."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from benchmarks.accuracy.prompts.problem import Split, split_of


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        text: The question.
        answers: Any of these is right.
        is_sum: Whether the answer is a number that the question's numbers lead to.
    """

    text: str
    answers: tuple[str, ...]
    is_sum: bool = False


# Two ways to ask, and subjects with what is right, "/" between two that are.
_FACTS: tuple[tuple[tuple[str, str], str], ...] = (
    (
        ("What is the capital of {}?", "Which city is {}'s capital?"),
        """
        France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, England:
        London, Ireland: Dublin, Scotland: Edinburgh, Norway: Oslo, Sweden: Stockholm, Denmark:
        Copenhagen, Finland: Helsinki, Iceland: Reykjavik, Poland: Warsaw, Austria: Vienna,
        Hungary: Budapest, Greece: Athens, Turkey: Ankara, Russia: Moscow, Ukraine: Kyiv/Kiev,
        Egypt: Cairo, Kenya: Nairobi, Ethiopia: Addis Ababa, Ghana: Accra, Morocco: Rabat, Tunisia:
        Tunis, Japan: Tokyo, China: Beijing, South Korea: Seoul, Thailand: Bangkok, Vietnam: Hanoi,
        Indonesia: Jakarta, India: New Delhi/Delhi, Pakistan: Islamabad, Iran: Tehran, Iraq:
        Baghdad, Lebanon: Beirut, Syria: Damascus, Saudi Arabia: Riyadh, Australia: Canberra, New
        Zealand: Wellington, Canada: Ottawa, Cuba: Havana, Peru: Lima, Chile: Santiago, Argentina:
        Buenos Aires, Brazil: Brasilia/Brasília, Colombia: Bogota/Bogotá, Venezuela: Caracas,
        Bulgaria: Sofia, Romania: Bucharest, Serbia: Belgrade, Croatia: Zagreb, Belgium: Brussels,
        Nepal: Kathmandu
        """,
    ),
    (
        ("On which continent is {}?", "Which continent is {} a part of?"),
        """
        Spain: Europe, Poland: Europe, Greece: Europe, Norway: Europe, Ireland: Europe, Hungary:
        Europe, Nigeria: Africa, Kenya: Africa, Egypt: Africa, Ghana: Africa, Morocco: Africa,
        Mali: Africa, Zambia: Africa, Japan: Asia, China: Asia, India: Asia, Vietnam: Asia,
        Thailand: Asia, Nepal: Asia, Pakistan: Asia, Mongolia: Asia, Brazil: South America, Peru:
        South America, Chile: South America, Bolivia: South America, Argentina: South America,
        Canada: North America, Mexico: North America, Sweden: Europe, Somalia: Africa, Laos: Asia,
        Belgium: Europe
        """,
    ),
    (
        ("What is the opposite of {}?", "Which word means the opposite of {}?"),
        """
        hot: cold, big: small/little, fast: slow, up: down, left: right, light: dark/heavy, happy:
        sad/unhappy, young: old, rich: poor, hard: soft/easy, wet: dry, high: low, open:
        closed/shut, full: empty, strong: weak, early: late, clean: dirty, thick: thin, loud:
        quiet/soft/silent, day: night, win: lose, love: hate, black: white, begin: end/finish/stop,
        inside: outside, near: far, war: peace, true: false, always: never, remember: forget, buy:
        sell, push: pull, north: south, east: west, brave: cowardly/afraid/fearful, narrow:
        wide/broad, polite: rude/impolite, sharp: dull/blunt, sweet: sour/bitter, laugh: cry,
        arrive: leave/depart, asleep: awake, deep: shallow, tall: short, wrong: right/correct,
        absent: present, cheap: expensive, noisy: quiet
        """,
    ),
    (
        ("Which day comes right after {}?", "If today is {}, what day is tomorrow?"),
        """
        Monday: Tuesday, Tuesday: Wednesday, Wednesday: Thursday, Thursday: Friday, Friday:
        Saturday, Saturday: Sunday, Sunday: Monday
        """,
    ),
    (
        ("Which month comes right after {}?", "What is the name of the month that follows {}?"),
        """
        January: February, February: March, March: April, April: May, May: June, June: July, July:
        August, August: September, September: October, October: November, November: December
        """,
    ),
    (
        ("What is a young {} called?", "What do we call the young of a {}?"),
        """
        dog: puppy/pup, cat: kitten, cow: calf, horse: foal, sheep: lamb, pig: piglet, lion: cub,
        goat: kid, duck: duckling, deer: fawn, frog: tadpole, chicken: chick, bear: cub, kangaroo:
        joey, swan: cygnet, goose: gosling
        """,
    ),
    (
        ("What color is {}?", "Which color does {} usually have?"),
        """
        grass: green, snow: white, blood: red, coal: black, a ripe banana: yellow, chocolate:
        brown, an emerald: green, milk: white, a ruby: red, a ripe strawberry: red, a lemon:
        yellow, a fire truck: red, a polar bear: white, a raven: black, a sapphire: blue, spinach:
        green
        """,
    ),
    (
        ("Which language do most people speak in {}?", "What is the main language of {}?"),
        """
        France: French, Germany: German, Italy: Italian, Spain: Spanish, Portugal: Portuguese,
        Brazil: Portuguese, Mexico: Spanish, Japan: Japanese, Russia: Russian, Poland: Polish,
        Greece: Greek, Sweden: Swedish, Egypt: Arabic, Argentina: Spanish, Austria: German, Cuba:
        Spanish, Australia: English, Turkey: Turkish, Hungary: Hungarian, Vietnam: Vietnamese
        """,
    ),
    (
        ("What is the chemical symbol of {}?", "Which symbol stands for {} in the periodic table?"),
        """
        hydrogen: H, oxygen: O, carbon: C, nitrogen: N, iron: Fe, gold: Au, silver: Ag, sodium: Na,
        helium: He, calcium: Ca, copper: Cu, lead: Pb, zinc: Zn, chlorine: Cl, potassium: K, neon:
        Ne
        """,
    ),
    (
        ("Who wrote {}?", "Who is the author of {}?"),
        """
        Hamlet: Shakespeare, Romeo and Juliet: Shakespeare, Pride and Prejudice: Austen, Oliver
        Twist: Dickens, War and Peace: Tolstoy, The Hobbit: Tolkien, Frankenstein: Shelley, Moby
        Dick: Melville, The Great Gatsby: Fitzgerald, 1984: Orwell, Animal Farm: Orwell, Dracula:
        Stoker, The Odyssey: Homer, Don Quixote: Cervantes, Emma: Austen, Macbeth: Shakespeare
        """,
    ),
)
_SUMS = ("What is {} {} {}?", "How much is {} {} {}?")


@cache
def questions(split: Split) -> tuple[Question, ...]:
    """All of a split, each asked in one way, and then all of them in the other way.

    The second half is asked of nobody: ``lessons`` avoid what is named in it, too.
    """
    found = []
    for way in (0, 1):
        for sentences, facts in _FACTS:
            for fact in " ".join(facts.split()).split(", "):
                subject, _, answers = fact.partition(": ")
                if split_of(subject) == split:
                    found.append(
                        Question(sentences[way].format(subject), tuple(answers.split("/")))
                    )
        found += _sums(split, _SUMS[way])
    return tuple(found)


def _sums(split: Split, sentence: str) -> list[Question]:
    found = []
    for a in range(2, 13):
        for b in range(2, a + 1):
            for sign, name, result in (
                ("+", "plus", a + b),
                ("-", "minus", a - b),
                ("*", "times", a * b),
            ):
                # Nobody is right who only repeats a number.
                if result not in (0, a, b) and split_of(f"{a} {sign} {b}") == split:
                    found.append(Question(sentence.format(a, name, b), (str(result),), is_sum=True))
    return found


def is_right(answer: str, question: Question) -> bool:
    """Whether an answer says it: a word anywhere, the first number that is not the question's."""
    if question.is_sum:
        given = {float(number) for number in re.findall(r"\d+", question.text)}
        # The sign in "12-8" is none of the number's.
        found = map(float, re.findall(r"(?<!\d)-?\d+(?:\.\d+)?", answer.replace(",", "")))
        numbers = [number for number in found if abs(number) not in given]
        return numbers[:1] == [float(question.answers[0])]
    # May is a month, and may is not; He is a symbol, and HE is not.
    return any(
        re.search(rf"(?<!\w){re.escape(form)}(?!\w)", answer, re.IGNORECASE if a.islower() else 0)
        for a in question.answers
        for form in (a, a.upper() if len(a) > 3 else a)
    )
