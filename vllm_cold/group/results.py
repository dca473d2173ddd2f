# SPDX-License-Identifier: Apache-2.0
"""Whether what came back of a step may be given to a client. Needs no vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_cold.group.lockstep import Tokens
from vllm_cold.group.step_stats import OTHER_DRAFTS, RULE_FAILED, RowStats
from vllm_cold.ops.interface import NOT_FINITE, OUT_OF_RANGE

NOT_SCORED = (
    "vllm-cold: a token was sampled from rows that nobody scored; the result would be wrong. "
    "Please report this with the engine's log."
)
NOT_THE_SAME_DRAFTS = (
    "vllm-cold: the streams of this request verified different drafts; the result would be wrong. "
    "Switch speculative decoding off, and please report this with the engine's log."
)
RULE_HAS_NO_WEIGHTS = (
    "vllm-cold: the rule of this request failed, or gave weights that are no numbers; the engine's "
    "log has the rule's error."
)
_OURS = "cold"  # in kv_transfer_params


def problem(
    figures: Sequence[RowStats], num_tokens: int, num_drafts: int, amateurs: int
) -> str | None:
    """Why a group's tokens must not be given; None if they may.

    Args:
        figures: What a worker found of the group, for each row that was scored.
        num_tokens: How many tokens the step gave.
        num_drafts: How many drafts it verified.
        amateurs: Those that were in the step, in bits as ``RowStats.present``.
    """
    if len(figures) != 1 + num_drafts or any(each.present != amateurs for each in figures):
        return NOT_SCORED
    wrong = {each.nonfinite for each in figures[:num_tokens]} - {0}
    if OTHER_DRAFTS in wrong:
        return NOT_THE_SAME_DRAFTS
    if RULE_FAILED in wrong:
        return RULE_HAS_NO_WEIGHTS
    if wrong:
        return NOT_SCORED if OUT_OF_RANGE in wrong else NOT_FINITE
    return None


def with_ours(transfer: Mapping[str, Any] | None, **ours: Any) -> dict[str, Any]:
    """What goes to the client with its tokens, and with what is ours.

    Args:
        transfer: vLLM's ``kv_transfer_params``, the one field of an output for extensions, in which
            a KV connector may have keys of its own.
        ours: ``steps``: what the client is told of each token, as ``Told`` gives it. ``amateurs``:
            their own ``kv_transfer_params``, from an engine that has prefilled a request; whoever
            hands the request on to an engine that decodes, hands on all of it.
    """
    before = transfer or {}
    return {**before, _OURS: {**before.get(_OURS, {}), **ours}}


def of_amateur(transfer: Any, index: int) -> dict[str, Any] | None:
    """An amateur's own ``kv_transfer_params``, from its expert's: where another engine has its KV,
    or that another one will want it; None for an amateur whose KV nobody has or wants.
    """
    if not isinstance(transfer, Mapping):
        return None
    ours = transfer.get(_OURS)
    amateurs = ours.get("amateurs") if isinstance(ours, Mapping) else None
    if isinstance(amateurs, Sequence):
        own = amateurs[index] if index < len(amateurs) else None
        return dict(own) if isinstance(own, Mapping) else None
    if not transfer.get("do_remote_decode"):
        return None
    # A later turn may say where its expert's KV is, which is not the amateur's.
    return {name: value for name, value in transfer.items() if not name.startswith("remote_")}


def without_steps(transfer: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is left without ``steps`` of ``with_ours``; None if nothing is."""
    ours = {name: value for name, value in transfer[_OURS].items() if name != "steps"}
    others = {name: value for name, value in transfer.items() if name != _OURS}
    return ({**others, _OURS: ours} if ours else others) or None


def steps_in(transfer: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """``steps`` of ``with_ours``; None if there are none."""
    ours = (transfer or {}).get(_OURS)
    return None if ours is None else ours.get("steps")


def is_desynchronised(expert: Tokens, amateur: Tokens, most: int) -> bool:
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
