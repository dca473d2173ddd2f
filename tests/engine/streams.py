# SPDX-License-Identifier: Apache-2.0
"""Groups of streams as the naive reference describes them, and the same requests for an engine.

A ``Group`` without amateurs stands for a plain request. Imports no vLLM: the reference of
``test_families`` runs without it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.conftest import lora
from tests.engine.pressure import Job
from tests.naive import Amateur, Group, NaiveCold, Trace
from vllm_cold.group.results import weights_in

MAX_TOKENS = 12
LONGEST = 1025  # of the prompts in ``make_groups``
SHORT = 105  # of those of ``short_groups``
_LENGTHS = (1, 2, 7, 31, 32, 33, 40, 65)  # around the borders of blocks and chunks
_CONTEXTS = (30, 64, 64, 250, 960)
KINDS = (
    "guidance",
    "context",
    "longer amateur",
    "two adapters",
    "a rule",
    "a rule and fixed",
    "a judge",
    "four streams",
    "CoLD",
    "plain",
)


# With parameters by which the tiny model's steps fall on both sides of a gate.
RULES: tuple[tuple[str, dict[str, float]], ...] = (
    ("adaptive", {"beta_max": 3.0}),
    ("arr", {"beta_max": 4.0}),
    ("acd", {}),
    ("cocoa", {"gamma": 1.5}),
    ("grd", {"lam": 0.6}),
    ("m3id", {"gamma": 0.1, "threshold": 0.18}),
    ("mti", {"beta": 2.0, "tau": 3.9}),
)

# What the tiny model answers to half of the prompts.
JUDGE = ("judge", {"token": 438.0, "threshold": 0.004, "beta": 2.0})


def make_groups(count: int = 72) -> list[Group]:
    """Requests of each of ``KINDS`` in turn, the base model and two adapters as experts. Contexts
    are shared, so that prefix caching has hits; prompts have 1 to ``LONGEST`` tokens.
    """
    rng = random.Random(19)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(4, 512) for _ in range(length))

    contexts = [draw(length) for length in _CONTEXTS]
    groups = []
    for i in range(count):
        kind, number = KINDS[i % len(KINDS)], i // len(KINDS)
        text = draw(_LENGTHS[number % len(_LENGTHS)])
        context, expert = rng.choice(contexts), (None, "one", "two")[number % 3]
        groups.append(_group(kind, context, text, expert, number))
    return groups


def _group(
    kind: str, context: tuple[int, ...], text: tuple[int, ...], expert: str | None, number: int
) -> Group:
    whole = context + text
    weight = (-0.5, -2.0)[number % 2]
    rule, parameters = JUDGE if kind == "a judge" else RULES[number % len(RULES)]
    by_rule = Amateur(None, expert, text)
    adapter = expert or "one"
    other = "one" if adapter == "two" else "two"
    prompt, alpha, cap, amateurs = {
        "guidance": (whole, 0.0, None, [Amateur(weight, expert, text)]),
        "context": (whole, 0.1, (None, 5)[number % 2], [Amateur(-1.0, expert, text)]),
        "longer amateur": (text, 0.0, None, [Amateur(weight, expert, whole)]),
        "two adapters": (text, 0.0, None, [Amateur(0.7, "one"), Amateur(-0.7, "two")]),
        "a rule": (whole, 0.0, None, [by_rule]),
        "a rule and fixed": (whole, 0.05, 9, [Amateur(0.3, None, context), by_rule]),
        "a judge": (whole, 0.0, None, [by_rule, Amateur(None, expert, (*whole, 7))]),
        "four streams": (
            whole,
            0.02,
            None,
            [Amateur(-0.4, adapter, text), Amateur(-0.4, None, context), Amateur(0.3, other)],
        ),
        "CoLD": (whole, 0.1, None, [Amateur(-2.0)]),
        "plain": (whole, 0.0, None, []),
    }[kind]
    if kind == "two adapters":
        expert = None
    elif kind in ("four streams", "CoLD"):
        expert = adapter
    if by_rule not in amateurs:
        return Group(prompt, expert, amateurs, alpha, MAX_TOKENS, cap)
    return Group(
        prompt, expert, amateurs, alpha, MAX_TOKENS, cap, rule=rule, rule_parameters=parameters
    )


def length(group: Group) -> int:
    """Of the longest of the prompts."""
    return max(map(len, group.prompts))


def short_groups(count: int) -> list[Group]:
    """Those of so many whose prompts are not longer than ``SHORT``."""
    return [group for group in make_groups(count) if length(group) <= SHORT]


def num_adapters(group: Group) -> int:
    """How many of the engine's slots the group needs."""
    return len(set(group.adapters) - {None})


def params(tiny: Path, group: Group, **options: Any) -> Any:
    """The group's ``ColdParams``, or plain ``SamplingParams``; greedy unless ``options`` say else.

    What is the default is left out: an amateur's adapter, and a list where there is one amateur.
    """
    from vllm import SamplingParams

    import vllm_cold

    options = {
        "temperature": 0.0,
        "max_tokens": group.max_tokens,
        "ignore_eos": True,
        **options,
    }
    if not group.amateurs:
        return SamplingParams(**options)
    amateurs = []
    for amateur in group.amateurs:
        fields: dict[str, Any] = {}
        if amateur.adapter != (None if amateur.prompt_ids is None else group.expert):
            fields["lora_request"] = lora(tiny, amateur.adapter) if amateur.adapter else None
        if amateur.prompt_ids is not None:
            fields["prompt"] = list(amateur.prompt_ids)
        fields["weight"] = group.rule if amateur.weight is None else amateur.weight
        amateurs.append(vllm_cold.Amateur(**fields))
    options |= {"amateur": amateurs[0]} if len(amateurs) == 1 else {"amateurs": amateurs}
    if group.rule is not None:
        options["rule_parameters"] = dict(group.rule_parameters)
        options["explain"] = options.get("n", 1) == 1
    return vllm_cold.ColdParams(alpha=group.alpha, expert_top_k=group.expert_top_k, **options)


def generate(llm: Any, tiny: Path, groups: Sequence[Group], **options: Any) -> list[Any]:
    """The engine's outputs, one for each group: those of its expert."""
    outputs = llm.generate(
        [{"prompt_token_ids": list(group.prompt_ids)} for group in groups],
        [params(tiny, group, **options) for group in groups],
        lora_request=[lora(tiny, group.expert) if group.expert else None for group in groups],
        use_tqdm=False,
    )
    prompts = [list(output.prompt_token_ids) for output in outputs]
    assert prompts == [list(group.prompt_ids) for group in groups]
    return list(outputs)


def decode(llm: Any, tiny: Path, groups: Sequence[Group]) -> list[list[int]]:
    """The engine's tokens, greedy; where a rule chooses, each has its weights."""
    outputs = generate(llm, tiny, groups)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    for group, output, given in zip(groups, outputs, tokens, strict=True):
        told = weights_in(output.kv_transfer_params)
        if group.rule is None:
            assert told is None
            continue
        assert told is not None and len(told) == len(given)
        for row in told:
            for weight, of in zip(row, group.amateurs, strict=True):
                assert of.weight is None or abs(weight - of.weight) < 1e-6
    return tokens


@dataclass(frozen=True, eq=False)
class GroupJob(Job):
    """A group for the tests under pressure; its length is in ``options``."""

    group: Group = Group((), None, (), 0.0, 0)

    def params(self, tiny: Path) -> Any:
        """With temperature 0 unless ``options`` say else."""
        return params(tiny, self.group, **self.options, **self.make_options())


def job(group: Group, **options: Any) -> GroupJob:
    """The group as a job of the tests under pressure."""
    return GroupJob(tuple(group.prompt_ids), group.expert, options=options, group=group)


class Texts:
    """Groups whose prompts are texts or messages."""

    MAX_TOKENS = 12

    def __init__(self, tiny: Path, naive: NaiveCold) -> None:
        from transformers import AutoTokenizer

        self._naive = naive
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tiny / "model")

    def ids(self, prompt: Any) -> list[int]:
        """Of a text, of messages, or as they are."""
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt).input_ids)
        if isinstance(prompt[0], dict):
            text = self.tokenizer.apply_chat_template(
                prompt, tokenize=False, add_generation_prompt=True
            )
            return self.ids(text)
        return list(prompt)

    def group(self, prompt: Any, expert: str | None, *amateurs: Any, alpha: float = 0.0) -> Group:
        """An amateur is its weight, its adapter and its prompt."""
        found = [
            Amateur(weight, adapter, None if own is None else self.ids(own))
            for weight, adapter, own in amateurs
        ]
        return Group(self.ids(prompt), expert, found, alpha, self.MAX_TOKENS)

    def decode(self, *groups: Group) -> list[Trace]:
        """The reference's tokens."""
        return self._naive.generate_many(groups)
