# SPDX-License-Identifier: Apache-2.0
"""Takes a request out of a step that vLLM has already planned.

Touched in vLLM: ``SchedulerOutput`` and its columns (see ``scheduler``).
"""

from vllm.v1.core.sched.output import SchedulerOutput


def strip(output: SchedulerOutput, request_id: str) -> bool:
    """Remove a request from the step; True if the step would have introduced it to the workers."""
    num_tokens = output.num_scheduled_tokens.pop(request_id, 0)
    if not num_tokens:
        return False
    output.total_num_scheduled_tokens -= num_tokens
    output.scheduled_spec_decode_tokens.pop(request_id, None)
    new = [r for r in output.scheduled_new_reqs if r.req_id != request_id]
    if len(new) < len(output.scheduled_new_reqs):
        output.scheduled_new_reqs[:] = new
        return True
    cached = output.scheduled_cached_reqs
    index = cached.req_ids.index(request_id)
    for column in (
        cached.req_ids,
        cached.new_token_ids,
        cached.new_block_ids,
        cached.num_computed_tokens,
        cached.num_output_tokens,
    ):
        if column:  # new_token_ids is filled under pipeline parallelism only
            del column[index]
    cached.resumed_req_ids.discard(request_id)
    cached.all_token_ids.pop(request_id, None)
    return False
