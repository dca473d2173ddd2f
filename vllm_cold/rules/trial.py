# SPDX-License-Identifier: Apache-2.0
"""Tries a rule that others have written on made-up groups, before an engine serves it.

All groups get a few tokens in one batch. What the rule returns of a group must be the same where
the group is alone, and where groups at other steps are in its batch.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from vllm_cold.ops.interface import MAX_STREAMS, Groups
from vllm_cold.rules.check import checked
from vllm_cold.rules.rule import LARGEST, Rule, by_name
from vllm_cold.rules.statistics import Statistics

_ROWS, _VOCABULARY = 67, 40
_CERTAIN = 0  # the row that allows one token
_STEPS = 8
_LOG_ALPHAS, _CAPS = (math.log(0.1), -math.inf, 0.0), (0, 5, 1)
_FOREIGN = 7.0  # in the state of amateurs that a group does not have: others' may be left there

_Batch: TypeAlias = dict[str, Tensor]
"""Groups: their rows [G, S], -1 where there is no stream, log_alpha, caps and step [G], state
[G, S - 1, K] and the rule's parameters [G, P].
"""


class _Found(NamedTuple):
    """What a rule returns, as a ``Choice``; zeros for what it does not."""

    weights: Tensor
    state: Tensor
    done: Tensor


def try_out(rule: Rule) -> None:
    """Raise ValueError for what a rule must not do or return. Other instances of its class are
    asked, so that the rule itself keeps nothing of the trial.
    """
    # An engine may load it amid a step, for the first request that names it.
    with torch.inference_mode(False), torch.no_grad():
        _try_without_values(type(rule)())
        _try_with_values(type(rule)())


def _try_without_values(rule: Rule) -> None:
    """As on a device that takes no tensors of the host, and whose values would be waited for."""
    batch, device = _made_up(rule), FakeTensorMode()
    sizes = (batch["rows"] >= 0).sum(1).tolist()
    for some in (batch, *(_alone(batch, sizes.index(size)) for size in {*sizes})):
        with device, _Watch():
            _ask(rule, some, lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"))


def _try_with_values(rule: Rule) -> None:
    played = list(_play(rule, ends=False))
    for batch, (weights, _, _), done in played:
        if said := _told(rule, batch, _there(batch) & ~done & ~weights.isfinite(), weights):
            raise ValueError(
                f"it returns weights that are not finite, {said}; keep them finite for all that "
                "its parameters allow, or allow less"
            )
        if said := _told(rule, batch, done & (weights != 0), weights):
            raise ValueError(
                f"an amateur has a weight after the step where it was done: it returns {said}"
            )
    if rule.retires:
        for (batch, found, done), (_, ended, _) in zip(played, _play(rule, ends=True), strict=True):
            if said := _differ(rule, batch, found, ended, ~done):
                raise ValueError(
                    "what it returns of an amateur must be the same whether or not another one has "
                    f"ended that was done, and it returns {said}"
                )
    batches, choices, _ = zip(*played, strict=True)
    whole = {name: torch.cat([one[name] for one in batches]) for name in batches[0]}
    first, again = _ask(rule, whole), _ask(rule, whole)
    if said := _differ(rule, whole, first, again):
        raise ValueError(
            f"it must return the same of the same rows, and asked again it returns {said}; it must "
            "keep numbers in `state`, and use no random ones"
        )
    said = _differ(rule, whole, _Found(*map(torch.cat, zip(*choices, strict=True))), first)
    last, found = batches[-1], choices[-1]
    for i in range(len(last["rows"])):
        one = _alone(last, i)
        own = one["rows"].shape[1] - 1
        in_batch = _Found(*(part[i : i + 1, :own] for part in found))
        said = said or _differ(rule, one, in_batch, _ask(rule, one))
    if said:
        raise ValueError(
            "what it returns of a group depends on the other groups, or on how many amateurs they "
            f"have: in another batch {said}; of p.x, s.step and all else, which have the groups in "
            "dimension 0, each group must have its own row's alone"
        )


def _play(rule: Rule, ends: bool) -> Iterator[tuple[_Batch, _Found, Tensor]]:
    """At each step of made-up groups they themselves, what the rule returns of them, and [G, S - 1]
    which amateurs were done before; ``ends``: these are not there any more.
    """
    groups = _made_up(rule)
    rows, state = groups["rows"], groups["state"]
    there = _there(groups)
    done = torch.zeros_like(there)
    for step in range(_STEPS):
        moved = torch.where(rows > _CERTAIN, 1 + (rows + 7 * step) % (_ROWS - 1), rows)
        if ends:
            moved[:, 1:].masked_fill_(done, -1)
        batch = {**groups, "rows": moved, "step": groups["step"] + step, "state": state}
        found = _ask(rule, batch)
        yield batch, found, done
        state = torch.where(there.unsqueeze(-1), found.state, _FOREIGN)
        done = done | (there & found.done)


def _made_up(rule: Rule) -> _Batch:
    """Groups at their first step: with each parameter's default, least and most."""
    ranges = {
        name: (max(of.low, -LARGEST), min(of.high, LARGEST)) for name, of in rule.parameters.items()
    }
    usual = {name: of.least() for name, of in rule.parameters.items()}
    settings = [usual, *({name: ends[i] for name, ends in ranges.items()} for i in (0, 1))]
    settings += [{**usual, name: end} for name, ends in ranges.items() for end in ends]
    kinds = 4  # usual, all alike, an expert of one token, an amateur of one token
    num = kinds * len(settings)
    rows = torch.full((num, MAX_STREAMS), -1)
    for i in range(num):
        of_any_number = MAX_STREAMS - 1 if i == 0 else 1 + (i + i // kinds) % 3
        streams = 1 + (rule.amateurs or of_any_number)
        rows[i, :streams] = 1 + (5 * i + torch.arange(streams)) % (_ROWS - 1)
        if i % kinds == 1:
            rows[i, 1:streams] = rows[i, 0]
        elif i % kinds > 1:
            rows[i, i % kinds - 2] = _CERTAIN
    most = int((rows >= 0).any(0).sum())
    parameters = torch.tensor([[*each.values()] for each in settings])
    return {
        "rows": rows[:, :most],
        "log_alpha": torch.tensor(_LOG_ALPHAS).repeat(num)[:num],
        "caps": torch.tensor(_CAPS).repeat(num)[1 : num + 1],
        "step": torch.zeros(num, dtype=torch.int64),
        "state": torch.where(rows[:, 1:most, None] >= 0, 0.0, _FOREIGN).expand(-1, -1, rule.state),
        "parameters": parameters.repeat_interleave(kinds, 0),
    }


def _alone(batch: _Batch, group: int) -> _Batch:
    """One of the groups as a batch of its own, with as many streams as it has."""
    one = {name: each[group : group + 1] for name, each in batch.items()}
    streams = int((one["rows"] >= 0).sum())
    return one | {"rows": one["rows"][:, :streams], "state": one["state"][:, : streams - 1]}


def _logits() -> Tensor:
    """[_ROWS, _VOCABULARY]: steep and flat ones, with tokens that are not allowed."""
    numbers = torch.arange(_ROWS * _VOCABULARY)
    steeper = torch.linspace(0.1, 9.0, len(numbers))
    logits = ((numbers * 0.7).sin() * steeper).view(_ROWS, _VOCABULARY)
    logits[:, 3::7] = -math.inf
    logits[_CERTAIN, 1:] = -math.inf
    return logits


def _ask(rule: Rule, batch: _Batch, copy: Callable[[Tensor], Tensor] = Tensor.clone) -> _Found:
    """What the rule returns of a batch; ``copy`` makes the tensors that it is given."""
    batch = {"logits": _logits(), **batch}
    given = {name: copy(each) for name, each in batch.items()}
    num, streams = given["rows"].shape
    fixed = torch.zeros_like(given["rows"][:, 1:], dtype=torch.float32)
    groups = Groups(given["rows"], fixed, given["log_alpha"], given["caps"], max(_CAPS))
    s = Statistics(given["logits"], groups, given["step"], given["state"])
    p = by_name(rule.parameters, given["parameters"].t().unsqueeze(-1))
    try:
        returned = rule.weights(s, p)
    except (DataDependentOutputException, DynamicOutputShapeException, _Waits) as error:
        raise ValueError(
            "it asks for a value of a tensor (item(), if, a shape that depends on one, or a copy "
            f"from or to the host), for which a device would be waited for: {error}"
        ) from error
    except Exception as error:
        few = streams == 2 and not rule.amateurs
        hint = "; if it needs more, `amateurs` must say how many" if few else ""
        if f"with size {_VOCABULARY}" in str(error):
            hint = "; a vocabulary may lack a token: clamp ids of tokens to s.vocabulary - 1"
        raise ValueError(
            f"asked about groups of {'one amateur' if streams == 2 else 'several amateurs'}, it "
            f"raises {type(error).__name__}: {error}{hint}"
        ) from error
    held = [(name, each) for name, value in vars(s).items() for each in tree_leaves(value)]
    for name, each in (*given.items(), *held):
        if not isinstance(each, Tensor):
            continue
        # The version does not count what is written into ``data``.
        unlike = name in batch and not each.is_meta and not torch.equal(each, batch[name])
        if each._version or unlike:
            raise ValueError(
                f"it writes into {name.strip('_')}, which it does not have for itself; it must "
                "work on a copy (clone()), or without x[...] = y and what ends in _ (mul_())"
            )
    choice = checked(rule, returned, num, streams)
    return _Found(
        choice.weights,
        torch.zeros_like(given["state"]) if choice.state is None else choice.state,
        torch.zeros_like(fixed, dtype=torch.bool) if choice.done is None else choice.done,
    )


def _differ(rule: Rule, batch: _Batch, one: _Found, other: _Found, of: Tensor | None = None) -> str:
    """How two choices for the same groups do; "" if they do not. ``of`` [G, S - 1] are the amateurs
    to compare, None for all.
    """
    of = _there(batch) if of is None else _there(batch) & of
    for name, before, now in zip(_Found._fields, one, other, strict=True):
        x, y = (each.float().view(*of.shape, -1) for each in (before, now))
        # Of a group's numbers the smaller ones are as exact as the largest.
        most = torch.cat([torch.ones(len(x), 1), x.nan_to_num().abs().flatten(1)], 1).amax(1)
        near = torch.isclose(x, y, equal_nan=True) | ((x - y).abs() <= 1e-5 * most[:, None, None])
        if said := _told(rule, batch, ~near.all(-1) & of, now, before):
            return f"{name} {said}"
    return ""


def _there(batch: _Batch) -> Tensor:
    """[G, S - 1] which amateurs there are."""
    return batch["rows"][:, 1:] >= 0


def _told(rule: Rule, batch: _Batch, wrong: Tensor, *values: Tensor) -> str:
    """The values of the first group in which an amateur is wrong, [G, S - 1], and what group that
    is; "" if none is.
    """
    groups = wrong.any(1).nonzero()
    if not len(groups):
        return ""
    i = int(groups[0])
    there = _there(batch)[i]
    told = " in place of ".join(str(each[i][there].tolist()) for each in values)
    rows, parameters = batch["rows"][i].tolist(), batch["parameters"][i].tolist()
    given = ", ".join(f"{n}={v:g}" for n, v in zip(rule.parameters, parameters, strict=True))
    others = sum(row >= 0 for row in rows) - 1
    said = f"a group of {others} amateur{'s' * (others > 1)}"
    if rows[0] == _CERTAIN:
        said += " whose expert may take one token alone"
    elif rows[0] == rows[1]:
        said += " that say what the expert says"
    return f"{told} for {said}, at step {batch['step'][i]}, with {given or 'no parameters'}"


class _Waits(Exception):
    """For what it does, a device is waited for."""


class _Watch(TorchFunctionMode):
    """Raises ``_Waits`` for what tensors without values let pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("cpu", "numpy", "tolist", "__array__", "__repr__", "__format__"):
            raise _Waits(f"{name} of a tensor")
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(each, list) for each in index):
                raise _Waits("a list as an index; use slices, or index_select")
            mask = any(isinstance(each, Tensor) and each.dtype == torch.bool for each in index)
            if mask and isinstance(args[-1], Tensor) and name == "__setitem__":
                raise _Waits("x[mask] = tensor; use torch.where")
        found = func(*args, **(kwargs or {}))
        if name in ("tensor", "as_tensor", "asarray", "new_tensor") and found.is_meta:
            raise _Waits(f"{name} of numbers of the host; use them as they are, or torch.full")
        devices = {each.device for each in (*args, found) if isinstance(each, Tensor)}
        if name in ("to", "copy_", "__setitem__") and len(devices) > 1:
            raise _Waits(f"{name} from one device to another")
        return found
