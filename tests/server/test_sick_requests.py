# SPDX-License-Identifier: Apache-2.0
"""Requests that may hurt others: adapters whose logits are no numbers, and sampling parameters at
their limits and beyond, next to healthy requests that get the tokens they get without them.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.naive import NaiveCold, Trace
from tests.server.clients import ALPHA, Asked, assert_right, references, storm
from tests.server.conftest import Server
from vllm_cold.ops.interface import NOT_FINITE

pytestmark = pytest.mark.server

PROMPT = list(range(20, 60))
BETA = 2.0
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": PROMPT},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "w12 w7 w300"}]},
}
COMPLETION, CHAT = BODIES
COLD = {"cold_alpha": ALPHA, "cold_beta": BETA}
HEALTHY = [
    Asked(tuple(PROMPT), 16, "one", BETA),
    Asked(tuple(PROMPT[:7]), 16, "two", BETA, "one"),
    Asked(tuple(PROMPT[:33]), 16, "one"),
    Asked(tuple(PROMPT), 16),
]


@pytest.fixture(scope="module")
def expected(naive: NaiveCold) -> list[Trace]:
    return references(naive, HEALTHY)


@pytest.fixture(scope="module", autouse=True)
def nothing_logged_yet(server: Server) -> None:
    """What other files' tests made the shared server say is not looked at here."""
    server.new_log()


@contextmanager
def beside_healthy_ones(server: Server, expected: Sequence[Trace]) -> Iterator[None]:
    """Send healthy requests meanwhile, again and again; they get their tokens."""
    over = False

    def run() -> None:
        while True:
            last = over
            got = asyncio.run(storm(server.url, HEALTHY, [None] * len(HEALTHY)))
            assert_right(got, HEALTHY, expected)
            if last:
                return

    with ThreadPoolExecutor(1) as pool:
        healthy = pool.submit(run)
        try:
            yield
        finally:
            over = True
        healthy.result()


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    """The answer, read to its end; streamed ones too."""
    asked = {"model": "one", "max_tokens": 4, "temperature": 0.0, "vllm_xargs": COLD}
    body = {**BODIES[path], **asked, **body}
    return httpx.post(server.url + path, json=body, timeout=120)


def errors(answer: httpx.Response) -> list[dict[str, Any]]:
    """The errors of an answer, whatever way they come; fails for what is no answer."""
    if answer.status_code != 200:
        found = json.loads(answer.text)
        if "detail" in found:  # FastAPI could not read the body
            return [{"code": answer.status_code, "message": found["detail"]}]
        return [found["error"]]
    if not answer.headers["content-type"].startswith("text/event-stream"):
        assert json.loads(answer.text)["choices"]
        return []
    lines = [line for line in answer.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines), answer.text[:500]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    return [event["error"] for event in events if "error" in event]


# ---- adapters whose logits are no numbers -------------------------------------------------------

ROLES: dict[str, dict[str, Any]] = {
    "expert": {"model": "nan"},
    "amateur": {"model": "one", "vllm_xargs": {**COLD, "cold_amateur": "nan"}},
    "infinite": {"model": "inf"},
    "infinite amateur": {"model": "two", "vllm_xargs": {**COLD, "cold_amateur": "inf"}},
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "n": {"n": 3, "temperature": 1.0, "seed": 1},
    "logprobs": {"logprobs": 3},
    "json": {"response_format": {"type": "json_object"}},
}


@pytest.mark.parametrize(
    ("role", "path", "stream"),
    list(zip(ROLES, (COMPLETION, CHAT, CHAT, COMPLETION), (False, True, False, True), strict=True)),
)
def test_the_client_hears_why(
    role: str, path: str, stream: bool, server: Server, expected: list[Trace]
) -> None:
    requests = "vllm:cold_requests_total"  # which is not there before the first one
    before = sum(sample.value for sample in server.samples(requests))
    with beside_healthy_ones(server, expected):
        for options in WAYS.values():
            if path == CHAT and "logprobs" in options:
                options = {"logprobs": True, "top_logprobs": 3}
            answer = post(server, path, stream=stream, **ROLES[role], **options)
            assert answer.status_code == (200 if stream else 500)
            (error,) = errors(answer)
            assert error["message"] == NOT_FINITE
            assert '"token_ids"' not in answer.text and '"finish_reason":"' not in answer.text
    # At least one storm of healthy ones next to those that are sick.
    assert server.metric(requests) >= before + len(WAYS) + 2
    server.wait_until_idle()


def test_the_log_says_what_is_the_default(default_server: Server) -> None:
    log = default_server.log.read_text().splitlines()
    (line,) = [x for x in log if re.search(r"ontrastive decoding is (the|used)", x)]
    assert "Contrastive decoding is the default for requests that name an adapter" in line
    assert f"alpha={ALPHA}, beta={BETA}" in line


# ---- every sampling parameter, at its limits and beyond -----------------------------------------

LARGE = [str(2**31 - 1), str(2**31), str(2**63 - 1), str(2**63), "9" * 400]
SMALL = ["-1", str(-(2**63)), str(-(2**63) - 1)]
ODD = ["null", "NaN", "Infinity", "-Infinity", "1e400", '"1"', "true", "[]", "{}"]
SWITCH = ["true", "false", "null", "2", '"x"']
EVERY_TOKEN = json.dumps(list(range(512)))
SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'

# As JSON text: Python's floats have no 1e400, and its dicts no key twice.
# Those that change logits or what amateurs are given. Left out is what vLLM answers with HTTP 500
# without this package, too: structured_outputs that are no object, and a grammar of characters that
# no token has.
FIELDS: dict[str, list[str]] = {
    "temperature": ["0", "1e-45", "1e-39", "1e-6", "0.01", "1", "2", "2.0001", "1e38", "-1", *ODD],
    "repetition_penalty": [
        *("1e-400", "1e-300", "1e-45", "1e-39", "1e-38", "1e-5", "0.5", "1", "2", "1e5", "1e38"),
        *("3.5e38", "1e300", "0", "-1", *ODD),
    ],
    "seed": ["0", "1", str(2**32), *SMALL, *LARGE, *ODD],
    "n": ["0", "1", "2", "40", "16385", *SMALL, *LARGE, *ODD],
    "max_tokens": ["0", "1", "2", "40", "216", "217", "256", "257", *SMALL, *LARGE, *ODD],
    "min_tokens": ["0", "1", "3", "4", "5", "257", *SMALL, *LARGE, *ODD],
    "allowed_token_ids": [
        *("[5]", "[3]", "[5, 5]", "[0, 511]", "[512]", "[-1]", EVERY_TOKEN, "[1.5]"),
        *(f"[{n}]" for n in LARGE),
        *ODD,
    ],
    "logit_bias": [
        *('{"5": 100}', '{"5": -100}', '{"5": 101}', '{"5": 1e308}', '{"5": NaN}', '{"3": 100}'),
        *('{"5": Infinity}', '{"5": -Infinity}', '{"511": 1}', '{"512": 1}', '{"-1": 1}'),
        *('{"x": 1}', '{"5.5": 1}', '{"5": null}', '{"5": 1, "5": 2}', '{"5": 1e-45}'),
        *(f'{{"{n}": 1}}' for n in LARGE),
        json.dumps({str(n): -100 for n in range(512)}),
        json.dumps({str(n): 100 for n in range(512)}),
        *ODD,
    ],
    "logprobs": ["0", "1", "5", "20", "21", "512", "513", "1.5", *SMALL, *LARGE, *SWITCH, *ODD],
    "prompt_logprobs": ["0", "1", "20", "21", "512", "1.5", *SMALL, *LARGE, *ODD],
    "use_beam_search": SWITCH,
    "structured_outputs": [
        *('{"regex": "[ab]{3}"}', '{"regex": "("}', '{"regex": ""}', r'{"regex": "\u0000"}'),
        *('{"choice": ["yes", "no"]}', '{"choice": []}', '{"choice": [""]}', '{"choice": [1]}'),
        *(f'{{"json": {SCHEMA}}}', '{"json": "x"}', '{"json": ""}', '{"json": {}}'),
        *('{"json_object": true}', '{"json_object": false}', '{"grammar": "root ::= \\"a\\""}'),
        *('{"grammar": "x"}', '{"grammar": ""}', '{"regex": "a", "choice": ["b"]}'),
        *('{"structural_tag": "x"}', "null", "{}"),
    ],
    "priority": ["0", "1", *SMALL, *LARGE, *ODD],
    "vllm_xargs": [
        *('{"cold": 0}', '{"cold": 1}', '{"cold_beta": 0}', '{"cold_beta": 1e6}', "[" * 5000),
        *('{"cold_alpha": 1}', '{"cold_alpha": 1e-45}', '{"cold_alpha": 1e-300}'),
        r'{"cold_rule": "adaptive", "cold_rule_parameters": "{\"beta_max\": 1e6}"}',
        '{"cold_amateur": "two"}',
        *('{"cold_expert_top_k": 1}', '{"cold_expert_top_k": 2147483647}', '{"other": 1}', *ODD),
        # Others are refused before anything is scored: tests/unit/test_settings.py.
        *(r'{"cold_\ud800": 1}', r'{"cold_amateur": "\u0000"}', "[" * 5000 + "]" * 5000),
    ],
}


def send(server: Server, stream: bool, field: str, value: str) -> str | None:
    """What is wrong with the answer to a body with this field (JSON text); None if it is valid:
    HTTP 2xx or 4xx, or an error that says that there was no number to choose by.
    """
    asked = {"model": "one", "stream": stream, "max_tokens": 4, "temperature": 0.0}
    rest = {**BODIES[COMPLETION], **asked, "vllm_xargs": COLD}
    members = {name: json.dumps(each) for name, each in rest.items()} | {field: value}
    text = "{" + ", ".join(f'"{name}": {each}' for name, each in members.items()) + "}"
    answer = httpx.post(
        server.url + COMPLETION,
        content=text.encode(errors="surrogatepass"),
        headers={"Content-Type": "application/json"},
        timeout=120,
    )
    try:
        found = errors(answer)
    except (AssertionError, ValueError, KeyError) as problem:
        return f"{answer.status_code}: {problem!r} in {answer.text[:300]}"
    wrong = [e for e in found if not 400 <= e["code"] < 500 and e["message"] != NOT_FINITE]
    return str(wrong) if wrong else None


def test_each_value_alone(server: Server, expected: list[Trace]) -> None:
    """With contrastive decoding; some of them at a time."""
    cases = [(name, value) for name, values in FIELDS.items() for value in values]

    def ask(case: tuple[str, str]) -> str | None:
        return send(server, cases.index(case) % 2 == 1, *case)

    with beside_healthy_ones(server, expected), ThreadPoolExecutor(12) as pool:
        wrong = {c: w for c, w in zip(cases, pool.map(ask, cases), strict=True) if w is not None}
    assert not wrong, "\n".join(f"{c}: {w}" for c, w in wrong.items())
    server.wait_until_idle()


def test_nothing_is_left(server: Server) -> None:
    """Of all the tests above; and only those that were sick ended with an error of vllm-cold's."""
    server.wait_until_idle()
    said = re.findall(r"ERROR .*(vllm-cold: .*) \(request", server.new_log())
    assert set(said) == {NOT_FINITE}
