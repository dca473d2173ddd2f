# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold explain`` from its options to its page."""

import argparse
import asyncio
import os
from pathlib import Path

from rich.console import Console

from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.explain import page, terminal
from vllm_cold.tools.explain.explain_prompts import read_questions
from vllm_cold.tools.explain.explain_source import explain
from vllm_cold.tools.models import read_models


def run(options: argparse.Namespace) -> int:
    """Explain; return the exit status."""
    if options.max_tokens < 1:
        raise ToolError(f"--max-tokens={options.max_tokens}: must be >= 1")
    if options.url is None and options.gpu_memory_utilization is None:  # which it would win over
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB: a few prompts
    # A prompt with 32 amateurs has 33 streams.
    models = read_models(options, enforce_eager=True, max_num_seqs=64)
    questions = read_questions(options, models)
    path: Path = options.html
    # Before an engine is started.
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ToolError(f"--html={path}: cannot be written; name a file in a folder that is there")
    with models.open() as server:
        report = asyncio.run(explain(server, questions, options.max_tokens))
    path.write_text(page.render(report), encoding="utf-8")
    console = Console(highlight=False)
    terminal.show(console, report)
    console.print(f"page: {path}", markup=False, soft_wrap=True)
    return 0
