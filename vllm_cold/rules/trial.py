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


class _Returned(NamedTuple):
    """What a rule returns, as a ``Choice``; zeros for what it leaves out."""

    weights: Tensor
    state: Tensor
    done: Tensor


def try_out(rule: Rule) -> None:
    """Raise ValueError for what a rule must not do or return. Other instances of its class are
    called, so that the rule itself keeps nothing of the trial.
    """
    # An engine may load it amid a step, for the first request that names it.
    with torch.inference_mode(False), torch.no_grad():
        _try_without_values(type(rule)())
        _try_with_values(type(rule)())


def _try_without_values(rule: Rule) -> None:
    """Call a rule as on a device that takes no tensors of the host, and whose values would have to
    be waited for.
    """
    batch, device = _first_step(rule), FakeTensorMode()
    sizes = (batch["rows"] >= 0).sum(1).tolist()
    for part in (batch, *(_alone(batch, sizes.index(size)) for size in {*sizes})):
        with device, _Watch():
            _call(rule, part, lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"))


def _try_with_values(rule: Rule) -> None:
    steps = list(_play(rule, ends=False))
    for batch, (weights, _, _), done in steps:
        not_finite = _has_amateur(batch) & ~done & ~weights.isfinite()
        if example := _example(rule, batch, not_finite, weights):
            raise ValueError(
                f"it returns weights that are not finite, {example}; keep them finite for all that "
                "its parameters allow, or allow less"
            )
        if example := _example(rule, batch, done & (weights != 0), weights):
            raise ValueError(
                f"an amateur has a weight after the step where it was done: it returns {example}"
            )
    if rule.retires:
        for (batch, kept, done), (_, ended, _) in zip(steps, _play(rule, ends=True), strict=True):
            if example := _difference(rule, batch, kept, ended, ~done):
                raise ValueError(
                    "what it returns of an amateur must be the same whether or not another one has "
                    f"ended that was done, and it returns {example}"
                )
    batches, choices, _ = zip(*steps, strict=True)
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    first, again = _call(rule, whole), _call(rule, whole)
    if example := _difference(rule, whole, first, again):
        raise ValueError(
            f"it must return the same of the same rows, and asked again it returns {example}; it "
            "must keep numbers in `state`, and use no random ones"
        )
    example = _difference(
        rule, whole, _Returned(*map(torch.cat, zip(*choices, strict=True))), first
    )
    last, choice = batches[-1], choices[-1]
    for i in range(len(last["rows"])):
        group = _alone(last, i)
        amateurs = group["rows"].shape[1] - 1
        in_batch = _Returned(*(part[i : i + 1, :amateurs] for part in choice))
        example = example or _difference(rule, group, in_batch, _call(rule, group))
    if example:
        raise ValueError(
            "what it returns of a group depends on the other groups, or on how many amateurs they "
            f"have: in another batch {example}; of p.x, s.step and all else, which have the groups "
            "in dimension 0, each group must have its own row's alone"
        )


def _play(rule: Rule, ends: bool) -> Iterator[tuple[_Batch, _Returned, Tensor]]:
    """Yield, of each step of made-up groups, they themselves, what the rule returns of them, and
    [G, S - 1] which amateurs were done before; ``ends``: these are not there any more.
    """
    groups = _first_step(rule)
    rows, state = groups["rows"], groups["state"]
    is_amateur = _has_amateur(groups)
    done = torch.zeros_like(is_amateur)
    for step in range(_STEPS):
        moved = torch.where(rows > _CERTAIN, 1 + (rows + 7 * step) % (_ROWS - 1), rows)
        if ends:
            moved[:, 1:].masked_fill_(done, -1)
        batch = {**groups, "rows": moved, "step": groups["step"] + step, "state": state}
        choice = _call(rule, batch)
        yield batch, choice, done
        state = torch.where(is_amateur.unsqueeze(-1), choice.state, _FOREIGN)
        done = done | (is_amateur & choice.done)


def _first_step(rule: Rule) -> _Batch:
    """Make up groups at their first step, with each parameter's default, least and most."""
    ranges = {
        name: (max(parameter.low, -LARGEST), min(parameter.high, LARGEST))
        for name, parameter in rule.parameters.items()
    }
    usual = {name: parameter.least() for name, parameter in rule.parameters.items()}
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
    parameters = torch.tensor([[*values.values()] for values in settings])
    return {
        "rows": rows[:, :most],
        "log_alpha": torch.tensor(_LOG_ALPHAS).repeat(num)[:num],
        "caps": torch.tensor(_CAPS).repeat(num)[1 : num + 1],
        "step": torch.zeros(num, dtype=torch.int64),
        "state": torch.where(rows[:, 1:most, None] >= 0, 0.0, _FOREIGN).expand(-1, -1, rule.state),
        "parameters": parameters.repeat_interleave(kinds, 0),
    }


def _alone(batch: _Batch, i: int) -> _Batch:
    """Return group ``i`` as a batch, with as many streams as it has."""
    group = {name: tensor[i : i + 1] for name, tensor in batch.items()}
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


def _call(rule: Rule, batch: _Batch, copy: Callable[[Tensor], Tensor] = Tensor.clone) -> _Returned:
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
    choice = checked(rule, returned, num, streams)
    return _Returned(
        choice.weights,
        torch.zeros_like(copies["state"]) if choice.state is None else choice.state,
        torch.zeros_like(fixed, dtype=torch.bool) if choice.done is None else choice.done,
    )


def _difference(
    rule: Rule, batch: _Batch, first: _Returned, second: _Returned, of: Tensor | None = None
) -> str:
    """Tell how two choices for the same groups differ; "" if they do not. ``of`` [G, S - 1] are the
    amateurs to compare, None for all.
    """
    of = _has_amateur(batch) if of is None else _has_amateur(batch) & of
    for name, before, now in zip(_Returned._fields, first, second, strict=True):
        x, y = (tensor.float().view(*of.shape, -1) for tensor in (before, now))
        # Of a group's numbers the smaller ones are as exact as the largest.
        most = torch.cat([torch.ones(len(x), 1), x.nan_to_num().abs().flatten(1)], 1).amax(1)
        near = torch.isclose(x, y, equal_nan=True) | ((x - y).abs() <= 1e-5 * most[:, None, None])
        if example := _example(rule, batch, ~near.all(-1) & of, now, before):
            return f"{name} {example}"
    return ""


def _has_amateur(batch: _Batch) -> Tensor:
    """Return [G, S - 1] which amateurs there are."""
    return batch["rows"][:, 1:] >= 0


def _example(rule: Rule, batch: _Batch, is_wrong: Tensor, *values: Tensor) -> str:
    """Describe the values of the first group in which an amateur is wrong, [G, S - 1], and that
    group; "" if none is.
    """
    groups = is_wrong.any(1).nonzero()
    if not len(groups):
        return ""
    i = int(groups[0])
    amateurs = _has_amateur(batch)[i]
    numbers = " in place of ".join(str(tensor[i][amateurs].tolist()) for tensor in values)
    rows, parameters = batch["rows"][i].tolist(), batch["parameters"][i].tolist()
    listed = ", ".join(f"{n}={v:g}" for n, v in zip(rule.parameters, parameters, strict=True))
    count = int(amateurs.sum())
    group = f"a group of {count} amateur{'s' * (count > 1)}"
    if rows[0] == _CERTAIN:
        group += " whose expert may take one token alone"
    elif rows[0] == rows[1]:
        group += " that say what the expert says"
    return f"{numbers} for {group}, at step {batch['step'][i]}, with {listed or 'no parameters'}"


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
            if any(isinstance(part, list) for part in index):
                raise _Waits("a list as an index; use slices, or index_select")
            has_mask = any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index)
            if has_mask and isinstance(args[-1], Tensor) and name == "__setitem__":
                raise _Waits("x[mask] = tensor; use torch.where")
        output = func(*args, **(kwargs or {}))
        if name in ("tensor", "as_tensor", "asarray", "new_tensor") and output.is_meta:
            raise _Waits(f"{name} of numbers of the host; use them as they are, or torch.full")
        devices = {value.device for value in (*args, output) if isinstance(value, Tensor)}
        if name in ("to", "copy_", "__setitem__") and len(devices) > 1:
            raise _Waits(f"{name} from one device to another")
        return output
