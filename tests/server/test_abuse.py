# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in ``vllm_xargs``: HTTP 2xx or 4xx, and the next request is served."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.naive import NaiveCold
from tests.server.conftest import Server

pytestmark = pytest.mark.server

PROMPT = list(range(20, 60))


# Everything below is JSON text, because Python objects have no lone surrogates in UTF-8, no
# duplicate keys and no numbers of 5,000 digits.
NUMBERS = st.one_of(
    st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "1e400", "-0.0", "1e-400", "0", "1", "2", "0.1", "-1"]
    ),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from([20, 400, 5000]).map(lambda digits: "9" * digits),
    st.sampled_from([str(2**31), str(2**63), str(-(2**63) - 1), str(2**64)]),
)
TEXTS = st.one_of(
    st.sampled_from(
        [
            '"one"',
            '"two"',
            '"base"',
            '"nobody"',
            '""',
            '"0.1"',
            r'"\ud800"',
            r'"\udc00x"',
            r'"\u0000"',
            r'"\ud83d\ude00"',
            '"\u202e\u00e9\U0001f600"',
            json.dumps("x" * 100_000),
        ]
    ),
    st.text(max_size=20).map(json.dumps),
    st.text(max_size=20).map(lambda x: json.dumps(x, ensure_ascii=False)),
)
SCALARS = st.one_of(NUMBERS, TEXTS, st.sampled_from(["true", "false", "null"]))
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4).map(lambda x: f"[{','.join(x)}]"),
    st.sampled_from(
        [
            "{}",
            '{"alpha": 0.1}',
            "[[0.1]]",
            "[" * 50 + "]" * 50,
            "[" * 5000 + "]" * 5000,
            f"[{','.join(['0.1'] * 100_000)}]",
        ]
    ),
)
KEYS = st.one_of(
    st.sampled_from(
        [
            "cold",
            "cold_alpha",
            "cold_beta",
            "cold_expert_top_k",
            "cold_amateur",
            "cold_foo",
            "cold_stream",
            "Cold",
            "",
            "x" * 10_000,
        ]
    ).map(json.dumps),
    st.text(max_size=10).map(lambda x: json.dumps("cold" + x)),
    st.text(max_size=10).map(json.dumps),
    st.sampled_from([r'"cold\ud800"', r'"\ud800"', r'"cold\u0000"']),
)
# Pairs, not a dict: a key may come twice.
XARGS = st.one_of(
    st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3).map(
        lambda pairs: "{" + ",".join(f"{key}: {value}" for key, value in pairs) + "}"
    ),
    VALUES,
)

BODIES = {
    "/v1/completions": {"prompt": PROMPT},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "w12"}]},
}


def body(path: str, xargs: str, model: str, stream: bool) -> bytes:
    """A request with ``xargs`` as JSON text."""
    rest = {**BODIES[path], "model": model, "stream": stream, "max_tokens": 2, "temperature": 0.0}
    return (json.dumps(rest)[:-1] + f', "vllm_xargs": {xargs}}}').encode(errors="surrogatepass")


def check_good(server: Server, naive: NaiveCold) -> None:
    """A right request gets the right tokens."""
    good = {"prompt": PROMPT, "model": "one", "max_tokens": 2, "temperature": 0.0}
    good |= {"return_token_ids": True, "vllm_xargs": {"cold_alpha": 0.05, "cold_beta": 2.0}}
    status, text = server.post("/v1/completions", good)
    assert status == 200, text
    trace = naive.generate(PROMPT, expert="one", alpha=0.05, beta=2.0, max_tokens=2)
    assert json.loads(text)["choices"][0]["token_ids"] == trace.tokens


def check_answer(status: int, text: str) -> None:
    """2xx or 4xx; an error that arrives in a stream counts with its code."""
    assert 200 <= status < 300 or 400 <= status < 500, f"{status}: {text[:300]}"
    for line in text.splitlines():
        if line.startswith('data: {"error"'):
            assert 400 <= json.loads(line.removeprefix("data: "))["error"]["code"] < 500, line


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=75)
@given(
    xargs=XARGS,
    model=st.sampled_from(["one", "two", "base"]),
    stream=st.booleans(),
)
@example(xargs='{"cold_alpha": NaN}', model="one", stream=False)
@example(xargs='{"cold_beta": Infinity}', model="one", stream=True)
@example(xargs='{"cold_beta": 0.5, "cold_beta": "x"}', model="one", stream=False)
@example(xargs=r'{"cold_amateur": "\ud800"}', model="one", stream=False)
@example(xargs=r'{"cold\ud800": 1}', model="one", stream=False)
@example(xargs=r'{"\ud800": 1}', model="one", stream=False)
@example(xargs=f'{{"cold_beta": {"9" * 5000}}}', model="one", stream=False)
@example(xargs=f'{{"cold_beta": {"9" * 4000}}}', model="one", stream=False)
@example(xargs=f'{{"cold_beta": [{",".join(["1"] * 100_000)}]}}', model="one", stream=True)
@example(xargs="[" * 5000 + "]" * 5000, model="one", stream=False)
@example(xargs='{"cold": 1, "session_id": "\\u0000"}', model="one", stream=True)
def test_any_arguments(
    path: str, xargs: str, model: str, stream: bool, server: Server, naive: NaiveCold
) -> None:
    check_answer(*server.post(path, body(path, xargs, model, stream)))
    check_good(server, naive)


def test_nothing_is_left(server: Server) -> None:
    server.wait_until_idle()
    assert not re.search("ERROR .*CoLD", server.new_log())
