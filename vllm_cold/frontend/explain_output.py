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
    if kv_transfer_params is None and finish_reason is None:  # of most requests, in each step
        rest = pooling_output, None, stop_reason, None, *args
        return original(self, new_token_ids, *rest, **kwargs)
    told, transfer = transfer_params.told_in(kv_transfer_params), kv_transfer_params
    if told:
        transfer = transfer_params.without_told(transfer)
    if (new := told.get("steps")) is not None:
        if not hasattr(self, "cold_steps"):
            self.cold_steps, self.cold_texts = [], {}
        new = new[: len(new_token_ids)]
        # With each output: all texts of an answer at its end would keep other requests waiting.
        _add_texts(self.logprobs_processor.tokenizer, new, self.cold_texts)
        self.cold_steps += new
    if "budget" in told:
        self.cold_budget = told["budget"]
    if finish_reason is not None:
        for name in ("steps", "budget"):
            if hasattr(self, "cold_" + name):
                transfer = transfer_params.with_ours(transfer, **{name: _of_all(self, name)})
    rest = pooling_output, finish_reason, stop_reason, transfer, *args
    return original(self, new_token_ids, *rest, **kwargs)


def _of_all(state: Any, name: str) -> Any:
    """Return what is told of a request; a list of its answers' where it has several, whose outputs
    are one.
    """
    value, parent = getattr(state, "cold_" + name), state.parent_req
    if parent is None:
        return value
    if not hasattr(parent, "cold_" + name):
        setattr(parent, "cold_" + name, [None if name == "budget" else [] for _ in range(parent.n)])
    of_all = getattr(parent, "cold_" + name)
    of_all[state.request_index] = value
    return list(of_all)


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
