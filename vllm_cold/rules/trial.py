# SPDX-License-Identifier: Apache-2.0
"""Tries a rule that others have written on made-up groups, before an engine serves it.

All groups get a few tokens in one batch. What the rule returns of a group must be the same where
the group is alone, and where groups at other steps are in its batch.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from vllm_cold.ops.interface import MAX_STREAMS, Groups
from vllm_cold.rules.check import checked
from vllm_cold.rules.rule import LARGEST, Choice, Rule, by_name
from vllm_cold.rules.statistics import Statistics

_ROWS, _VOCABULARY = 67, 40
_CERTAIN = 0  # the row that allows one token
_STEPS = 8
_LOG_ALPHAS, _CAPS = (math.log(0.1), -math.inf, 0.0), (5, 1, 0)
_FOREIGN = 7.0  # in the state of amateurs that a group does not have: others' may be left there

_Batch: TypeAlias = dict[str, Tensor]
"""Groups: their rows [G, S], -1 where there is no stream, log_alpha, caps and step [G], state
[G, S - 1, K] and the rule's parameters [G, P].
"""


def try_out(rule: Rule) -> None:
    """Raise ValueError for what a rule must not do or return. Other instances of its class are
    called, so that the rule itself keeps nothing of the trial.
    """
    # An engine may load it amid a step, for the first request that names it.
    with torch.inference_mode(False), torch.no_grad():
        _try_with_values(type(rule)())
        _try_without_values(type(rule)())


def _try_with_values(rule: Rule) -> None:
    steps = list(_play(rule))
    for batch, choice, done in steps:
        is_wrong = torch.where(done, choice.weights != 0, ~choice.weights.isfinite())
        problem = (
            "it returns weights that are not finite, or a weight after the step where an amateur "
            "was done: {}; keep them finite for all that its parameters allow, also where a stream "
            "allows one token alone or equals another one, or allow less"
        )
        _refuse(rule, batch, is_wrong, problem, choice.weights)
    # Each group alone, where amateurs that were done have ended, and among all at all steps.
    whole = {name: torch.cat([batch[name] for batch, _, _ in steps]) for name in steps[0][0]}
    ended = torch.cat([done for _, _, done in steps])
    together = _call(rule, whole)
    for i in range(len(whole["rows"])):
        group = _alone(whole, i)
        amateurs = group["rows"][:, 1:]
        in_whole = Choice._make(
            None if x is None else x[i : i + 1, : amateurs.shape[1]] for x in together
        )
        amateurs.masked_fill_(ended[i : i + 1, : amateurs.shape[1]], -1)
        _refuse_difference(rule, group, in_whole, _call(rule, group))


def _try_without_values(rule: Rule) -> None:
    """Call a rule as on a device that takes no tensors of the host, and whose values would have to
    be waited for.
    """
    batch, device = _first_step(rule), FakeTensorMode()
    sizes = (batch["rows"] >= 0).sum(1).tolist()
    for part in (batch, *(_alone(batch, sizes.index(size)) for size in {*sizes})):
        with device, _Watch():
            _call(rule, part, lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"))


def _play(rule: Rule) -> Iterator[tuple[_Batch, Choice, Tensor]]:
    """Yield, of each step of made-up groups, they themselves, what the rule returns of them, and
    [G, S - 1] which amateurs were done before.
    """
    groups = _first_step(rule)
    rows, state = groups["rows"], groups["state"]
    is_amateur = _has_amateur(groups)
    done = torch.zeros_like(is_amateur)
    for step in range(_STEPS):
        moved = torch.where(rows > _CERTAIN, 1 + (rows + 7 * step) % (_ROWS - 1), rows)
        batch = {**groups, "rows": moved, "step": groups["step"] + step, "state": state}
        choice = _call(rule, batch)
        yield batch, choice, done
        if choice.state is not None:
            state = torch.where(is_amateur.unsqueeze(-1), choice.state, _FOREIGN)
        if choice.done is not None:
            done = done | (is_amateur & choice.done)


def _first_step(rule: Rule) -> _Batch:
    """Make up groups at their first step, with each parameter's default, least and most."""
    declared = rule.parameters.items()
    usual = {name: parameter.least() for name, parameter in declared}
    least = {name: max(parameter.low, -LARGEST) for name, parameter in declared}
    most = {name: min(parameter.high, LARGEST) for name, parameter in declared}
    settings = [usual, least, most]
    settings += [usual | {name: end[name]} for name in usual for end in (least, most)]
    kinds = 4  # usual, all alike, an expert of one token, an amateur of one token
    num = kinds * len(settings)
    streams = []
    for i in range(num):
        of_any_number = MAX_STREAMS - 1 if i == 0 else 1 + (i + i // kinds) % 3
        row = 1 + (5 * i + torch.arange(1 + (rule.amateurs or of_any_number))) % (_ROWS - 1)
        if i % kinds == 1:
            row[1:] = row[0]
        elif i % kinds > 1:
            row[i % kinds - 2] = _CERTAIN
        streams.append(row)
    rows = pad_sequence(streams, batch_first=True, padding_value=-1)
    parameters = torch.tensor([[*values.values()] for values in settings])
    return {
        "rows": rows,
        "log_alpha": torch.tensor(_LOG_ALPHAS).repeat(num)[:num],
        "caps": torch.tensor(_CAPS).repeat(num)[:num],
        "step": torch.zeros(num, dtype=torch.int64),
        "state": torch.where(rows[:, 1:, None] >= 0, 0.0, _FOREIGN).expand(-1, -1, rule.state),
        "parameters": parameters.repeat_interleave(kinds, 0),
    }


def _alone(batch: _Batch, i: int) -> _Batch:
    """Return group ``i`` as a batch, with as many streams as it has."""
    group = {name: tensor[i : i + 1].clone() for name, tensor in batch.items()}
    streams = int((group["rows"] >= 0).sum())
    return group | {"rows": group["rows"][:, :streams], "state": group["state"][:, : streams - 1]}


def _logits() -> Tensor:
    """Make [_ROWS, _VOCABULARY] logits: steep and flat ones, with tokens that are not allowed."""
    numbers = torch.arange(_ROWS * _VOCABULARY)
    steeper = torch.linspace(0.1, 9.0, len(numbers))
    logits = ((numbers * 0.7).sin() * steeper).view(_ROWS, _VOCABULARY)
    logits[:, 3::7] = -math.inf
    logits[_CERTAIN, 1:] = -math.inf
    return logits


def _call(rule: Rule, batch: _Batch, copy: Callable[[Tensor], Tensor] = Tensor.clone) -> Choice:
    """Return what the rule returns of a batch; ``copy`` makes the tensors that it gets."""
    batch = {"logits": _logits(), **batch}
    copies = {name: copy(tensor) for name, tensor in batch.items()}
    num, streams = copies["rows"].shape
    fixed = torch.zeros_like(copies["rows"][:, 1:], dtype=torch.float32)
    groups = Groups(copies["rows"], fixed, copies["log_alpha"], copies["caps"], max(_CAPS))
    s = Statistics(copies["logits"], groups, copies["step"], copies["state"])
    p = by_name(rule.parameters, copies["parameters"].t().unsqueeze(-1))
    try:
        returned = rule.weights(s, p)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        if fixed.is_meta:  # with values it raises nothing
            raise ValueError(
                "it asks for a value of a tensor (item(), if, a shape that depends on one, a list "
                "as an index, or a copy from or to the host), for which a device would be waited "
                f"for ({problem})"
            ) from error
        raise ValueError(
            f"asked about groups of {'one amateur' if streams == 2 else 'several amateurs'}, it "
            f"raises {problem}; a request has any number of amateurs, unless `amateurs` says how "
            "many, and a vocabulary may lack a token: clamp ids of tokens to s.vocabulary - 1"
        ) from error
    computed = [(name, leaf) for name, value in vars(s).items() for leaf in tree_leaves(value)]
    for name, tensor in (*copies.items(), *computed):
        if not isinstance(tensor, Tensor):
            continue
        # The version does not count what is written into ``data``.
        differs = name in batch and not tensor.is_meta and not torch.equal(tensor, batch[name])
        if tensor._version or differs:
            raise ValueError(
                f"it writes into {name.strip('_')}, which it does not have for itself; it must "
                "work on a copy (clone()), or without x[...] = y and what ends in _ (mul_())"
            )
    return checked(rule, returned, num, streams)


def _refuse_difference(rule: Rule, batch: _Batch, first: Choice, second: Choice) -> None:
    """Refuse a rule whose two choices for the same groups differ."""
    for name, before, now in zip(Choice._fields, first, second, strict=True):
        if before is None or now is None:
            continue
        x, y = (tensor.float().view(*second.weights.shape, -1) for tensor in (before, now))
        # Of a group's numbers the smaller ones are as exact as the largest.
        most = x.nan_to_num().abs().flatten(1).amax(1).clamp(min=1.0)
        near = torch.isclose(x, y, equal_nan=True) | ((x - y).abs() <= 1e-5 * most[:, None, None])
        problem = (
            "what it returns of a group depends on the other groups, on how many amateurs they "
            f"have, on whether one that was done has ended, or on earlier calls: {name} {{}}; of "
            "p.x, s.step and all else, which have the groups in dimension 0, each group must have "
            "its own row's alone, and what it keeps must be in `state`"
        )
        _refuse(rule, batch, ~near.all(-1), problem, now, before)


def _has_amateur(batch: _Batch) -> Tensor:
    """Return [G, S - 1] which amateurs there are."""
    return batch["rows"][:, 1:] >= 0


def _refuse(rule: Rule, batch: _Batch, is_wrong: Tensor, problem: str, *values: Tensor) -> None:
    """Raise ValueError if an amateur is wrong, [G, S - 1]: ``problem`` with the values of the first
    such group, and that group, in place of "{}".
    """
    is_amateur = _has_amateur(batch)
    groups = (is_wrong & is_amateur).any(1).nonzero()
    if not len(groups):
        return
    i = int(groups[0])
    amateurs = is_amateur[i]
    numbers = " in place of ".join(str(tensor[i][amateurs].tolist()) for tensor in values)
    parameters = zip(rule.parameters, batch["parameters"][i].tolist(), strict=True)
    listed = ", ".join(f"{name}={value:g}" for name, value in parameters) or "no parameters"
    step = int(batch["step"][i])
    raise ValueError(
        problem.format(f"{numbers} for the amateurs of a group, at step {step}, with {listed}")
    )


class _Watch(TorchFunctionMode):
    """Raises RuntimeError for what tensors without values let pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        devices = {x.device for x in tree_leaves((args, output)) if isinstance(x, Tensor)}
        from_host = name in ("tensor", "as_tensor", "asarray", "new_tensor") and output.is_meta
        is_copy = name in ("cpu", "to", "copy_", "__getitem__", "__setitem__") and len(devices) > 1
        if name == "__repr__" or from_host or is_copy:
            raise RuntimeError(f"{name} of a tensor")
        indices = tree_leaves(args[1:2])
        has_mask = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices)
        if name == "__setitem__" and has_mask and isinstance(args[2], Tensor):
            raise RuntimeError("x[mask] = tensor; use torch.where")
        return output
