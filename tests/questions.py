# SPDX-License-Identifier: Apache-2.0
"""Prompts for the tools, as their commands would make them of options and rows."""

from collections.abc import Sequence
from typing import Any

from vllm_cold.settings.amateurs import Messages, Text
from vllm_cold.settings.table import PREFIX, ColdSettings
from vllm_cold.tools.contrast_args import Content
from vllm_cold.tools.explain.explain_prompts import Question, make_question

Prompt = str | tuple[tuple[str, str], ...] | Content


def content(prompt: Prompt) -> Content:
    """What an expert reads: a text, or messages of roles and contents."""
    if isinstance(prompt, str):
        return Text(prompt)
    if isinstance(prompt, tuple):
        return Messages([{"role": role, "content": text} for role, text in prompt])
    return prompt


def questions(
    prompts: Sequence[Prompt],
    settings: ColdSettings | None = None,
    chat: bool = False,
    **contrast: Any,
) -> list[Question]:
    """Prompts with vllm-cold's settings and ``cold_*`` keys without their prefix; no amateur is
    taken for the expert.
    """
    settings = {} if settings is None else settings.as_dict()
    args = {PREFIX + name: value for name, value in {**settings, **contrast}.items()}
    return [make_question(content(prompt), args, chat, "", "") for prompt in prompts]
