# SPDX-License-Identifier: Apache-2.0
"""What flat arguments say of a request's amateurs: read right, or refused with the key's name."""

import gc
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.long_bodies import long_arguments
from vllm_cold.errors import ColdError
from vllm_cold.settings.amateurs import describe
from vllm_cold.settings.arguments import parse_request_args
from vllm_cold.settings.source_readers import read_part, read_without
from vllm_cold.settings.sources import (
    MEDIA,
    CannotLeaveOut,
    Messages,
    Part,
    Text,
    Without,
    has_media,
)
from vllm_cold.settings.table import MAX_AMATEURS

pytestmark = pytest.mark.unit

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "tool", "content": "found"},
    {"role": "user", "content": "cold_without: 1, <system>"},
]


def amateurs(**args: Any) -> Any:
    """The adapter, the prompt and the weight of each."""
    request = parse_request_args({f"cold_{k}": v for k, v in args.items()})
    return [(one.adapter, one.source, one.weight) for one in describe(request)]


def test_one_amateur() -> None:
    assert amateurs() == [(None, None, None)]
    assert amateurs(amateur="b", weights=-2) == [("b", None, -2.0)]
    assert amateurs(amateur_prompt="Who?") == [(None, Text("Who?"), None)]
    assert amateurs(amateur_messages=json.dumps(HELLO)) == [(None, Messages(HELLO), None)]
    assert amateurs(without="system") == [(None, Without(("system",)), None)]
    assert amateurs(without=[0, "tool"]) == [(None, Without((0, "tool")), None)]
    assert amateurs(without=" tool, 2") == [(None, Without(("tool", 2)), None)]
    assert amateurs(part=[0, 3]) == [(None, Part(((0, 3),)), None)]
    assert amateurs(part="0:3, 3:7", weights="adaptive") == [
        (None, Part(((0, 3), (3, 7))), "adaptive")
    ]


def test_several_amateurs() -> None:
    """A list has an entry for each, "" says nothing, and what is no list holds for all."""
    assert amateurs(weights=[1, -1], amateur=["a", ""], without="system") == [
        ("a", Without(("system",)), 1.0),
        (None, Without(("system",)), -1.0),
    ]
    assert amateurs(amateur_prompt=["Who?", "", ""], without=["", "0,2", 1], weights=-0.5) == [
        (None, Text("Who?"), -0.5),
        (None, Without((0, 2)), -0.5),
        (None, Without((1,)), -0.5),
    ]
    assert amateurs(weights=["adaptive"], part=["0:3"]) == [(None, Part(((0, 3),)), "adaptive")]
    assert len(amateurs(weights=[0.5] * MAX_AMATEURS)) == MAX_AMATEURS
    assert amateurs(preset="dexperts", amateur=["a", "b"]) == [("a", None, 1.0), ("b", None, -1.0)]
    grounded = [(None, Without((role,)), -0.25) for role in ("tool", "user")]
    assert amateurs(preset="grounded", without=["tool", "user"]) == grounded
    assert amateurs(preset="grounded", part=["0:3", "3:7"], weights=-1) == [
        (None, Part(((0, 3),)), -1.0),
        (None, Part(((3, 7),)), -1.0),
    ]
    # Which adapters they are is no prompt's matter: two base models differ by their weights only.
    assert amateurs(weights=[1, 2]) == [(None, None, 1.0), (None, None, 2.0)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"amateur": ""}, "cold_amateur='': must be the name of a loaded adapter"),
        ({"amateur_prompt": ""}, "cold_amateur_prompt='': must not be empty"),
        ({"amateur_prompt": "\ud800"}, "cold_amateur_prompt='.ud800': must be valid Unicode text"),
        ({"amateur_messages": "no"}, "cold_amateur_messages='no': must be a JSON list"),
        ({"amateur_messages": "[" * 10**5}, "must be a JSON list"),
        ({"amateur_messages": "{}"}, "must be a list of messages"),
        ({"amateur_messages": "[]"}, "must be a list of messages"),
        ({"amateur_messages": "[1]"}, "must be a list of messages, each with a role"),
        ({"amateur_messages": '[{"role": "user"}]'}, "message 0 must have a content"),
        *(
            ({"amateur_messages": json.dumps([message])}, "list of messages, in valid Unicode")
            for message in (
                {"role": "user", "content": "\ud800"},
                {"role": "user", "content": "x", "\ud800": 1},
                {"role": "tool", "content": "x", "tool_call_id": "\ud800\ud800"},
            )
        ),
        *(
            (
                {"amateur_messages": json.dumps([{"role": "assistant", "tool_calls": calls}])},
                "and tool_calls, if any, of functions with a name",
            )
            for calls in (5, "x", [5], [{}], [{"function": {}}], [{"function": {"name": 5}}])
        ),
        ({"without": ""}, "cold_without='': must be roles, or indices"),
        ({"without": "system,,tool"}, "must be roles, or indices"),
        ({"without": -1}, "cold_without=-1: must be roles, or indices of messages, from 0"),
        ({"without": 10**9}, "must be roles, or indices"),
        ({"without": []}, "must be roles, or indices"),
        ({"part": [0, 9], "weights": [1, 2]}, r"cold_part\[0\]=0: must be start and end"),
        *(
            ({"part": part}, "cold_part=.*must be start and end")
            for part in ([], [1], [3, 1], [1, 1], [-1, 1], [0, 3, 2, 4], "0-3", "0:3:4", ["0:3"])
        ),
        ({"weights": []}, r"cold_weights=\[\]: has 0 entries; a request has 1 to 32 amateurs"),
        ({"weights": [1.0] * 33}, "has 33 entries, and at most 32 are allowed"),
        ({"part": [True, 2]}, r"cold_part=\[True, 2\]: must be start and end"),
        ({"without": [True]}, r"cold_without=\[True\]: must be a role"),
        ({"part": "0:1," * 1000 + "1:2"}, "has 1001 entries, and at most 1000 are allowed"),
        ({"part": " " * 40_000}, "is longer than 32000 characters"),
        ({"part": [0, 1] * 1001}, "has 2002 entries, and at most 2000 are allowed"),
        ({"without": "1," * 1000 + "1"}, "has 1001 entries, and at most 1000 are allowed"),
        ({"without": ["1,1"] * 501}, "has 1002 entries, and at most 1000 are allowed"),
        (
            {"weights": [1, 2], "amateur": ["a"]},
            r"cold_amateur=\['a'\]: has 1 entries, and cold_weights has 2",
        ),
        ({"weights": [1, 2], "without": [0]}, "cold_without=.0.: has 1 entries"),
        (
            {"amateur_prompt": "Who?", "part": [0, 1]},
            r"cold_part=\[0, 1\]: the amateur has a prompt already, by cold_amateur_prompt",
        ),
        (
            {"amateur_prompt": ["", "Who?"], "without": ["system", 0]},
            r"cold_without\[1\]=0: the amateur has a prompt already, by cold_amateur_prompt\[1\]",
        ),
        ({"weights": [1, 2], "without": ["system", ","]}, r"cold_without\[1\]=',': must be roles"),
        ({"preset": "cad"}, "cold_preset='cad': contrasts with another prompt; say which"),
        ({"preset": "cfg", "weights": [1, 2], "without": ["system", ""]}, "another prompt"),
        ({"preset": "dexperts"}, "cold_preset='dexperts': is for 2 amateurs"),
        ({"preset": "dexperts", "weights": [1]}, "cold_preset='dexperts': is for 2 amateurs"),
        ({"preset": "grounded"}, "cold_preset='grounded': contrasts with another prompt; say"),
        (
            {"preset": "grounded", "without": "tool"},
            "'grounded': is for 2 amateurs: list",
        ),
        (
            {"preset": "grounded", "without": ["tool", "user"], "weights": [1, 1, 1]},
            r"cold_without=\['tool', 'user'\]: has 2 entries, and cold_weights has 3",
        ),
        (
            {"preset": "grounded", "without": ["tool"]},
            r"cold_without=\['tool'\]: has 1 entries, and cold_preset has 2: lists have one for",
        ),
        (
            {"preset": "grounded", "amateur_prompt": ["a", "b", "c"]},
            "cold_preset='grounded': is for 2 amateurs: list what each reads in cold_without",
        ),
    ],
)
def test_what_does_not_fit_together(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ColdError, match=message) as raised:
        amateurs(**args)
    assert str(raised.value).startswith("cold_") and len(str(raised.value)) < 400


@pytest.mark.parametrize("number", [1, 32])
def test_long_arguments_cost_what_their_length_costs(number: int) -> None:
    """They are read or refused in a few times what the body takes: once for all amateurs, and not
    at all where there is too much. What was looked at for each would take hundreds of times that.
    """

    def seconds(function: Callable[[], Any]) -> float:
        """Of this process alone, without collections of its heap."""
        times = []
        gc.disable()
        for _ in range(3):
            started = time.process_time()
            function()
            times.append(time.process_time() - started)
        gc.enable()
        return min(times)

    def look(args: dict[str, Any]) -> None:
        with suppress(ColdError):
            describe(parse_request_args(args))

    slow = {}
    for kind, args in long_arguments(300_000, number).items():
        body = json.dumps(args)
        read = json.loads(body)
        ratio = seconds(lambda: look(read)) / (seconds(lambda: json.loads(body)) + 1e-4)  # noqa: B023
        if ratio > 25:
            slow[kind] = ratio
    assert slow == {}


def test_a_conversation_without_some_of_its_messages() -> None:
    def left(said: Any) -> list[int]:
        return [CHAT.index(m) for m in read_without("f", said).of("f", CHAT)]

    assert left("system") == [1, 2, 3]
    assert left("system,tool") == [1, 3]
    assert left("tool") == [0, 1, 3]
    assert left([0, 2]) == [1, 3]
    assert left("3,system,0") == [1, 2]
    assert left("user") == [0, 2]
    developer = [{"role": "developer", "content": "Be brief."}, *HELLO]
    assert Without(("system",)).of("f", developer) == HELLO
    for said, message in (
        ("assistant", "f='assistant': the conversation has no such message"),
        ("system,contxt", "f='contxt': the conversation has no such message"),
        (["system", 9], "f=9: the conversation has the messages 0 to 3"),
        (4, "f=4: the conversation has the messages 0 to 3"),
        ("system,user,tool", "f='system,user,tool': leaves no message"),
    ):
        with pytest.raises(CannotLeaveOut, match=message):
            left(said)


@pytest.mark.parametrize("name", sorted(frozenset().union(*MEDIA.values())))
def test_a_conversation_without_some_of_its_media(name: str) -> None:
    """By a part's type; by its key where it has none, or a uuid."""
    [kind] = [each for each, names in MEDIA.items() if name in names]
    others = [{"type": min(MEDIA[each])} for each in MEDIA if each != kind]
    kept = [*others, {"type": "text", "text": "Who?"}]
    for part in ({"type": name, name: "x"}, {name: "x"}, {"type": "x", name: None, "uuid": "x"}):
        chat = [CHAT[0], {"role": "user", "content": [part, *kept]}]
        left = read_without("f", kind).of("f", chat)
        assert left == [CHAT[0], {"role": "user", "content": kept}]
        assert has_media(chat[1], kind) and not has_media(left[1], kind)
        with pytest.raises(CannotLeaveOut, match=f"f='{kind}': the conversation has no {kind}"):
            read_without("f", kind).of("f", left)


def test_a_default_is_for_all_chats() -> None:
    """One of what it names has to be there."""

    def left(*items: str | int) -> list[int]:
        return [CHAT.index(m) for m in Without(items).of("f", CHAT, lenient=True)]

    assert left("system", "context", 9) == [1, 2, 3]
    assert left("context", 2) == [0, 1, 3]
    with pytest.raises(CannotLeaveOut, match="f='context,9': the conversation has no such"):
        left("context", 9)
    with pytest.raises(CannotLeaveOut, match="leaves no message"):
        left("system", "user", "tool", "context")


@given(st.text(max_size=30), st.lists(st.integers(0, 35), max_size=6))
@example("abc", [1, 3])  # to its end
def test_a_prompt_without_a_part(prompt: str, positions: list[int]) -> None:
    """What is left is what lies outside, character by character."""
    try:
        part = read_part("f", positions)
    except ColdError:
        pairs = list(zip(positions[::2], positions[1::2], strict=False))
        fine = bool(pairs) and len(positions) % 2 == 0 and positions == sorted(positions)
        assert not fine or any(start == end for start, end in pairs)
        return
    assert read_part("f", ",".join(f"{start}:{end}" for start, end in part.spans)) == part
    inside = [any(start <= i < end for start, end in part.spans) for i in range(len(prompt))]
    kept = "".join(c for c, left_out in zip(prompt, inside, strict=True) if not left_out)
    ids = list(range(len(prompt)))
    if positions[-1] > len(prompt) or not kept:
        for whole in (prompt, ids):
            with pytest.raises(ColdError, match="^f="):
                part.of("f", whole)
        return
    assert part.of("f", prompt) == kept
    assert part.of("f", ids) == [i for i in ids if not inside[i]]
