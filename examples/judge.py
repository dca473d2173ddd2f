# SPDX-License-Identifier: Apache-2.0
"""Contrasts only where a judge says so: a stream that is asked about the request and read once.

``python -m examples.judge ROWS.jsonl --model NAME --ask "Is that about money? Say yes or no."
--yes Yes [--url http://localhost:8000/v1]`` asks a server with vllm-cold for each row's answer, and
prints what the judge said, the weight that follows from it, and the answer next to the one without
any contrast. A row is ``{"with": [messages], "without": [messages]}``: a chat with its documents,
and what is contrasted with it. The judge reads the former with the question at its end, so all in
front of that is in the prefix cache. Its first word is all that counts: where that is ``--yes``
with at least the probability ``--threshold``, the other amateur counts with ``-beta``, else it ends
at once, too (``vllm_cold.rules.built_in.Judge``).

A building block and no remedy. **Measure first what your model answers**: in a trial with
Qwen2.5-Coder-Instruct "does the text say the answer?" detected the subject and not the answer. It
told texts about the question's subject from others (AUC 0.82 with 0.5B, 0.98 with 1.5B), and was
worse than a coin where a text is about the subject and has no answer (0.16 and 0.32).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI


@dataclass(frozen=True)
class Judged:
    """Two answers.

    Attributes:
        yes: What the judge said.
        weight: The one that follows, of the prompt that is contrasted with.
        answer: With it.
        alone: Without any contrast.
    """

    yes: bool
    weight: float
    answer: str
    alone: str


def token_of(client: OpenAI, model: str, text: str) -> int:
    """The id of a word that is a single token."""
    how = {"return_token_ids": True, "add_special_tokens": False}
    found: Any = client.completions.create(model=model, prompt=text, max_tokens=1, extra_body=how)
    ids = found.choices[0].prompt_token_ids
    if len(ids) != 1:
        raise SystemExit(f"{text!r} is {len(ids)} tokens of the model; ask for a word that is one")
    return int(ids[0])


def judge(
    client: OpenAI,
    model: str,
    row: Mapping[str, Any],
    question: str,
    parameters: Mapping[str, float],
    max_tokens: int = 64,
) -> Judged:
    """Answer a row.

    Args:
        client: The server's.
        model: The model's name there.
        row: Its chats.
        question: What the judge is asked.
        parameters: Of the rule: ``token`` and maybe ``threshold`` and ``beta``.
        max_tokens: Of the answers.
    """
    *before, last = row["with"]
    asked = [*before, {**last, "content": f"{last['content']}\n\n{question}"}]
    contrast = {
        "cold_rule": "judge",
        "cold_rule_parameters": json.dumps(parameters),
        "cold_amateur_messages": [json.dumps(row["without"]), json.dumps(asked)],
        "cold_explain": 1,  # how each token came about is told, with the weights
    }

    def answer(xargs: Mapping[str, Any]) -> Any:
        return client.chat.completions.create(
            model=model,
            messages=row["with"],
            temperature=0.0,
            max_tokens=max_tokens,
            extra_body={"vllm_xargs": xargs},
        )

    judged, alone = answer(contrast), answer({"cold": 0})
    weight, _ = judged.kv_transfer_params["cold"]["steps"][0]["weights"]
    return Judged(
        weight != 0,
        weight,
        judged.choices[0].message.content,
        alone.choices[0].message.content,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ask", required=True, help="the judge's question")
    parser.add_argument("--yes", default="Yes", help="the word that means yes (Yes)")
    parser.add_argument("--threshold", type=float, default=0.5, help="its least probability (0.5)")
    parser.add_argument("--beta", type=float, default=0.5, help="strength of the contrast (0.5)")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    options = parser.parse_args(arguments)
    client = OpenAI(base_url=options.url, api_key="none")
    parameters = {
        "token": token_of(client, options.model, options.yes),
        "threshold": options.threshold,
        "beta": options.beta,
    }
    for line in options.rows.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            judged = judge(client, options.model, json.loads(line), options.ask, parameters)
            print(json.dumps(asdict(judged)))


if __name__ == "__main__":
    main()
