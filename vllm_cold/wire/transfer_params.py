# SPDX-License-Identifier: Apache-2.0
"""What travels in ``kv_transfer_params``, vLLM's one field of an output for extensions: what a
client is told of its tokens, and what an engine needs that goes on with a request. Imports no vLLM.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_OURS = "cold"  # in kv_transfer_params


def with_ours(transfer: Mapping[str, Any] | None, **ours: Any) -> dict[str, Any]:
    """Return what goes to the client with its tokens, with what is ours.

    Args:
        transfer: vLLM's ``kv_transfer_params``, the one field of an output for extensions, in which
            a KV connector may have keys of its own.
        ours: ``steps``: what the client is told of each token, as ``StepExplainer`` makes it.
            ``budget``: what the tokens so far have cost, as ``Budget`` says it.
            ``amateurs``: their own ``kv_transfer_params``, from an engine that has prefilled a
            request; whoever hands the request on to an engine that decodes, hands on all of it.
    """
    before = transfer or {}
    return {**before, _OURS: {**before.get(_OURS, {}), **ours}}


def of_amateur(transfer: Any, index: int) -> dict[str, Any] | None:
    """Return an amateur's own ``kv_transfer_params``, from its expert's: where another engine has
    its KV, or that another one will want it; None for an amateur whose KV nobody has or wants.
    """
    if not isinstance(transfer, Mapping):
        return None
    ours = transfer.get(_OURS)
    amateurs = ours.get("amateurs") if isinstance(ours, Mapping) else None
    if isinstance(amateurs, Sequence):
        params = amateurs[index] if index < len(amateurs) else None
        return dict(params) if isinstance(params, Mapping) else None
    if not transfer.get("do_remote_decode"):
        return None
    # A later turn may say where its expert's KV is, which is not the amateur's.
    return {name: value for name, value in transfer.items() if not name.startswith("remote_")}


_TOLD = ("steps", "budget")


def told_in(transfer: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``steps`` and ``budget`` of ``with_ours``, as far as they are there."""
    ours = (transfer or {}).get(_OURS) or {}
    return {name: ours[name] for name in _TOLD if name in ours}


def without_told(transfer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what is left without them; None if nothing is."""
    others = dict(transfer or {})
    ours = {k: value for k, value in (others.pop(_OURS, None) or {}).items() if k not in _TOLD}
    return ({**others, _OURS: ours} if ours else others) or None
