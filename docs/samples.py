# SPDX-License-Identifier: Apache-2.0
"""What the commands show, from runs with a real model: docs/samples/*.json.

As a hook of mkdocs it puts samples/explain.html into the site, made anew by the code that the
command uses; ``pictures`` draws what ``tune`` printed. ``python -m docs.samples`` records the runs
again, in minutes, with SmolLM2-135M-Instruct: what is in the files is what the commands made, but
for the folders' names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from vllm_cold.tools.example.files import FILES
from vllm_cold.tools.explain import page as explain_page
from vllm_cold.tools.explain.record import Report

FOLDER = Path(__file__).with_name("samples")
WIDTH = 100  # of a terminal
DIGITS = 7  # of numbers in the files: more than a page shows
_COMPACT: dict[str, Any] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}


def explain() -> str:
    """The page of ``vllm-cold explain``."""
    return explain_page.render(Report.model_validate_json((FOLDER / "explain.json").read_bytes()))


PAGES: dict[str, Callable[[], str]] = {"explain": explain}


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, f"samples/{name}.html", content=make()))
    return files


def record(names: Sequence[str]) -> None:
    """Run the commands, and keep what they make."""
    from examples.demo import quiet
    from examples.smollm2 import model_path

    quiet()
    model = str(model_path())
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            text = json.dumps(_rounded(_RUNS[name](model, Path(folder))), **_COMPACT)
        for path in (model, Path(model).name):
            text = text.replace(path, "SmolLM2-135M-Instruct")
        text = text.replace(f"{folder}/", "")
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _explain(model: str, work: Path) -> Any:
    # A text that answers, as README has it, and one that has nothing to do with the question.
    chats = (
        ("Text: The shop opens at 11 o'clock.", "When does the shop open?"),
        (
            "Text: The director of the Salt Museum is Nadia Okoro.",
            "What is the capital of Norway?",
        ),
    )
    rows = ({"messages": [{"role": "user", "content": text} for text in chat]} for chat in chats)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (work / "prompts.jsonl").write_text(lines, encoding="utf-8")
    with mock.patch.object(explain_page, "render", wraps=explain_page.render) as render:
        _run("explain", "--model", model, "--prompts", work / "prompts.jsonl", "--without", "0",
             "--preset", "cad", "--max-tokens", "20", "--dtype", "float32",
             "--max-model-len", "1024", "--html", work / "explain.html")  # fmt: skip
    return render.call_args.args[0].model_dump(mode="json")


def _tune(model: str, work: Path) -> str:
    """What it prints of the problems of ``vllm-cold example``."""
    (work / "problems.jsonl").write_bytes(FILES["problems.jsonl"][1]())
    command = [
        *(Path(sys.executable).with_name("vllm-cold"), "tune", "problems.jsonl", "--model", model),
        *("--enforce-eager", "--preset", "cad", "--match", "contains", "--max-tokens", "32"),
    ]
    screen = {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        command, cwd=work, env=os.environ | screen, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


_RUNS = {"explain": _explain, "tune": _tune}


def _run(*arguments: Any) -> None:
    from vllm_cold.tools.main import main

    if status := main([str(argument) for argument in arguments]):
        raise SystemExit(status)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    record(sys.argv[1:] or list(_RUNS))
