# SPDX-License-Identifier: Apache-2.0
"""Touches vLLM: ``RequestState.make_request_output``, which makes what callers see of an output.

Why: the engine sends the weights of each token once, with the token; a client that asks is told all
of them with the last one. Outputs that are not handed on (``FINAL_ONLY``, ``stream_interval``), and
of those that are merged all but the last, lose what stands beside their tokens. And where a stop
string ends an answer, this is the first to know, and has no tokens behind it any more.
Since: 0.23 to 0.33. Can go: when vLLM has a channel for what plugins say of tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vllm_cold.group import results
from vllm_cold.vllm.patching import PatchPoint


def _make(original: Callable[..., Any]) -> Callable[..., Any]:
    def make_request_output(
        self: Any,
        new_token_ids: Sequence[int],
        pooling_output: Any,
        finish_reason: Any,
        stop_reason: Any,
        kv_transfer_params: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        told = kv_transfer_params
        if (new := results.weights_in(told)) is not None:
            self.cold_weights = getattr(self, "cold_weights", [])
            self.cold_weights += new[: len(new_token_ids)]
            told = results.without_weights(told)
        if finish_reason is not None and hasattr(self, "cold_weights"):
            told = results.with_weights(told, self.cold_weights)
        asked = new_token_ids, pooling_output, finish_reason, stop_reason, told
        return original(self, *asked, *args, **kwargs)

    return make_request_output


_TAKES = "new_token_ids", "pooling_output", "finish_reason", "stop_reason", "kv_transfer_params"
PATCH_POINTS = (
    PatchPoint("vllm.v1.engine.output_processor:RequestState.make_request_output", _make, _TAKES),
)
