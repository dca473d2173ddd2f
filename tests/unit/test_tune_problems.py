# SPDX-License-Identifier: Apache-2.0
"""Problems are read as documented, and every mistake in them is named with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.questions import content
from tests.unit.test_pictures import file, pixels
from vllm_cold.settings.sources import Text
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.tune.problems import Problem, load_problems, split_problems
from vllm_cold.tools.tune.verdict import FEWEST

pytestmark = pytest.mark.unit


def write(path: Path, *rows: Any) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_what_a_row_may_be(tmp_path: Path) -> None:
    """Answers are as the row has them: the rule looks at them."""
    file = write(
        tmp_path / "p.jsonl",
        {"prompt": "one", "answer": {"any": [True]}},
        "",
        {"messages": [{"role": "user", "content": "two"}], "answer": ["2", 2.5], "id": 7},
        {"prompt": "a\u2028b", "answer": -3, "id": "x", "source": "elsewhere", "answers": False},
    )
    problems, repeated = load_problems(file)
    assert repeated == 0
    assert [(p.id, p.line, p.answer, p.has_answer) for p in problems] == [
        ("line-1", 1, {"any": [True]}, True),
        ("7", 3, ["2", 2.5], True),
        ("x", 4, -3, False),
    ]
    assert problems[1].prompt == content((("user", "two"),))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", r":2: Invalid JSON: .* at line 1 column 2"),
        ({"prompt": "p"}, r":2: answer: Field required"),
        ({"prompt": "p", "answer": "a", "id": "first"}, r":2: id: 'first' is line 1's"),
        ({"prompt": "p", "answer": "a", "cold_beta": 1}, r":2: cold_beta=1: a row may have"),
        (
            {"prompt": "good", "answer": "a", "cold_amateur_prompt": "other"},
            r":2: has the prompt of line 1 with another answer or contrast; give all",
        ),
        ({"prompt": "good", "answer": "other"}, r":2: has the prompt of line 1 with another"),
        ({"prompt": "good", "answer": "a", "answers": False}, r":2: has the prompt of line 1 with"),
        (
            {"prompt": "p", "answer": "a", "answers": ["b"]},
            r":2: answers: Input should be a valid",
        ),
    ],
)
def test_a_wrong_row(tmp_path: Path, row: Any, message: str) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt": "good", "answer": "a", "id": "first"}, row)
    with pytest.raises(ToolError, match=message):
        load_problems(file)


def test_with_chat_a_text_is_a_users_message(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "answer": "a"},
        {"messages": [{"role": "user", "content": "p"}], "answer": "a"},
        {"messages": [{"role": "system", "content": "p"}], "answer": "a"},
    ]
    file = write(tmp_path / "p.jsonl", *rows)
    assert load_problems(file)[1] == 0
    problems, repeated = load_problems(file, chat=True)
    assert ([p.line for p in problems], repeated) == ([1, 3], 1)
    assert problems[0].prompt == content((("user", "p"),))
    with pytest.raises(ToolError, match=r"missing.jsonl: cannot be read \(No such file"):
        load_problems(str(tmp_path / "missing.jsonl"))


def test_a_row_says_what_its_amateur_reads(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "p"}]
    file = write(
        tmp_path / "p.jsonl",
        {"prompt": "p", "answer": "a"},
        {"prompt": "q", "answer": "a", "cold_part": [0, 1], "cold_without": None},
        {"messages": messages, "answer": "a", "cold_amateur_messages": messages},
        {"prompt": "p", "answer": "a", "cold_amateur_prompt": "x"},
    )
    args = {"cold_amateur_prompt": "x", "cold_amateur": "base"}
    problems, repeated = load_problems(file, args=args)
    base = {"cold_amateur": "base"}
    assert [dict(p.args) for p in problems] == [
        args,
        {**base, "cold_part": [0, 1]},
        {**base, "cold_amateur_messages": json.dumps(messages)},
    ]
    assert [set(p.row_keys) for p in problems] == [
        set(), {"cold_part"}, {"cold_amateur_messages"},
    ]  # fmt: skip
    assert repeated == 1  # the last says what the first has from the options


def test_rows_with_images(tmp_path: Path) -> None:
    """Files next to the rows; prompts are told apart by their contents, not by their names."""
    (tmp_path / "a.png").write_bytes(one := file(pixels((4, 4))))
    (tmp_path / "copy.png").write_bytes(one)
    (tmp_path / "b.png").write_bytes(file(pixels((5, 5))))
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "p", "image": "a.png", "answer": "x"},
        {"prompt": "p", "image": "b.png", "answer": "y"},
        {"prompt": "p", "images": ["a.png", "b.png"], "answer": "z", "cold_images": "blur:3"},
        {"prompt": "p", "answer": "without"},
        {"prompt": "p", "images": ["copy.png"], "answer": "x"},
    )
    problems, repeated = load_problems(path)
    assert ([p.line for p in problems], repeated) == ([1, 2, 3, 4], 1)
    assert len(problems[2].prompt.value[0]["content"]) == 3  # type: ignore[index]
    assert problems[3].prompt == Text("p") and problems[2].row_keys == {"cold_images"}
    row = {"prompt": "q", "image": "c.png", "answer": "x"}
    with pytest.raises(ToolError, match=r":1: image='c.png': cannot be read"):
        load_problems(write(tmp_path / "p.jsonl", row))


def some(count: int, silent: int = 0) -> list[Problem]:
    """Problems, of which the text of the first does not answer."""
    return [Problem(f"p{n}", n, Text(f"p{n}"), "a", has_answer=n >= silent) for n in range(count)]


@pytest.mark.parametrize(("count", "fraction"), [(12, 0.5), (101, 0.5), (40, 0.8), (97, 0.13)])
def test_a_split_is_a_partition(count: int, fraction: float) -> None:
    dev, test = split_problems(some(count), fraction, 3)
    assert sorted(dev + test, key=lambda problem: problem.line) == some(count)
    assert len(test) == round(count * fraction) and min(len(dev), len(test)) >= FEWEST
    assert (dev, test) == split_problems(some(count), fraction, 3)
    assert (dev, test) != split_problems(some(count), fraction, 4)


def test_texts_that_do_not_answer_are_on_both_sides() -> None:
    for seed in range(9):
        for part in split_problems(some(60, silent=20), 0.5, seed):
            assert [problem.has_answer for problem in part].count(False) == 10
    with pytest.raises(ToolError, match='^8 problems with "answers": false .* Bring 12 problems w'):
        split_problems(some(60, silent=8), 0.5, 0)
    with pytest.raises(ToolError, match="^0 problems with --test-fraction"):
        split_problems(some(60, silent=60), 0.5, 0)
    with pytest.raises(ToolError, match="Bring 20 problems or more"):
        split_problems(some(18), 0.3, 0)
    split_problems(some(20), 0.3, 0)  # which is enough
