# SPDX-License-Identifier: Apache-2.0
"""The example that chooses between two answers asks a server for numbers that are the model's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import choose
from tests.naive import NaiveCold
from tests.server.conftest import Server

pytestmark = pytest.mark.server


def test_four_numbers_are_the_models(
    server: Server, naive: NaiveCold, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mean log probabilities of both answers under both prompts; and the command's way there."""
    row = {
        "with": [{"role": "system", "content": "w12 w7"}, {"role": "user", "content": "w45 w46"}],
        "without": [{"role": "user", "content": "w45 w46"}],
    }
    prompts, answers = [], []
    for name in ("with", "without"):
        found: Any = server.client.chat.completions.create(
            model="one",
            messages=row[name],
            temperature=0.0,
            max_tokens=8,
            extra_body={"return_token_ids": True},
        )
        prompts.append(found.prompt_token_ids)
        answers.append(found.choices[0].token_ids)
    assert answers[0] != answers[1]
    pair = choose.compare(server.client, "one", row, 8)
    want = []
    for answer in answers:
        for prompt in prompts:
            logs = []
            for i, token in enumerate(answer):
                logits, _ = naive._forward("one", [[*prompt, *answer[:i]]], None)
                logs.append(float(logits[0].log_softmax(-1)[token]))
            want.append(float(np.mean(logs)))
    assert pair.numbers == pytest.approx(want, abs=1e-4)

    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    for constant, answer in ((1.0, pair.from_memory), (-1.0, pair.with_text)):
        judge = {"constant": constant, "coefficients": [0.0] * 4}
        (tmp_path / "judge.json").write_text(json.dumps(judge))
        asked = ["--model", "one", "--url", f"{server.url}/v1"]
        judged = ["--judge", str(tmp_path / "judge.json")]
        choose.main(["ask", str(tmp_path / "rows.jsonl"), *asked, *judged])
        # It asks for longer ones.
        assert json.loads(capsys.readouterr().out)["answer"].startswith(answer)
