# SPDX-License-Identifier: Apache-2.0
"""Judges rules for beta without decoding: ``python -m benchmarks.accuracy.screen``.

A deterministic method writes a given answer if and only if, at each position of that answer, its
choice is the answer's token. So where one answer is right, one forward pass of expert and amateur
over the right answers of dev tells for any rule which problems it solves, in no time. (Where
several answers are right it tells which ones are solved in the listed way.)
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.accuracy.evaluate import WEAKER, problems_of
from benchmarks.accuracy.learned import judge
from benchmarks.accuracy.position import Numbers, Position, Rule, solved
from benchmarks.accuracy.store import ADAPTERS, MEASURED, Adapter, Cell
from benchmarks.accuracy.tasks import BENCHMARKS, prompt_text
from benchmarks.accuracy.train import RANKS
from examples.smollm2 import model_path
from vllm_cold.tools.tune.stats import sign_flip

SCREENING = "screening.json"
ALPHA = 0.1
TOP = 64  # the expert's best tokens that are kept: at alpha 0.1 candidates are few
BATCH = 16
VERSION = 2  # of what ``collect`` keeps
STRENGTHS = ((RANKS[0], 100), *WEAKER)
PROBLEMS = 300


def collect(adapter: Adapter, count: int) -> dict[str, Numbers]:
    """What expert and base model say at each token of the right answers of dev.

    Returns:
        Arrays over positions: ``prob`` number of the problem; ``e`` [n, TOP] the expert's best
        log-probabilities, ``a`` [n, TOP] the amateur's of the same tokens; ``gold`` place of the
        right token among them, -1 if it is not there; ``abest`` the amateur's largest
        log-probability; ``jsd`` in bits over the whole vocabulary.
    """
    cell = Cell(adapter, "ordinary")
    problems, mark = problems_of(cell, "dev", count)
    mark = f"{VERSION} {mark}"
    kept = ADAPTERS / adapter.name / "screening.npz"
    if kept.exists():
        found = dict(np.load(kept))
        if found.pop("mark") == mark:
            return found
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.bfloat16),
        str(ADAPTERS / adapter.name),
        autocast_adapter_dtype=False,
    ).eval()
    texts = []
    for number, problem in enumerate(problems):
        prompt = tokenizer(prompt_text(tokenizer, problem), add_special_tokens=False).input_ids
        answer = tokenizer(problem.answer, add_special_tokens=False).input_ids
        texts.append((prompt, [*answer, tokenizer.eos_token_id], number))
    texts.sort(key=lambda text: len(text[0]) + len(text[1]))
    parts: dict[str, list[Numbers]] = {}
    for start in tqdm(range(0, len(texts), BATCH), desc=adapter.name, leave=False):
        for name, values in _positions(model, texts[start : start + BATCH]).items():
            parts.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    np.savez(kept, mark=np.array(mark), **arrays)  # type: ignore[arg-type,unused-ignore]
    return arrays


def best_first(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best tokens of each row and their logits, [n, count] both. Equal ones, frequent
    in bfloat16, are in the order of their ids, the first of which greedy decoding takes.
    """
    tokens = logits.topk(count, -1).indices.sort(-1).values
    values, order = logits.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
    return values, tokens.gather(-1, order)


@torch.inference_mode()
def _positions(
    model: PeftModel, texts: list[tuple[list[int], list[int], int]]
) -> dict[str, Numbers]:
    ids = torch.zeros(len(texts), max(len(p) + len(a) for p, a, _ in texts), dtype=torch.int64)
    for row, (prompt, answer, _) in enumerate(texts):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    causal_lm = model.get_base_model()
    expert = causal_lm.model(input_ids=ids, use_cache=False).last_hidden_state
    with model.disable_adapter():
        amateur = causal_lm.model(input_ids=ids, use_cache=False).last_hidden_state
    found: dict[str, list[Tensor]] = {}
    for row, (prompt, answer, number) in enumerate(texts):
        at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        e = causal_lm.lm_head(expert[row, at]).float().log_softmax(-1)
        a = causal_lm.lm_head(amateur[row, at]).float().log_softmax(-1)
        middle = torch.logaddexp(e, a) - np.log(2)
        divergence = (e.exp() * (e - middle) + a.exp() * (a - middle)).sum(-1) / 2 / np.log(2)
        top, tokens = best_first(e, TOP)
        is_gold = tokens == torch.tensor(answer)[:, None]
        values = {
            "prob": torch.full((len(answer),), number),
            "e": top,
            "a": a.gather(1, tokens),
            "gold": torch.where(is_gold.any(-1), is_gold.int().argmax(-1), -1),
            "abest": a.amax(-1),
            "jsd": divergence,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def _above(values: Numbers, least: float) -> Numbers:
    return np.where(values >= least, values, 0.0)


RULES: dict[str, Rule] = {
    "-0.5: towards the amateur": lambda at: -0.5,
    "-0.25": lambda at: -0.25,
    "0.25": lambda at: 0.25,
    "0.5": lambda at: 0.5,
    "1": lambda at: 1.0,
    "JSD over the vocabulary (AdaCAD)": lambda at: at.everywhere,
    "half of that": lambda at: at.everywhere / 2,
    "the expert's uncertainty U": lambda at: at.uncertainty,
    "1 - U": lambda at: 1 - at.uncertainty,
    "D": lambda at: at.divergence,
    "1 - D": lambda at: 1 - at.divergence,
    "amateur's mass m on candidates": lambda at: at.mass,
    "m D": lambda at: at.mass * at.divergence,
    "r": lambda at: at.reach,
    "r D: adaptive, beta_max 1": lambda at: at.reach * at.divergence,
    "2 r D": lambda at: 2 * at.reach * at.divergence,
    "4 r D": lambda at: 4 * at.reach * at.divergence,
    "r D, 0 where it is below 0.01": lambda at: _above(at.reach * at.divergence, 0.01),
    "r D^2": lambda at: at.reach * at.divergence**2,
    "r (1 - D)": lambda at: at.reach * (1 - at.divergence),
}


def ties(found: dict[str, Numbers], alpha: float) -> list[int]:
    """At how many steps the expert's two best tokens are equal, and how many have a choice."""
    choice = Position(found, alpha).valid.sum(1) > 1
    return [int((found["e"][:, 0] == found["e"][:, 1]).sum()), int(choice.sum())]


def screen(count: int) -> dict[str, Any]:
    """What all rules are worth.

    Returns:
        ``adapters``: for each adapter and rule the problems that only the rule solves, and only
        greedy; ``p`` of each rule, for all adapters together; ``ties`` of their steps.
    """
    adapters = [Adapter(task, *strength) for strength in STRENGTHS for task in BENCHMARKS]
    found = {
        adapter.name: collect(adapter, count)
        for adapter in tqdm(adapters, desc="adapters", unit="adapter")
    }
    tasks = {adapter.name: adapter.task for adapter in adapters}
    learned = judge(found, tasks.__getitem__, ALPHA)
    results: dict[str, dict[str, list[int]]] = {}
    # A task's adapters answer the same problems, so what is tested is each problem's sum over them.
    sums: dict[str, dict[str, Numbers]] = {}
    for name, positions in found.items():
        greedy = solved(positions, lambda at: 0.0, ALPHA)
        judged = {rule: solved(positions, beta, ALPHA) for rule, beta in RULES.items()}
        judged |= {way: right[name] for way, right in learned.items()}
        results[name] = {
            rule: [int((mine & ~greedy).sum()), int((greedy & ~mine).sum())]
            for rule, mine in judged.items()
        }
        for rule, mine in judged.items():
            by_task = sums.setdefault(rule, {})
            by_task[tasks[name]] = by_task.get(tasks[name], 0) + (mine.astype(float) - greedy)
    p = {
        rule: sign_flip(np.concatenate(list(by_task.values())), seed=0)
        for rule, by_task in sums.items()
    }
    equal = np.sum([ties(positions, ALPHA) for positions in found.values()], axis=0)
    return {"adapters": results, "p": p, "ties": equal.tolist()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Judge rules for beta on dev, without decoding.")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=MEASURED / SCREENING)
    arguments = parser.parse_args()
    data = {"alpha": ALPHA, "problems": arguments.problems, **screen(arguments.problems)}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(data, indent=1) + "\n")
    results = data["adapters"].values()
    for name in next(iter(results)):
        better, worse = np.sum([rules[name] for rules in results], axis=0)
        print(f"{name:36} only it {better:4}, only greedy {worse:4}")


if __name__ == "__main__":
    main()
