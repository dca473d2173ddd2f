# SPDX-License-Identifier: Apache-2.0
"""A chat with images as the dictionary that ``LLM.generate`` takes: token ids, in which an image is
its placeholder, and the decoded images.
"""

from collections.abc import Sequence
from typing import Any

from vllm_cold.errors import ColdError

_SAID = 400  # characters of an error: it may show what was sent


def media_prompt(
    renderer: Any, field: str, messages: Sequence[Any], chat_params: Any, tok_params: Any
) -> dict[str, Any]:
    """A chat as ``{"prompt_token_ids": ..., "multi_modal_data": ...}``; raises ColdError, about
    this field, if the chat template or the model does not take it.
    """
    from jinja2 import TemplateError

    try:
        _, prompt = renderer.render_messages(list(messages), chat_params)
        made = dict(renderer.tokenize_prompt(prompt, tok_params))
    except (TemplateError, ValueError, NotImplementedError) as error:
        said = str(error)[:_SAID] or type(error).__name__
        raise ColdError(field, "messages", f"no prompt can be made of it: {said}") from error
    made.pop("prompt", None)  # vLLM reads the ids, and the text would not have what comes behind
    return made
