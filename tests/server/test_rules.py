# SPDX-License-Identifier: Apache-2.0
"""A server with rules of others: of the example package, which is installed, and by
``--cold-rule``.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests import naive_rules
from tests.naive import NaiveCold, assert_same_tokens
from tests.server.conftest import Server
from vllm_cold.scheduler.output_checks import RULE_HAS_NO_WEIGHTS

pytestmark = pytest.mark.server

PROMPT = list(range(20, 60))
ALPHA, MAX_TOKENS = 0.02, 24


def conflict(step: naive_rules.Step, parameters: naive_rules.Parameters) -> float:
    """examples/rule: -beta where the best tokens differ, else 0."""
    best = (z.index(max(z)) for z in (step.expert, step.amateur))
    return 0.0 if len(set(best)) == 1 else -parameters["beta"]


def fading(step: naive_rules.Step, parameters: naive_rules.Parameters) -> float:
    """``own_rules.Fading``."""
    return -parameters["beta"] / (1 + step.number)


NAIVE = {"conflict": (conflict, {"beta": 0.5}), "fading": (fading, {"beta": 1.0})}


def ask(server: Server, rule: str, **xargs: Any) -> tuple[int, dict[str, Any]]:
    """Status and answer."""
    status, text = server.post(
        "/v1/completions",
        {
            "model": "one",
            "prompt": PROMPT,
            "max_tokens": MAX_TOKENS,
            "temperature": 0.0,
            "ignore_eos": True,
            "return_token_ids": True,
            "vllm_xargs": {"cold_alpha": ALPHA, "cold_rule": rule, **xargs},
        },
    )
    return status, json.loads(text)


def tokens(answer: tuple[int, dict[str, Any]]) -> list[int]:
    status, body = answer
    assert status == 200, body
    found: list[int] = body["choices"][0]["token_ids"]
    return found


@pytest.mark.parametrize(("rule", "beta"), [("conflict", 3.0), ("fading", 8.0)])
def test_tokens_are_those_of_the_reference(
    rule: str, beta: float, server: Server, naive: NaiveCold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a parameter of the request's, and with its default."""
    monkeypatch.setitem(naive_rules.RULES, rule, NAIVE[rule])
    given: list[dict[str, float]] = [{"beta": beta}, {}]
    said = [{"cold_rule_parameters": json.dumps(given[0])}, {}]
    right = [
        naive.generate(
            PROMPT, expert="one", alpha=ALPHA, beta=0.0, max_tokens=MAX_TOKENS,
            rule=rule, rule_parameters=parameters,
        )
        for parameters in given
    ]  # fmt: skip
    assert_same_tokens([tokens(ask(server, rule, **each)) for each in said], right)
    alone = naive.greedy(PROMPT, "one", MAX_TOKENS)
    assert len({tuple(trace.tokens) for trace in (*right, alone)}) == 3
    counted = server.samples("vllm:cold_requests_total")
    assert [sample.value for sample in counted if sample.labels["method"] == rule] == [2]


@pytest.mark.parametrize("rule", ["breaks", "raises"])
def test_a_rule_that_fails_ends_its_own_requests(
    rule: str, server: Server, naive: NaiveCold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(naive_rules.RULES, "fading", NAIVE["fading"])
    right = naive.generate(
        PROMPT, expert="one", alpha=ALPHA, beta=0.0, max_tokens=MAX_TOKENS, rule="fading"
    )
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(ask, server, "fading") for _ in range(2)]
        time.sleep(0.05)
        status, answer = ask(server, rule)
        got = [tokens(other.result()) for other in others]
    assert status == 500
    assert answer["error"]["message"] == RULE_HAS_NO_WEIGHTS
    assert_same_tokens(got, [right] * 2)
    server.wait_until_idle()
