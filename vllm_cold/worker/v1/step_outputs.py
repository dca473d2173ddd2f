# SPDX-License-Identifier: Apache-2.0
"""What a step of the V1 runner returns: each amateur's token is its expert's, and the figures of
the groups leave with the output.
"""

from typing import Any

from vllm_cold.compat.patching import Original
from vllm_cold.wire import worker_output


def wrap_sampler_forward(
    original: Original, self: Any, logits: Any, sampling_metadata: Any, *args: Any, **kwargs: Any
) -> Any:
    """Give each amateur the token that was sampled from its expert's row."""
    output = original(self, logits, sampling_metadata, *args, **kwargs)
    for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
        if hasattr(processor, "tell_amateurs"):  # ours
            processor.tell_amateurs(output.sampled_token_ids)
    return output


def wrap_output_init(original: Original, self: Any, *args: Any, **kwargs: Any) -> None:
    """Have a new ``ModelRunnerOutput`` take the figures of this thread's step along."""
    original(self, *args, **kwargs)
    worker_output.attach(self)
