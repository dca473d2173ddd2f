# SPDX-License-Identifier: Apache-2.0
"""The lm-eval recipe exactly as a reader runs it: the real model and the shipped adapter."""

import os
import subprocess
from pathlib import Path

import pytest

from examples.tasks import SORTING, Problem
from tests.docs.blocks import ROOT, block
from tests.recipes.page import PAGE, offline, run, words
from tests.recipes.results import accuracy, samples
from tests.server.conftest import serve

pytestmark = [pytest.mark.server, pytest.mark.full, pytest.mark.timeout(900)]


def test_lm_eval_tells_the_three_apart(tmp_path: Path, record_property: object) -> None:
    """The base model solves none, the adapter some; lm-eval's score is the task's own."""
    os.symlink(ROOT / "examples", tmp_path / "examples")
    setup = f"{block('docs/explain.md', 'setup')}\n{block(PAGE, 'setup')}"
    printed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{setup}\nenv -0"],
        cwd=tmp_path,
        env=offline({}),
        capture_output=True,
        check=True,
    ).stdout.decode()
    variables = dict(line.split("=", 1) for line in printed.rstrip("\0").split("\0"))
    arguments = [*words(block(PAGE, "server"), variables)[2:], "--enforce-eager"]
    with serve(tmp_path, arguments) as server:
        variables["URL"] = f"http://127.0.0.1:{server.port}"
        run(block(PAGE, "lm-eval"), tmp_path, variables, timeout=800)
    scores, texts = {}, {}
    for name in ("cold", "greedy", "base"):
        folder = tmp_path / "results" / name
        scores[name] = accuracy(folder, "sorting", "exact_match,answer")
        found = samples(folder, "sorting")
        texts[name] = [sample["resps"][0][0] for sample in found]
        for sample in found:
            problem = Problem(**sample["doc"])
            assert sample["exact_match"] == SORTING.score(sample["resps"][0][0], problem)
    assert scores["base"] < scores["greedy"]
    assert scores["base"] < scores["cold"]
    assert texts["cold"] != texts["greedy"]
    line = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    record_property("report", f"lm-eval, sorting, {len(texts['cold'])} problems: {line}")  # type: ignore[operator]
