# SPDX-License-Identifier: Apache-2.0
"""The weights of each token, for the client: collected, and told with the last one."""

from collections.abc import Callable, Sequence
from typing import Any

from vllm_cold.group import results


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
