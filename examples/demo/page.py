# SPDX-License-Identifier: Apache-2.0
"""What the demo leaves behind: the explain page, and files for the commands that it proposes."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from examples.demo.documents import MAX_TOKENS, PRESET, Case

# The document's message, which the amateur does not see.
WITHOUT = "0"


def write_page(llm: Any, model: str, case: Case, file: Path) -> None:
    """Write the page that ``vllm-cold explain`` makes of a case, by an engine that is there.

    Args:
        llm: A ``vllm.LLM``.
        model: Its model's name.
        case: What is explained.
        file: Where to.
    """
    from vllm_cold import Amateur, ColdParams
    from vllm_cold.settings.sources import Messages
    from vllm_cold.tools.explain import page
    from vllm_cold.tools.explain.account import LISTED, make_answer, make_report
    from vllm_cold.tools.explain.explain_prompts import make_question

    question = make_question(
        Messages(case.messages),
        {"cold_preset": PRESET, "cold_without": WITHOUT},
        True,
        None,
        model,
    )
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "explain": LISTED}
    params = [
        ColdParams.preset(
            PRESET, amateur=Amateur(prompt=case.messages[1:], weight=weight), **options
        )
        for weight in (None, 0.0)
    ]
    outputs = llm.chat([case.messages] * 2, params, use_tqdm=False)
    cold, greedy = (
        make_answer(
            question,
            alone,
            one.outputs[0].text,
            {
                "token_ids": one.outputs[0].token_ids,
                "finish_reason": one.outputs[0].finish_reason,
                "prompt_token_ids": one.prompt_token_ids,
                "kv_transfer_params": one.kv_transfer_params,
            },
        )
        for alone, one in zip((False, True), outputs, strict=True)
    )
    about = {"title": model, "base": model, "about": "vLLM in one process"}
    source: Any = SimpleNamespace(**about, expert=None)
    report = make_report(source, [question], [(cold, greedy)])
    file.write_text(page.render(report), encoding="utf-8")


def write_prompts(cases: Sequence[Case], file: Path) -> None:
    """Write the cases as ``vllm-cold explain`` takes them."""
    lines = (json.dumps({"messages": case.messages}, ensure_ascii=False) for case in cases)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_request(case: Case, file: Path) -> None:
    """Write a case as a server takes it."""
    request = {
        "messages": case.messages,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "vllm_xargs": {"cold_preset": PRESET, "cold_without": WITHOUT},
    }
    file.write_text(json.dumps(request, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def commands(model: str, prompts: Path, request: Path) -> list[tuple[str, str]]:
    """What to type next, each with what it does; in short lines for a shell.

    Args:
        model: The model's folder.
        prompts: What ``write_prompts`` wrote.
        request: What ``write_request`` wrote.
    """
    folder = Path(sys.executable).parent
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    explain, vllm, model, data = map(
        shlex.quote,
        (os.fspath(folder / "vllm-cold"), os.fspath(folder / "vllm"), model, f"@{request}"),
    )
    page = shlex.quote(os.fspath(prompts.with_name("yours.html")))
    return [
        (
            f"a page of your own documents: change {prompts}, then",
            f"{explain} explain --prompts {shlex.quote(os.fspath(prompts))} \\\n"
            f"    --model {model} \\\n"
            f"    --preset {PRESET} --without {WITHOUT} --max-tokens {MAX_TOKENS} --html {page}",
        ),
        (
            "a server that answers so when asked to",
            "VLLM_CPU_KVCACHE_SPACE=1 \\\n"
            f"    {vllm} serve {model} \\\n"
            "    --sampler cold --enforce-eager --max-model-len 1024",
        ),
        (
            "that question to the server, from another terminal",
            "curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
            f"    --data {data}",
        ),
    ]
