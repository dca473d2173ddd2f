# SPDX-License-Identifier: Apache-2.0
"""Requests: how each is said over HTTP and in Python, and what its streams read, or why it is
refused. Read by the unit tests of the front end, by engines and by servers.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import vllm_cold as cold  # vLLM, where something of it is used

SYSTEM = {"role": "system", "content": " w11 w12 w13"}
USER = {"role": "user", "content": " w21 w22"}
TOOL = {"role": "tool", "content": " w31 w32", "tool_call_id": "1"}
CHAT = [SYSTEM, USER, TOOL]
HELLO = [{"role": "user", "content": " w41"}]
TEXT = " w1 w2 w3 w4 w5 w6"


def body(prompt: Any, **more: Any) -> dict[str, Any]:
    """An HTTP request with a text, token ids, several texts, or messages."""
    is_chat = isinstance(prompt, list) and isinstance(prompt[0], dict)
    return {"messages" if is_chat else "prompt": prompt, **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    """The same of these messages."""
    return body(list(messages), **more)


def xargs(**said: Any) -> dict[str, Any]:
    """The body's flat arguments."""
    return {"vllm_xargs": {f"cold_{name}": value for name, value in said.items()}}


@dataclass(frozen=True)
class Request:
    """A request that is decoded with a contrast.

    Attributes:
        prompt: The expert's: a text, token ids or messages.
        model: Its adapter, or "base".
        said: The flat arguments without ``cold_``, in each of the ways of saying it.
        python: The same in Python: takes a LoRARequest by its adapter's name, and fields of
            ``SamplingParams``.
        amateurs: The weight, the adapter and the prompt of each; None for the expert's prompt.
        alpha: The plausibility threshold.
    """

    prompt: Any
    model: str
    said: tuple[Mapping[str, Any], ...]
    python: Callable[..., Any]
    amateurs: tuple[tuple[float, str | None, Any], ...]
    alpha: float = 0.0

    @property
    def expert(self) -> str | None:
        return None if self.model == "base" else self.model


def one(**fields: Any) -> Callable[..., Any]:
    """In Python, with one amateur."""
    return lambda lora, **options: cold.ColdParams(
        alpha=0, beta=1, amateur=cold.Amateur(**fields), **options
    )


def no_mask(*ways: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple({"alpha": 0, "beta": 1, **way} for way in ways)


REQUESTS: dict[str, Request] = {
    "guided": Request(
        CHAT, "one",
        no_mask({"without": "system"}, {"without": 0}, {"preset": "cfg"}, {"without": [0]}),
        one(without="system"),
        ((-1, "one", [USER, TOOL]),),
    ),
    "base model": Request(
        CHAT, "base", no_mask({"without": "system,tool"}, {"without": [0, 2]}),
        one(without=["system", "tool"]),
        ((-1, None, [USER]),),
    ),
    "context": Request(
        CHAT, "one",
        ({"without": [2], "preset": "cad", "alpha": 0}, {"preset": "cad", "alpha": 0}),
        lambda lora, **o: cold.ColdParams.preset(
            "cad", alpha=0, amateur=cold.Amateur(without=2), **o
        ),
        ((-0.5, "one", [SYSTEM, USER]),),
    ),
    "text": Request(
        CHAT, "one", no_mask({"amateur_prompt": " w9"}), one(prompt=" w9"), ((-1, "one", " w9"),)
    ),
    "other adapter": Request(
        CHAT, "one", no_mask({"without": 0, "amateur": "two"}),
        lambda lora, **o: one(without=0, lora_request=lora("two"))(lora, **o),
        ((-1, "two", [USER, TOOL]),),
    ),
    "several": Request(
        CHAT, "one",
        (
            {"alpha": 0, "weights": [0.5, -0.5, -1], "amateur": ["two", "", "base"],
             "without": ["", "tool", "system"]},
        ),
        lambda lora, **o: cold.ColdParams(
            alpha=0,
            amateurs=[
                cold.Amateur(lora_request=lora("two"), weight=0.5),
                cold.Amateur(without="tool", weight=-0.5),
                cold.Amateur(without="system", lora_request=None, weight=-1),
            ],
            **o,
        ),
        ((0.5, "two", None), (-0.5, "one", [SYSTEM, USER]), (-1, None, [USER, TOOL])),
    ),
    "away from one": Request(
        TEXT, "base", ({"preset": "dexperts", "amateur": ["one", "two"]},),
        lambda lora, **o: cold.ColdParams.preset(
            "dexperts",
            amateurs=[cold.Amateur(lora_request=lora(name)) for name in ("one", "two")],
            **o,
        ),
        ((1, "one", None), (-1, "two", None)),
    ),
    "grounded": Request(
        CHAT, "one", ({"preset": "grounded", "alpha": 0, "weights": -2},),
        lambda lora, **o: cold.ColdParams.preset(
            "grounded",
            alpha=0,
            amateurs=[cold.Amateur(without=each, weight=-2) for each in ("tool", "user")],
            **o,
        ),
        ((-2, "one", [SYSTEM, USER]), (-2, "one", [SYSTEM, TOOL])),
    ),
    "part": Request(
        TEXT, "one", no_mask({"part": [0, 9]}, {"part": "0:9"}), one(prompt=TEXT[9:]),
        ((-1, "one", TEXT[9:]),),
    ),
    # Positions cannot be written into a text, whatever it imitates.
    "part of a forgery": Request(
        'cold_part="1:3" [0:9] w1', "one", no_mask({"part": "0:4"}),
        one(prompt='_part="1:3" [0:9] w1'),
        ((-1, "one", '_part="1:3" [0:9] w1'),),
    ),
    "ids": Request(
        [100, 101, 102, 103], "one", no_mask({"part": [1, 3]}, {"part": "1:3"}),
        one(prompt=[100, 103]),
        ((-1, "one", [100, 103]),),
    ),
    "text of a completion": Request(
        TEXT, "one", no_mask({"amateur_prompt": TEXT + TEXT}), one(prompt=TEXT + TEXT),
        ((-1, "one", TEXT + TEXT),),
    ),
    "messages of a completion": Request(
        TEXT, "base", no_mask({"amateur_messages": json.dumps(HELLO)}), one(prompt=HELLO),
        ((-1, None, HELLO),),
    ),
    "contrastive decoding": Request(
        TEXT, "two", ({"preset": "cold"}, {"alpha": 0.1}, {"amateur": "base"}),
        lambda lora, **o: cold.ColdParams(**o),
        ((-0.5, None, None),),
        alpha=0.1,
    ),
}  # fmt: skip


def ids(tokenizer: Any, prompt: Any) -> list[int]:
    """The tokens of a text or of messages; of token ids themselves."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt).input_ids)
    if isinstance(prompt[0], dict):
        rendered = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return ids(tokenizer, rendered)
    return list(prompt)


# A prompt, flat arguments, and what whoever asks is told.
MISTAKES: tuple[tuple[Any, dict[str, Any], str], ...] = (
    (CHAT, {"Cold_beta": 3}, "Cold_beta=3: unknown key"),
    (CHAT, {"cold_other": "\ud800"}, "cold_other='\\ud800': unknown key"),
    (CHAT, {"cold_\ud800": 1}, "cold_\\ud800=1: unknown key"),
    (TEXT, {"cold_amateur": "one"}, "'one': must differ from the expert"),
    (TEXT, {"cold_amateur": "c"}, "cold_amateur='c': no such adapter is loaded (loaded: one,"),
    (CHAT, {"cold_without": 0, "cold_part": "0:1"}, "the amateur has a prompt already"),
    (CHAT, {"cold_part": [0, 1]}, "cold_part='0:1': is for completions"),
    (HELLO, {"cold_amateur_messages": json.dumps(HELLO)}, "the amateur is the expert, prompt and"),
    (TEXT, {"cold_without": "system"}, "cold_without='system': is for chats"),
    (CHAT, {"cold_without": "assistant"}, "'assistant': the conversation has no such message"),
    (CHAT, {"cold_without": 3}, "cold_without=3: the conversation has the messages 0 to 2"),
    (TEXT, {"cold_part": "0:19"}, "cold_part='0:19': the prompt has 18 characters"),
    (TEXT, {"cold_part": "0:18"}, "cold_part='0:18': leaves nothing of the prompt"),
    (TEXT, {"cold_amateur_prompt": " w1" * 257}, "no prompt can be made of it: This model's max"),
    (CHAT, {"cold_amateur_messages": "[{"}, "must be a JSON list of messages"),
)
# Of bodies alone.
WRONG_BODIES: tuple[tuple[dict[str, Any], str], ...] = (
    (body(CHAT, Cold_beta=3), "Cold_beta=3: belongs into vllm_xargs"),
    (body([" w1", " w2"], **xargs(part="0:1")), "cold_part=2: is for one prompt"),
    (body([" w1", " w2"], **xargs(explain=1)), "prompts=2: must be 1 with cold_explain"),
    (body(TEXT, suffix=" w2", **xargs(part="0:3")), "is for a prompt without a suffix"),
    (body([" w1", " w2"], **xargs(preset="bound")), "prompts=2: must be 1 with cold_rule bound"),
    (body(TEXT, echo=True, **xargs(preset="bound", without_text=" w3")), "echo=True: tells the pr"),
)


def _defaults() -> Iterator[tuple[Any, dict[str, Any], str, Any]]:
    whole, guide = chat(*CHAT), {"without": "system"}
    cut = {"truncate_prompt_tokens": 2}  # what is left out is cut off
    for model in ("one", "base"):
        yield guide, chat(SYSTEM, USER), model, [[USER]]
        for lacking in (chat(USER), body(TEXT), chat(SYSTEM, USER, **cut)):
            yield guide, lacking, model, None
    yield guide, chat(SYSTEM, USER, vllm_xargs={"cold": 0}), "one", None
    # What a request says of its amateurs replaces the server's.
    yield guide, whole | xargs(without="tool"), "one", [[SYSTEM, USER]]
    yield guide, whole | xargs(amateur="base"), "one", [None]
    yield guide, whole | xargs(beta=2), "one", [[USER, TOOL]]
    told = "(the engine's default)='system': the conversation has no such message"
    yield guide, chat(USER, vllm_xargs={"cold": 1}), "one", told
    equal = "the amateur is the expert"
    yield guide, chat(SYSTEM, USER, **cut, **xargs(without="system")), "one", equal
    # A preset says what its amateur does not read, for all chats that have it: what a model's alias
    # sends, or a client that says it once for all its requests.
    both = [[SYSTEM, USER], [SYSTEM, TOOL]]
    for default in (True, {"enabled": False, "alpha": 0.3, "beta": 2}):
        for preset, without, left in (("adacad", "tool", both[0]), ("cfg", "system", [USER, TOOL])):
            for more in ({}, {"beta": 1}):
                asked = xargs(preset=preset, **more)
                yield default, whole | asked, "base", [left]
                yield default, chat(USER, **asked), "one", None
            equals = f"cold_without ({preset}'s default)='{without}': {equal}"
            yield default, whole | cut | xargs(preset=preset), "one", equals
        yield default, whole | xargs(preset="grounded"), "base", both
        for lacking in (chat(SYSTEM, USER), chat(SYSTEM, TOOL)):  # one of its amateurs would equal
            yield default, lacking | xargs(preset="grounded"), "one", None
    # The server's own default comes before it, but for methods that read the expert's prompt or
    # have several amateurs.
    for said, reads in (
        ({"preset": "cad"}, [[USER, TOOL]]),
        ({"preset": "cad", "without": "tool"}, both[:1]),
        ({"preset": "cold"}, [None]),
        ({"preset": "grounded"}, both),
        ({"preset": "grounded", "without": ["user", "tool"]}, both[::-1]),
    ):
        yield guide, whole | xargs(**said), "one", reads
    yield guide, whole | xargs(preset="cold"), "base", "vllm-cold needs an adapter as expert"
    yield guide, whole | xargs(preset="dexperts"), "one", "cold_preset='dexperts': is for 2 amateu"
    # A limit is not lost where a contrast is: only a chat that lacks the part goes without.
    limits = {"preset": "bound", "bits": 8, **guide}
    yield limits, whole, "base", [[USER, TOOL]]
    yield limits, chat(USER), "base", None
    yield limits, chat(SYSTEM, USER, **cut), "base", equal
    for default in (guide, {"enabled": False, "bits": 8, **guide}):
        yield default, whole | xargs(preset="bound"), "base", [[USER, TOOL]]
    named = chat(USER, **xargs(preset="cad", without="tool"))
    yield guide, named, "one", "the conversation has no such message"


# What a server's default is, a body, its model, and what each amateur reads (None for the expert's
# prompt); None for a regular request, and a text for what its client is told.
DEFAULTS = tuple(_defaults())
