# SPDX-License-Identifier: Apache-2.0
"""Prompts for ``explain``, as its command would make them of options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_cold.settings.table import PREFIX, ColdSettings
from vllm_cold.tools.contrast import Prompt
from vllm_cold.tools.explain.prompts import Question, Row, ask


def asked(
    prompts: Sequence[Prompt],
    settings: ColdSettings | None = None,
    chat: bool = False,
    **contrast: Any,
) -> list[Question]:
    """Prompts with vllm-cold's settings and ``cold_*`` keys without their prefix."""
    settings = {} if settings is None else settings.as_dict()
    args = {PREFIX + name: value for name, value in {**settings, **contrast}.items()}
    return [ask(Row(prompt, {}), args, chat) for prompt in prompts]
