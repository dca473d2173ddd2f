# SPDX-License-Identifier: Apache-2.0
"""Tries a rule that others have written on made-up groups, before an engine serves it.

The groups form a batch as in an engine: each has parameters, a step, a state, settings and a number
of amateurs of its own. What a rule returns of a group must not depend on the rest of the batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode

from vllm_cold.ops.interface import MAX_STREAMS, Groups
from vllm_cold.rules.check import checked
from vllm_cold.rules.interface import LARGEST, Choice, Rule, by_name
from vllm_cold.rules.statistics import Statistics

_ROWS, _VOCABULARY = 67, 40
_CERTAIN = 0  # the row that allows one token
_TURNS, _LAST = 8, (7, 1, 0)  # steps of groups at the last turn
_LOG_ALPHAS, _CAPS = (math.log(0.1), -math.inf, 0.0), (0, 5, 1)
_FOREIGN = 7.0  # in the state of amateurs that a group does not have: others' may be left there


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
    groups = _made_up(rule)
    alone = {len(each.rows): [each] for each in groups}
    device = FakeTensorMode()
    for some in (groups, *alone.values()):
        batch = _batch(some, _TURNS - 1)
        with device, _Watch():
            _ask(
                rule,
                {
                    name: torch.empty(each.shape, dtype=each.dtype, device="meta")
                    for name, each in batch.items()
                },
            )


def _try_with_values(rule: Rule) -> None:
    groups = _made_up(rule)
    ended = _play(rule, _made_up(rule), ends=True)
    for turn, found in enumerate(_play(rule, groups)):
        if rule.retires:
            for number, without in next(ended).items():
                one = groups[number]
                if said := _differ(found[number], without, ~one.done):
                    raise ValueError(
                        "what it returns of an amateur must be the same whether or not another one "
                        f"has ended that was done, and it returns {said} ({one})"
                    )
        if turn == _TURNS - 1:
            _try_again(rule, groups, found)


def _try_again(rule: Rule, groups: Sequence["_Group"], found: dict[int, Choice]) -> None:
    """Raise ValueError unless other batches of these groups give the same."""
    numbers = [*found]
    for batch in (numbers, numbers[::-1], numbers * 2, *([number] for number in numbers)):
        again = _answers(rule, [groups[number] for number in batch], _TURNS - 1)
        for number, now in zip(batch, again, strict=True):
            one = groups[number]
            if not (said := _differ(found[number], now, torch.ones_like(one.done))):
                continue
            if batch is numbers:
                raise ValueError(
                    f"it must return the same of the same rows, and asked again it returns {said} "
                    f"({one}); it must keep numbers in `state`, and use no random ones"
                )
            raise ValueError(
                "what it returns of a group depends on the other groups, or on how many amateurs "
                f"they have: in another batch {said} ({one}); of p.x, s.step and all else, which "
                "have the groups in dimension 0, each group must have its own row's alone"
            )


def _play(
    rule: Rule, groups: Sequence["_Group"], ends: bool = False
) -> Iterator[dict[int, Choice]]:
    """What it returns of the groups, by number, at each turn.

    Args:
        rule: The rule.
        groups: With the states of their first turn; they get those of each next one.
        ends: Whether amateurs that were done are not there any more.
    """
    for turn in range(_TURNS):
        for one in groups:
            one.step += 1
        batch = {
            number: one
            for number, one in enumerate(groups)
            if one.step >= 0 and not (ends and one.done.all())
        }
        found = dict(zip(batch, _answers(rule, [*batch.values()], turn, ends), strict=True))
        for number, one in batch.items():
            weights = found[number].weights
            if not weights[~one.done].isfinite().all():
                raise ValueError(
                    f"it returns weights that are not finite, {weights.tolist()}, for {one}; "
                    "keep them finite for all that its parameters allow, or allow less"
                )
            if not ends and weights[one.done].any():
                raise ValueError(
                    f"an amateur has a weight after the step where it was done: it returns "
                    f"{weights.tolist()} for {one}, and done was {one.done.tolist()}"
                )
        yield found
        for number, (_, state, done) in found.items():
            one = groups[number]
            one.state = one.state if state is None else state
            one.done = one.done if done is None else one.done | done


@dataclass
class _Group:
    """A made-up group of n amateurs.

    Attributes:
        parameters: Of the rule, by name.
        step: Of this turn; below 0 before its first one.
        rows: Of its streams, among a turn's logits.
        log_alpha: As in ``Groups``.
        cap: On its candidates, 0 for none.
        state: [n, K], of the turn before.
        done: [n] bool, at any turn before.
    """

    parameters: dict[str, float]
    step: int
    rows: list[int]
    log_alpha: float
    cap: int
    state: Tensor
    done: Tensor

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value:g}" for name, value in self.parameters.items())
        others = len(self.rows) - 1
        said = f"a group of {others} amateur{'s' * (others > 1)}"
        if self.rows[0] == _CERTAIN:
            said += " whose expert may take one token alone"
        elif self.rows[0] == self.rows[1]:
            said += " that say what the expert says"
        return f"{said}, at step {self.step}, with {given or 'no parameters'}"


def _made_up(rule: Rule) -> list[_Group]:
    """Groups at their first steps: each parameter's default, least and most, at steps apart."""
    ranges = {
        name: (max(of.low, -LARGEST), min(of.high, LARGEST)) for name, of in rule.parameters.items()
    }
    usual = {name: of.least() for name, of in rule.parameters.items()}
    settings = [usual, *({name: ends[i] for name, ends in ranges.items()} for i in (0, 1))]
    settings += [{**usual, name: end} for name, ends in ranges.items() for end in ends]
    groups: list[_Group] = []
    for i, last in enumerate(_LAST):
        for k, parameters in enumerate(settings):
            several = MAX_STREAMS - 1 if len(groups) == len(settings) - 1 else 1 + (i + k) % 3
            num = rule.amateurs or several
            rows = [1 + (5 * len(groups) + j) % (_ROWS - 1) for j in range(1 + num)]
            kind = (2 * i + k) % 5
            if kind == 2:
                rows[1:] = rows[:1] * num
            elif kind > 2:
                rows[kind - 3] = _CERTAIN
            groups.append(
                _Group(
                    parameters,
                    last - _TURNS,
                    rows,
                    _LOG_ALPHAS[k % 3],
                    _CAPS[(i + k) % 3],
                    torch.zeros(num, rule.state),
                    torch.zeros(num, dtype=torch.bool),
                )
            )
    return groups


def _batch(groups: Sequence[_Group], turn: int, ends: bool = False) -> dict[str, Tensor]:
    """What a rule is asked about, with groups of different sizes next to each other, as in an
    engine's batch. The parameters are [P, G, 1].
    """
    most = max(len(one.rows) for one in groups)
    rows = torch.full((len(groups), most), -1)
    state = torch.full((len(groups), most - 1, groups[0].state.shape[1]), _FOREIGN)
    for i, one in enumerate(groups):
        rows[i, : len(one.rows)] = torch.tensor(one.rows)
        if ends:
            rows[i, 1 : len(one.rows)][one.done] = -1
        state[i, : len(one.state)] = one.state
    step = torch.tensor([one.step for one in groups])
    numbers = torch.arange(_ROWS * _VOCABULARY)
    # Steep and flat ones, with tokens that are not allowed.
    steeper = torch.linspace(0.1, 9.0, len(numbers))
    logits = ((numbers * 0.7 + turn).sin() * steeper).view(_ROWS, _VOCABULARY)
    logits[:, 3::7] = -math.inf
    logits[_CERTAIN, 1:] = -math.inf
    parameters = [[[value] for value in one.parameters.values()] for one in groups]
    return {
        "logits": logits,
        "rows": rows,
        "log_alpha": torch.tensor([one.log_alpha for one in groups]),
        "caps": torch.tensor([one.cap for one in groups]),
        "step": step,
        "state": state.masked_fill((step == 0)[:, None, None], 0.0),
        "parameters": torch.tensor(parameters).transpose(0, 1),
    }


def _answers(rule: Rule, groups: Sequence[_Group], turn: int, ends: bool = False) -> list[Choice]:
    """Of each group what the rule returns of its own amateurs."""
    if not groups:
        return []
    weights, state, done = _ask(rule, _batch(groups, turn, ends))
    return [
        Choice(
            weights[i, :num],
            None if state is None else state[i, :num],
            None if done is None else done[i, :num],
        )
        for i, num in enumerate(len(one.done) for one in groups)
    ]


def _ask(rule: Rule, batch: dict[str, Tensor]) -> Choice:
    given = {name: each.clone() for name, each in batch.items()}
    num, streams = given["rows"].shape
    fixed = torch.zeros_like(given["rows"][:, 1:], dtype=torch.float32)
    groups = Groups(given["rows"], fixed, given["log_alpha"], given["caps"], max(_CAPS))
    s = Statistics(given["logits"], groups, given["step"], given["state"])
    try:
        returned = rule.weights(s, by_name(rule.parameters, given["parameters"]))
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
    for name, each in (*given.items(), *_held(s)):
        # The first does not see what is written into ``data``.
        unlike = name in batch and not each.is_meta and not torch.equal(each, batch[name])
        if each._version or unlike:
            raise ValueError(
                f"it writes into {name.strip('_')}, which it does not have for itself; it must "
                "work on a copy (clone()), or without x[...] = y and what ends in _ (mul_())"
            )
    return checked(rule, returned, num, streams)


def _held(s: Statistics) -> Iterator[tuple[str, Tensor]]:
    """The statistics that it has asked for."""
    for name, held in vars(s).items():
        several = [*held.values()] if isinstance(held, dict) else held
        for each in several if isinstance(several, list) else [held]:
            if isinstance(each, Tensor):
                yield name, each


def _differ(one: Choice, other: Choice, of: Tensor) -> str:
    """How they do, of some amateurs of a group; "" if they do not."""
    for name, before, now in zip(Choice._fields, one, other, strict=True):
        if before is None or now is None:
            continue
        x, y = before[of].float(), now[of].float()
        most = max([1.0, *x.abs().flatten().tolist()])
        if not torch.allclose(x, y, rtol=1e-5, atol=1e-5 * most, equal_nan=True):
            return f"{name} {y.tolist()} in place of {x.tolist()}"
    return ""


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
