# SPDX-License-Identifier: Apache-2.0
"""Groups of streams as the naive reference describes them, and the same requests for an engine.

A ``Group`` without amateurs stands for a regular request. Imports no vLLM: the reference of
``test_families`` runs without it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.engine.conftest import lora
from tests.engine.judge import Judge
from tests.naive import Amateur, Answer, Group, NaiveCold, Trace
from tests.requests import ids
from vllm_cold.wire.transfer_params import told_in

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
    "a judge or a bound",
    "four streams",
    "contrastive decoding",
    "regular",
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
JUDGE = (Judge.name, {"token": 438.0, "threshold": 0.004, "beta": 2.0})

# Of one part and of two, with limits that the tiny model reaches; of the latter some end answers.
BOUNDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bound", {"bits": 3.0, "bits_per_token": 0.5}),
    ("bound", {"bits": [6.0, 30.0], "bits_per_token": [0.5, 2.0], "refund": 1.0}),
)


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
    rule, parameters = RULES[number % len(RULES)]
    most = 1 if number % 4 == 2 else 2
    if kind == "a judge or a bound":
        rule, parameters = (BOUNDS[1], JUDGE, BOUNDS[0], JUDGE)[number % 4]
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
        "a judge or a bound": (
            whole,
            0.0,
            None,
            [by_rule, Amateur(None, expert, (*whole, 7))][:most],
        ),
        "four streams": (
            whole,
            0.02,
            None,
            [Amateur(-0.4, adapter, text), Amateur(-0.4, None, context), Amateur(0.3, other)],
        ),
        "contrastive decoding": (whole, 0.1, None, [Amateur(-2.0)]),
        "regular": (whole, 0.0, None, []),
    }[kind]
    if kind == "two adapters":
        expert = None
    elif kind in ("four streams", "contrastive decoding"):
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


def short_rules() -> list[Group]:
    """One of each of ``RULES``, no longer than ``SHORT``, for engines that take few tokens."""
    alone = [group for group in make_groups() if group.rule and len(group.amateurs) == 1]
    return [replace(group, prompt_ids=group.prompt_ids[-SHORT:]) for group in alone]


def num_adapters(group: Group) -> int:
    """How many of the engine's slots the group needs."""
    return len(set(group.adapters) - {None})


@dataclass(frozen=True, eq=False)
class Job:
    """A request for an engine, greedy unless ``options`` say else."""

    group: Group
    options: dict[str, Any] = field(default_factory=dict)
    make_options: Callable[[], dict[str, Any]] = dict
    """For what needs vLLM's own classes."""

    @property
    def is_greedy(self) -> bool:
        return not self.options.get("temperature", 0.0)

    def asked(self) -> dict[str, Any]:
        """The prompt as vLLM takes it."""
        return {"prompt_token_ids": list(self.group.prompt_ids)}

    def own_prompt(self, index: int) -> dict[str, Any]:
        """What an amateur that does not read the expert's prompt says of its own."""
        ids = self.group.amateurs[index].prompt_ids
        return {} if ids is None else {"prompt": list(ids)}

    def params(self, folder: Path) -> Any:
        """``ColdParams``, or regular ``SamplingParams``.

        What is the default is left out: an amateur's adapter, a list where there is one amateur,
        and of a pair all but ``beta``.
        """
        from vllm import SamplingParams

        import vllm_cold

        group = self.group
        options: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": group.max_tokens,
            "ignore_eos": True,
            **self.options,
            **self.make_options(),
        }
        if not group.amateurs:
            return SamplingParams(**options)
        if group.rule is not None:
            options["rule_parameters"] = dict(group.rule_parameters)
            options["explain"] = int(options.get("n", 1) == 1)
        if group.rule != "bound":
            options |= {"alpha": group.alpha, "expert_top_k": group.expert_top_k}
        weights = [group.rule if a.weight is None else a.weight for a in group.amateurs]
        prompts = [self.own_prompt(index) for index in range(len(weights))]
        first = weights[0]
        if prompts == [{}] and (isinstance(first, str) or first is not None and first <= 0):
            amateur = lora(folder, group.amateurs[0].adapter)
            strength = {"rule": first} if isinstance(first, str) else {"beta": -first}
            return vllm_cold.ColdParams(amateur=amateur, **strength, **options)
        amateurs = []
        for one, weight, own in zip(group.amateurs, weights, prompts, strict=True):
            fields = {**own, "weight": weight}
            if one.adapter != (group.expert if own else None):
                fields["lora_request"] = lora(folder, one.adapter)
            amateurs.append(vllm_cold.Amateur(**fields))
        if len(amateurs) == 1:
            return vllm_cold.ColdParams(amateur=amateurs[0], **options)
        return vllm_cold.ColdParams(amateurs=amateurs, **options)


def generate(llm: Any, folder: Path, asked: Sequence[Group | Job], **options: Any) -> list[Any]:
    """The engine's outputs, one for each group: those of its expert."""
    jobs = [one if isinstance(one, Job) else Job(one) for one in asked]
    jobs = [replace(one, options={**one.options, **options}) for one in jobs]
    outputs = llm.generate(
        [one.asked() for one in jobs],
        [one.params(folder) for one in jobs],
        lora_request=[lora(folder, one.group.expert) for one in jobs],
        use_tqdm=False,
    )
    for one, output in zip(jobs, outputs, strict=True):
        if one.group.prompt_ids:  # not something else in their place
            assert list(output.prompt_token_ids) == list(one.group.prompt_ids)
    return list(outputs)


def decode(llm: Any, folder: Path, asked: Sequence[Group | Job]) -> list[Answer]:
    """The engine's tokens, greedy; where a rule chooses, each has its weights."""
    return tokens_of(asked, generate(llm, folder, asked))


def tokens_of(asked: Sequence[Group | Job], outputs: Sequence[Any]) -> list[Answer]:
    """Of each first answer; with the weights of its rule, if it has one."""
    tokens = [Answer(output.outputs[0].token_ids) for output in outputs]
    for one, output, given in zip(asked, outputs, tokens, strict=True):
        group = one.group if isinstance(one, Job) else one
        told_of = told_in(output.kv_transfer_params)
        told, given.spent = told_of.get("steps"), told_of.get("budget", {}).get("spent", ())
        if group.rule is None:
            assert told is None
            continue
        assert told is not None and len(told) == len(given)
        for step in told:
            for weight, of in zip(step["weights"], group.amateurs, strict=True):
                assert of.weight is None or abs(weight - of.weight) < 1e-6
    return tokens


class Texts:
    """Groups whose prompts are texts or messages."""

    MAX_TOKENS = 12

    def __init__(self, tiny: Path, naive: NaiveCold) -> None:
        from transformers import AutoTokenizer

        self._naive = naive
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tiny / "model")

    def ids(self, prompt: Any) -> list[int]:
        """Of a text, of messages, or as they are."""
        return ids(self.tokenizer, prompt)

    def group(self, prompt: Any, expert: str | None, *amateurs: Any, alpha: float = 0.0) -> Group:
        """An amateur is its weight, its adapter and its prompt."""
        found = [
            Amateur(weight, adapter, None if own is None else self.ids(own))
            for weight, adapter, own in amateurs
        ]
        return Group(self.ids(prompt), expert, found, alpha, self.MAX_TOKENS)

    def asked(self, request: Any) -> Group:
        """That of a request of ``tests.requests``."""
        expert, alpha = request.expert, request.alpha
        return self.group(request.prompt, expert, *request.amateurs, alpha=alpha)

    def decode(self, *groups: Group) -> list[Trace]:
        """The reference's tokens."""
        return self._naive.generate_many(groups)
