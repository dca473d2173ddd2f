# SPDX-License-Identifier: Apache-2.0
"""Tries a rule that others have written on made-up groups, before an engine serves it.

What it returns of a group must be the same where the group is alone, and where groups at another
step are in its batch.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from vllm_cold.ops.interface import Groups
from vllm_cold.rules.check import call
from vllm_cold.rules.rule import LARGEST, Choice, Rule, Scores, by_name
from vllm_cold.rules.statistics import Statistics

_STEEP = (1.0, 0.1, 3.0, 9.0)  # how steep the rows of logits are; the first allows one token
_ROWS, _VOCABULARY = len(_STEEP), 40
_LOG_ALPHAS, _CAPS = (math.log(0.1), -math.inf, 0.0), (5, 1, 0)
_TEMPERATURES = 1.0, 0.01, 2.0

_Batch: TypeAlias = dict[str, Tensor]
"""Groups: their rows [G, S], -1 where there is no stream, log_alpha, caps, step and temperature
[G], state [G, S - 1, K], paid [G, S - 1] and the rule's parameters [G, P].
"""


def try_out(rule: Rule) -> None:
    """Raise ValueError for what a rule must not do or return, or what it raises itself. Other
    instances of its class are called, so that the rule itself keeps nothing of the trial.
    """
    # An engine may load it amid a step, for the first request that names it.
    with torch.inference_mode(False), torch.no_grad():
        _try_with_values(type(rule)())
        _try_without_values(type(rule)())


def _try_with_values(rule: Rule) -> None:
    """Call a rule for groups at two steps, all in one batch and each alone."""
    first = _first_step(rule)
    rows, before = first["rows"], _call(rule, first)
    second = first | {"rows": torch.where(rows < 0, rows, (rows + 1) % _ROWS)}
    second |= {"step": first["step"] + 1, "temperature": first["temperature"].flip(0)}
    if before.state is not None:
        second["state"] = before.state
    if isinstance(before, Scores) and before.costs is not None:
        token = before.scores.argmax(-1)[:, None, None].expand(*before.costs.shape[:2], 1)
        second["paid"] = before.costs.gather(-1, token)[..., 0]
    both = {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}
    together = _call(rule, both)
    _check_values(together, both["rows"])
    if before.done is not None:
        ended = before.done & (rows[:, 1:] >= 0)
        if isinstance(together, Choice):
            has_effect = bool((together.weights[len(rows) :][ended] != 0).any())
        else:
            without = second["rows"].clone()
            without[:, 1:][ended] = -1
            after, scores = _call(rule, second | {"rows": without}), together.scores[len(rows) :]
            has_effect = not torch.allclose(after[0], scores, rtol=1e-5, atol=1e-5)
        if has_effect:
            raise ValueError(
                "an amateur has a weight other than 0, or an effect on the scores, at the step "
                "after the one where it was done; the engine may have ended it by then"
            )
    for i in range(len(both["rows"])):
        group = _alone(both, i)
        for among, alone in zip(together, _call(rule, group), strict=True):
            if among is None or alone is None:
                continue
            x, y = among[i, : alone.shape[1]].float(), alone[0].float()
            # Of a group's numbers the smaller ones are as exact as the largest.
            size = max(1.0, float(x.nan_to_num(0.0, 0.0, 0.0).abs().max()))
            if not torch.allclose(x, y, rtol=1e-5, atol=1e-5 * size, equal_nan=True):
                raise ValueError(
                    "what it returns of a group depends on the other groups, on how many amateurs "
                    "they have, or on earlier calls; each group must have its own rows' alone, and "
                    "what it keeps must be in `state`"
                )


def _check_values(returned: Choice | Scores, rows: Tensor) -> None:
    """Raise ValueError for what is not finite and must be."""
    present = rows[:, 1:] >= 0
    if isinstance(returned, Choice):
        parts = {"weights": returned.weights[present]}
    else:
        scores = returned.scores
        parts = {"scores": scores.masked_fill(scores == -math.inf, 0.0)}
        if returned.costs is not None and returned.left is not None:
            parts |= {"costs": returned.costs[present], "left": returned.left[present]}
    for name, part in parts.items():
        if not part.isfinite().all():
            raise ValueError(
                f"it returns {name} that are not finite; keep them finite for all that its "
                "parameters allow, also where a stream allows one token alone or equals another "
                "one, or allow less"
            )


def _try_without_values(rule: Rule) -> None:
    """Call a rule as on a device that takes no tensors of the host, and whose values would have to
    be waited for.
    """
    groups = _first_step(rule)
    several_and_one = groups, _alone(groups, 0)
    try:
        with FakeTensorMode(), _Watch():
            for batch in several_and_one:
                _call(rule, batch, lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"))
    except Exception as error:  # with values it raises nothing
        raise ValueError(
            "it asks for a value of a tensor (item(), if, a shape that depends on one, a list as "
            "an index, or a copy from or to the host), for which a device would be waited for "
            f"({type(error).__name__}: {error})"
        ) from error


def _first_step(rule: Rule) -> _Batch:
    """Make up groups at their first step: of each two rows as expert and amateur, with each
    parameter's default, least and most.
    """
    declared = rule.parameters.items()
    usual = {name: parameter.least() for name, parameter in declared}
    least = {name: max(parameter.low, -LARGEST) for name, parameter in declared}
    most = {name: min(parameter.high, LARGEST) for name, parameter in declared}
    settings = [usual, least, most]
    settings += [usual | {name: end[name]} for name in usual for end in (least, most)]
    pairs = torch.cartesian_prod(torch.arange(_ROWS), torch.arange(_ROWS))
    amateurs = (pairs[:, 1:] + torch.arange(rule.amateurs or 3)) % _ROWS
    rows = torch.cat([pairs[:, :1], amateurs], 1).repeat(len(settings), 1)
    groups = torch.arange(len(rows))
    if not rule.amateurs:  # any number: of the groups in turn one, two and three
        rows[torch.arange(rows.shape[1]) > 1 + groups.unsqueeze(1) % 3] = -1
    parameters = torch.tensor([[*values.values()] for values in settings])
    return {
        "rows": rows,
        "log_alpha": torch.tensor(_LOG_ALPHAS)[groups % 3],
        "caps": torch.tensor(_CAPS)[groups % 3],
        "step": torch.zeros_like(groups),
        "state": torch.zeros(len(rows), rows.shape[1] - 1, rule.state),
        "paid": torch.zeros(len(rows), rows.shape[1] - 1),
        "temperature": torch.tensor(_TEMPERATURES)[groups % 3],
        "parameters": parameters.repeat_interleave(len(pairs), 0),
    }


def _alone(batch: _Batch, i: int) -> _Batch:
    """Return group ``i`` as a batch, with as many streams as it has."""
    group = {name: tensor[i : i + 1] for name, tensor in batch.items()}
    streams = int((group["rows"] >= 0).sum())
    of_amateurs = {name: group[name][:, : streams - 1] for name in ("state", "paid")}
    return group | {"rows": group["rows"][:, :streams], **of_amateurs}


def _call(
    rule: Rule, batch: _Batch, copy: Callable[[Tensor], Tensor] = Tensor.clone
) -> Choice | Scores:
    """Return what the rule returns of a batch; ``copy`` makes the tensors that it gets."""
    numbers = torch.arange(_ROWS * _VOCABULARY).view(_ROWS, _VOCABULARY)
    logits = (numbers * 0.7).sin() * torch.tensor(_STEEP).unsqueeze(1)
    logits[:, 3::7] = logits[0, 1:] = -math.inf
    got = {name: copy(tensor) for name, tensor in {"logits": logits, **batch}.items()}
    fixed = torch.zeros_like(got["rows"][:, 1:], dtype=torch.float32)
    groups = Groups(got["rows"], fixed, got["log_alpha"], got["caps"], max(_CAPS))
    of_groups = (got[name] for name in ("step", "state", "paid", "temperature"))
    values = [
        column.unsqueeze(-1).expand(fixed.shape) if parameter.each else column.unsqueeze(-1)
        for column, parameter in zip(
            got["parameters"].unbind(1), rule.parameters.values(), strict=True
        )
    ]
    return call(
        rule, Statistics(got["logits"], groups, *of_groups), by_name(rule.parameters, values)
    )


class _Watch(TorchFunctionMode):
    """Raises RuntimeError for what tensors without values let pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        devices = {x.device for x in tree_leaves((args, output)) if isinstance(x, Tensor)}
        from_host = name in ("tensor", "as_tensor", "asarray", "new_tensor") and output.is_meta
        is_copy = name in ("cpu", "to", "copy_", "__getitem__", "__setitem__") and len(devices) > 1
        indices = tree_leaves(args[1:2])
        has_mask = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices)
        is_masked = name == "__setitem__" and has_mask and isinstance(args[2], Tensor)
        if name == "__repr__" or from_host or is_copy or is_masked:
            raise RuntimeError(f"{name} of a tensor")
        return output
