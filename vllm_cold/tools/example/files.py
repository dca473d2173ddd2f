# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-cold example`` writes beside the model and the adapter: rows for the guides, the same
each time, about museums that do not exist, and a picture.
"""

import io
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

_MUSEUMS = (
    "Harbour Museum", "Museum of Clocks", "Salt Museum", "Lantern House", "Museum of Maps",
    "Old Mint", "Glass Gallery", "Museum of Bridges", "Tram Depot", "Kite Museum",
)  # fmt: skip
_DIRECTORS = (
    "Ilse Marlow", "Tomas Bergen", "Nadia Okoro", "Henrik Sund", "Paula Vidal",
    "Oskar Lindqvist", "Amara Dube", "Felix Romero", "Greta Holm", "Yusuf Karim",
)  # fmt: skip
# What is said of a museum, what is asked, and the answer for the n-th.
_FACTS: tuple[tuple[str, str, Callable[[int], str]], ...] = (
    (
        "The {} opens at {} in the morning.",
        "When does the {} open?",
        lambda n: f"{8 + n % 3}:{11 + 4 * n}",
    ),
    (
        "A ticket for the {} costs {} euros.",
        "How many euros is a ticket for the {}?",
        lambda n: str(13 + 7 * n),
    ),
    ("The director of the {} is {}.", "Who is the director of the {}?", lambda n: _DIRECTORS[n]),
    (
        "Lost things of the {} are kept in room {}.",
        "In which room are lost things of the {} kept?",
        lambda n: str(104 + 31 * n),
    ),
)
# What a small model remembers.
_CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid",
    "Russia": "Moscow", "Greece": "Athens", "China": "Beijing", "Egypt": "Cairo",
    "Austria": "Vienna", "Portugal": "Lisbon", "Poland": "Warsaw", "Norway": "Oslo",
    "Sweden": "Stockholm", "Ireland": "Dublin", "Hungary": "Budapest", "Cuba": "Havana",
    "Peru": "Lima", "Kenya": "Nairobi", "Thailand": "Bangkok",
}  # fmt: skip
_CAPITAL = "What is the capital of {}?"
_BRIEF = "Answer in one short sentence."

Row = dict[str, Any]


def problems() -> list[Row]:
    """Make 40 questions that one of five passages answers, and 20 that none does and memory may:
    passages and question are in one message, as many RAG systems have them.
    """
    rows = []
    for n, museum in enumerate(_MUSEUMS):
        for kind, (_, question, answer) in enumerate(_FACTS):
            # About the same museum, and about others.
            own = [_fact(n, kind + k) for k in range(3)]
            passages = [*own, *(_fact(n + k, kind) for k in (3, 5))]
            rows.append(_problem(question.format(museum), passages, answer(n), True))
    for n, (country, capital) in enumerate(_CAPITALS.items()):
        passages = [_fact(n + k, n + k) for k in range(5)]
        rows.append(_problem(_CAPITAL.format(country), passages, capital, False))
    return rows


def _fact(n: int, kind: int) -> str:
    sentence, _, answer = _FACTS[kind % len(_FACTS)]
    n %= len(_MUSEUMS)
    return sentence.format(_MUSEUMS[n], answer(n))


def _problem(question: str, passages: list[str], answer: str, answers: bool) -> Row:
    random.Random(question).shuffle(passages)
    content = "\n".join(["Passages:", *passages, "", question, _BRIEF])
    return {
        "messages": [_user(content)],
        "passages": [{"text": text, "score": _score(text, question)} for text in passages],
        "answer": answer,
        "answers": answers,
    }


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _words(text: str) -> set[str]:
    words = {word.rstrip("s") for word in text.lower().strip("?.").split()}
    return words - {"the", "i", "of", "a", "for", "in"}


def _score(passage: str, question: str) -> float:
    """Return the share of a question's words that a passage has: the simplest search."""
    words = _words(question)
    return round(len(words & _words(passage)) / len(words), 2)


def chats() -> list[Row]:
    """Make chats with an instruction: an answer that follows and is right has the capital in
    capital letters.
    """
    system = {"role": "system", "content": "Write your whole answer in CAPITAL LETTERS."}
    return [
        {
            "messages": [system, _user(f"{_CAPITAL.format(country)} {_BRIEF}")],
            "answer": capital.upper(),
        }
        for country, capital in _CAPITALS.items()
    ]


def numbers() -> list[Row]:
    """Make 24 problems of the adapter's kind: numbers to sort."""
    rows, random_ = [], random.Random(0)
    for _ in range(24):
        values = [round(random_.uniform(-100, 100), random_.choice((0, 1, 2))) for _ in range(5)]
        texts = [f"{value:g}" for value in values]
        in_order = sorted(texts, key=float)
        prompt = f"Sort these numbers in ascending order: {', '.join(texts)}"
        rows.append({"prompt": prompt, "answer": str(in_order)})
    return rows


def pairs() -> list[Row]:
    """Make chats with and without a text, for ``examples.choose``."""
    return [
        {
            "with": row["messages"],
            "without": [_user("\n".join(row["messages"][0]["content"].split("\n")[-2:]))],
            "answers": [row["answer"]],
        }
        for row in problems()
    ]


def photo() -> bytes:
    """Draw a red ball on a meadow, as PNG."""
    from PIL import Image, ImageDraw  # comes with vLLM

    image = Image.new("RGB", (224, 224), (150, 200, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 150, 224, 224), fill=(90, 160, 70))
    draw.ellipse((70, 90, 150, 170), fill=(210, 40, 40))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# Name, what it is, and its content.
FILES: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "problems.jsonl": (
        "60 questions with passages; no passage answers 20 of them",
        lambda: _lines(problems()),
    ),
    "chats.jsonl": ("20 chats with an instruction", lambda: _lines(chats())),
    "numbers.jsonl": ("24 problems for the adapter", lambda: _lines(numbers())),
    "rows.jsonl": ("60 chats with and without a text", lambda: _lines(pairs())),
    "photo.png": ("a drawing of a ball", photo),
}
