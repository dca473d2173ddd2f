# SPDX-License-Identifier: Apache-2.0
"""A folder that looks like the checkout to a recipe, with the tiny model and tiny tasks in it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT
from tests.naive import NaiveCold, pair

ALPHA, BETA = 0.1, 0.5  # of the page
MAX_TOKENS = 128  # of examples/lm_eval/sorting.yaml
PROBLEMS = 4


@pytest.fixture(scope="module")
def variables(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the page's first block sets, for the tiny model; without the server's URL."""
    adapters = tmp_path_factory.mktemp("adapters")
    for name, source in (("sorting", "one"), ("orders", "two")):
        os.symlink(tiny / source, adapters / name)
    return {"MODEL": str(tiny / "model"), "ADAPTERS": str(adapters)}


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False).input_ids  # type: ignore[no-any-return]


def _problems(tiny: Path, naive: NaiveCold) -> list[dict[str, str]]:
    """Problems whose right answers are what the reference for contrastive decoding says, where the
    adapter alone says something else: vllm-cold solves all of them, greedy decoding none. Only such
    as rounding cannot change.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    prompts = [f"w{n} w{n + 100} w{3 * n + 10}" for n in range(10, 34)]
    ids = [chat_ids(tokenizer, prompt) for prompt in prompts]
    cold, plain = (
        naive.generate_many([pair(x, "one", ALPHA, beta, MAX_TOKENS) for x in ids])
        for beta in (BETA, 0.0)
    )
    found = []
    for prompt, c, p in zip(prompts, cold, plain, strict=True):
        text = tokenizer.decode(c.tokens).strip()
        if c.settled() == MAX_TOKENS and text != tokenizer.decode(p.tokens).strip():
            found.append({"prompt": prompt, "answer": text})
    assert len(found) >= PROBLEMS, "too few problems on which vllm-cold and greedy decoding differ"
    return found[:PROBLEMS]


@pytest.fixture(scope="module")
def checkout(tiny: Path, naive: NaiveCold, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder for recipes: the shipped task with other problems."""
    folder = tmp_path_factory.mktemp("checkout")
    tasks = folder / "examples" / "lm_eval"
    tasks.mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "lm_eval" / "sorting.yaml", tasks)
    lines = (json.dumps(problem) + "\n" for problem in _problems(tiny, naive))
    (tasks / "sorting.jsonl").write_text("".join(lines))
    return folder
