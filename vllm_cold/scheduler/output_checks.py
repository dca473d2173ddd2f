# SPDX-License-Identifier: Apache-2.0
"""Whether what came back of a step may be given to a client. Imports no vLLM."""

from collections.abc import Sequence

from vllm_cold.ops.interface import NOT_FINITE, OUT_OF_RANGE
from vllm_cold.scheduler.lockstep import Request
from vllm_cold.wire.step_stats import ENDS, OTHER_DRAFTS, RULE_FAILED, RowStats

NOT_SCORED = (
    "vllm-cold: a token was sampled from rows that nobody scored; the result would be wrong. "
    "Please report this with the engine's log."
)
NOT_THE_SAME_DRAFTS = (
    "vllm-cold: the streams of this request verified different drafts; the result would be wrong. "
    "Switch speculative decoding off, and please report this with the engine's log."
)
NOT_EXPLAINED = (
    "vllm-cold: a token of this request came without the explanation that cold_explain asks for. "
    "Please report this with the engine's log; without cold_explain the request is answered."
)
RULE_HAS_NO_WEIGHTS = (
    "vllm-cold: the rule of this request failed, or gave weights or scores that are no numbers; "
    "the engine's log has the rule's error."
)
NOT_CHARGED = (
    "vllm-cold: a token of this request came without what it costs, so its rule cannot limit the "
    "answer. Please report this with the engine's log."
)
# No error: an answer that its rule lets go on by no token ends so.
ENDED_BY_RULE = "the rule allows no further token"


def problem(
    figures: Sequence[RowStats],
    num_tokens: int,
    num_drafts: int,
    amateurs: int,
    explains: bool = False,
    charges: bool = False,
) -> str | None:
    """Tell why a group's tokens must not be given to its client; None if they may.

    Args:
        figures: What a worker reports of the group, for each row that was scored.
        num_tokens: How many tokens the step gave.
        num_drafts: How many drafts it verified.
        amateurs: Those that were in the step, in bits as ``RowStats.present``.
        explains: Whether the client asks for explanations.
        charges: Whether the group's rule charges for tokens.
    """
    if len(figures) != 1 + num_drafts or any(row.present != amateurs for row in figures):
        return NOT_SCORED
    wrong = {row.nonfinite for row in figures[:num_tokens]} - {0}
    if OTHER_DRAFTS in wrong:
        return NOT_THE_SAME_DRAFTS
    if RULE_FAILED in wrong:
        return RULE_HAS_NO_WEIGHTS
    if wrong == {ENDS}:
        return ENDED_BY_RULE
    if wrong:
        return NOT_SCORED if OUT_OF_RANGE in wrong else NOT_FINITE
    if explains and any(row.explained is None for row in figures[:num_tokens]):
        return NOT_EXPLAINED
    if charges and any(row.charges is None for row in figures[:num_tokens]):
        return NOT_CHARGED
    return None


def is_desynchronised(expert: Request, amateur: Request, most: int) -> bool:
    """Whether an amateur has other tokens than its expert, of which a step gives ``most`` at most.

    Of drafts that were right, an expert that stops keeps those up to its end; its amateurs, which
    know no stops, keep all.
    """
    known = expert.num_output_tokens
    if expert.is_finished():
        same_length = amateur.num_output_tokens >= known
    else:
        same_length = amateur.num_output_tokens == known and not amateur.is_finished()
    last = slice(max(known - most, 0), known)
    return not same_length or expert.output_token_ids[last] != amateur.output_token_ids[last]
