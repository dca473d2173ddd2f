# SPDX-License-Identifier: Apache-2.0
"""The example with a judge: what it says decides, and both answers are the reference's."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from examples import judge
from tests.naive import Amateur, Group, NaiveCold
from tests.server.conftest import Server

pytestmark = pytest.mark.server

ROW = {
    "with": [{"role": "system", "content": "w12 w7"}, {"role": "user", "content": "w45 w46"}],
    "without": [{"role": "user", "content": "w45 w46"}],
}
QUESTION, YES, BETA, LENGTH = "w300 w7", " w30", 2.0, 12


def ids(server: Server, messages: Any) -> list[int]:
    """What a stream reads."""
    found: Any = server.client.chat.completions.create(
        model="one", messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
    )
    return list(found.prompt_token_ids)


def test_what_the_judge_says_decides(
    server: Server,
    naive: NaiveCold,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its first word's probability, below and above which the threshold is put."""
    system, user = ROW["with"]
    asked = [system, {**user, "content": f"w45 w46\n\n{QUESTION}"}]
    logits, _ = naive._forward("one", [ids(server, asked)], None)
    shares = logits[0].softmax(-1)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    token = judge.token_of(server.client, "one", YES)
    assert [token] == tokenizer.encode(YES)
    expert, without = (ids(server, ROW[name]) for name in ("with", "without"))
    group = Group(expert, "one", [Amateur(-BETA, "one", without)], 0.1, LENGTH)
    contrast, alone = (
        tokenizer.decode(trace.tokens)
        for trace in (naive.decode(group), naive.greedy(expert, "one", LENGTH))
    )
    assert contrast != alone
    for factor, said, right in ((0.99, True, contrast), (1.01, False, alone)):
        parameters = {"token": token, "threshold": factor * float(shares[token]), "beta": BETA}
        got = judge.judge(server.client, "one", ROW, QUESTION, parameters, LENGTH)
        assert got == judge.Judged(said, -BETA if said else 0.0, right, alone)

    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    asked_for = ["--model", "one", "--url", f"{server.url}/v1", "--ask", QUESTION, "--yes", YES]
    for threshold, said in (("0", True), ("1", False)):
        judge.main([str(tmp_path / "rows.jsonl"), *asked_for, "--threshold", threshold])
        assert json.loads(capsys.readouterr().out)["yes"] is said
