# SPDX-License-Identifier: Apache-2.0
"""What the engine tells of each token is collected, and told to the client with the last one."""

from collections.abc import Sequence
from typing import Any

from vllm_cold.compat.patching import Original
from vllm_cold.wire import transfer_params


def wrap_make_request_output(
    original: Original,
    self: Any,
    new_token_ids: Sequence[int],
    pooling_output: Any,
    finish_reason: Any,
    stop_reason: Any,
    kv_transfer_params: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Wrap ``RequestState.make_request_output``."""
    transfer, parent = kv_transfer_params, self.parent_req
    if (new := transfer_params.steps_in(transfer)) is not None:
        if not hasattr(self, "cold_steps"):
            self.cold_steps, self.cold_texts = [], {}
        new = new[: len(new_token_ids)]
        # With each output: all texts of an answer at its end would keep other requests waiting.
        _add_texts(self.logprobs_processor.tokenizer, new, self.cold_texts)
        self.cold_steps += new
        transfer = transfer_params.without_steps(transfer)
    if finish_reason is not None and hasattr(self, "cold_steps"):
        steps = self.cold_steps
        if parent is not None:  # of several answers, whose outputs are one
            parent.cold_steps = getattr(parent, "cold_steps", [[] for _ in range(parent.n)])
            parent.cold_steps[self.request_index] = steps
            steps = parent.cold_steps
        transfer = transfer_params.with_ours(transfer, steps=list(steps))
    rest = pooling_output, finish_reason, stop_reason, transfer, *args
    return original(self, new_token_ids, *rest, **kwargs)


def _add_texts(tokenizer: Any, steps: Sequence[dict[str, Any]], texts: dict[int, str]) -> None:
    """Add each token's text, decoded alone; None where the request is not detokenized, and for
    tokens that the tokenizer lacks, as a model's vocabulary may be padded. ``texts``: the known
    ones, by token.
    """
    if tokenizer is not None:
        from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens

        there = {token for step in steps for token in step["tokens"] if token < len(tokenizer)}
        ids = list(there - texts.keys())
        texts.update(zip(ids, convert_ids_list_to_tokens(tokenizer, ids), strict=True))
    for step in steps:
        step["texts"] = list(map(texts.get, step["tokens"]))
