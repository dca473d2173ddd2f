# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that rules and the scoring op take. Needs no vLLM."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_cold.group.explained import explain
from vllm_cold.group.step_stats import OTHER_DRAFTS, StepStats
from vllm_cold.group.stream import Stream
from vllm_cold.group.weights import RuleRows, RuleStates, mark_failed
from vllm_cold.ops import contrastive_scores
from vllm_cold.ops.interface import Groups


class _Host(NamedTuple):
    """The groups of a batch that are scored, of up to S streams, on the host.

    Attributes:
        members: [G, S] int64 positions in the batch, the expert's first; -1 for none.
        weights: [G, S - 1] float32, of the amateurs; 0 for none, NaN where a rule chooses.
        log_alpha: [G] float32.
        caps: [G] int64 caps on the candidates, 0 for none.
        streams: [G] int64: which of the batch's groups each is.
    """

    members: NDArray[Any]
    weights: NDArray[Any]
    log_alpha: NDArray[Any]
    caps: NDArray[Any]
    streams: NDArray[Any]


def _tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def _groups(host: _Host, device: torch.device) -> Groups | None:
    """As the op takes them, with ``members`` for row numbers; None if there is no group. Amateurs
    that have ended leave no gap. An expert without any is its own amateur: it has candidates, too.
    """
    if not len(host.members):
        return None
    rows, weights = host.members, np.nan_to_num(host.weights)
    order = np.argsort(rows[:, 1:] < 0, axis=1, kind="stable")
    amateurs = np.take_along_axis(rows[:, 1:], order, 1)
    amateurs[:, 0] = np.where(amateurs[:, 0] < 0, rows[:, 0], amateurs[:, 0])
    rows = np.concatenate([rows[:, :1], amateurs], 1)
    return _on_device(host, rows, np.take_along_axis(weights, order, 1), device)


def _on_device(
    host: _Host, rows: NDArray[Any], weights: NDArray[Any], device: torch.device
) -> Groups:
    most = int(host.caps.max())
    return Groups(
        _tensor(rows, device),
        _tensor(weights, device),
        _tensor(host.log_alpha, device),
        _tensor(host.caps, device) if most else None,
        most,
    )


def _rule_rows(
    host: _Host, streams: Sequence[Stream], device: torch.device
) -> tuple[RuleRows, ...]:
    """The groups of each rule, but for those whose amateurs have all ended."""
    if all(each.settings.rule is None for each in streams):
        return ()
    by_rule: dict[str, list[int]] = {}
    alone: list[bool] = np.all(host.members[:, 1:] < 0, axis=1).tolist()
    for row, each in enumerate(host.streams.tolist()):
        if (name := streams[each].settings.rule) is not None and not alone[row]:
            by_rule.setdefault(name, []).append(row)
    found = []
    for name, listed in by_rule.items():
        at = np.array(listed)
        part = _Host(*(column[at] for column in host))
        of = [streams[i] for i in part.streams.tolist()]
        width = 1 + max(len(each.amateurs) for each in of)
        given = [each.settings.rule_parameters or {} for each in of]
        names = tuple(given[0])  # what the rule of this process lacks, it will say itself
        parameters = np.array([[each[key] for each in given] for key in names], dtype=np.float32)
        slots = [each.slot for each in of if each.slot is not None]
        if len(slots) < len(of):  # then a rule with state fails
            slots = []
        rows, weights = part.members[:, :width], part.weights[:, : width - 1]
        found.append(
            RuleRows(
                name,
                names,
                _tensor(parameters.reshape(len(names), len(of), 1), device),
                _tensor(at, device),
                _on_device(part, rows, np.nan_to_num(weights), device),
                _tensor(np.isnan(weights), device),
                _tensor(np.array(slots), device) if slots else None,
                1 + max(slots, default=-1),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class GroupRows:
    """The groups of a batch that are scored, in no particular order.

    Attributes:
        streams: Of each group, one of its streams.
        ids: Of each row that is written, the group's id; a group's rows in the order of its tokens.
        groups: The rows and settings; None if no group has one.
        rules: Those whose weights are chosen.
        present: Of each row that is written, the amateurs that are there: bit i for the i-th.
        members: Of each group, the positions of its streams in the batch, the expert's first.
        experts: [A] int64, of each amateur the expert's position.
        amateurs: [A] int64, the amateurs' positions.
        host: What they are made of.
    """

    streams: tuple[Stream, ...]
    ids: tuple[str, ...]
    groups: Groups | None
    rules: tuple[RuleRows, ...]
    present: tuple[int, ...]
    members: tuple[Sequence[int], ...]
    experts: Tensor
    amateurs: Tensor
    host: _Host

    def score(
        self,
        logits: Tensor,
        drafts: Tensor | None = None,
        steps: Tensor | None = None,
        states: RuleStates | None = None,
    ) -> StepStats | None:
        """Write the scores over the experts' rows, without a host sync on accelerators.

        Args:
            logits: [rows, V] float32; changed in place.
            drafts: [rows] the draft that belongs to each row, -1 for none; None if there is none.
                All rows of a group must have the same, or its scores are of different texts.
            steps: [rows] int64: how many tokens the request of each row has got before. Needed
                where there are rules, as is ``states``.
            states: What rules keep.

        Returns:
            What was found there; None if no group has a row.
        """
        groups = self.groups
        if groups is None:
            return None
        found = []
        for rule in self.rules:
            assert steps is not None and states is not None
            chosen = rule.choose(logits, steps, states)
            # Where the op has the weights of amateurs that are there.
            order = (rule.groups.rows[:, 1:] < 0).long().argsort(dim=1, stable=True)
            groups.weights[rule.at, : order.shape[1]] = chosen.weights.gather(1, order)
            found.append((rule, chosen))
        statistics = torch.empty(len(self.ids), 3, dtype=torch.int64, device=logits.device)
        asking = {stream.group for stream in self.streams if stream.explain}
        asked = [i for i, group in enumerate(self.ids) if group in asking] if asking else []
        told: Sequence[Tensor] = ()
        if asked:
            most = max(stream.explain for stream in self.streams)
            told = explain(logits, groups, asked, most)
        contrastive_scores(logits, groups, inplace=True, statistics=statistics, check=False)
        if found:
            choices = torch.zeros(len(self.ids), 2, dtype=torch.int64, device=logits.device)
            for rule, chosen in found:
                mark_failed(statistics, rule.at, chosen.failed)
                idle = (chosen.weights == 0).all(1)
                choices[rule.at] = torch.stack([chosen.done, idle.long()], 1)
            statistics = torch.cat([statistics, choices], 1)
        if drafts is not None:
            rows = groups.rows
            drafted = drafts[torch.where(rows < 0, rows[:, :1], rows)]
            statistics[:, 2].masked_fill_((drafted != drafted[:, :1]).any(1), OTHER_DRAFTS)
        return StepStats(self.ids, statistics, self.present, asked, told)

    def tell_amateurs(self, found: Tensor | list[Any]) -> None:
        """What the experts were given becomes the amateurs' too: tokens, drafts, counts of them.

        On the device, before anything reads them: with async scheduling the next step's input
        comes from there.

        Args:
            found: [requests, ...] by position; changed in place.
        """
        if isinstance(found, Tensor):
            found[self.amateurs] = found[self.experts]
            return
        for expert, *amateurs in self.members:
            for amateur in amateurs:
                found[amateur] = list(found[expert])

    def spread(self, num_rows: Sequence[int] | NDArray[Any]) -> Self:
        """The same where requests have several rows of logits, or none.

        Args:
            num_rows: Of each position, how many rows it has, which follow those of the position
                before. A group whose streams do not have the same number gets none.
        """
        host = self.host
        counts = np.asarray(num_rows, dtype=np.int64)
        first = np.cumsum(counts) - counts
        positions = np.where(host.members < 0, host.members[:, :1], host.members)
        of_each = counts[positions]
        repeats = np.where((of_each == of_each[:, :1]).all(1), of_each[:, 0], 0)
        group = np.repeat(np.arange(len(repeats)), repeats)
        nth = np.arange(len(group)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        rows = first[positions[group]] + nth[:, None]
        rows[host.members[group] < 0] = -1
        spread = _Host(rows, *(column[group] for column in host[1:]))
        device = self.experts.device
        return replace(
            self,
            ids=tuple(self.ids[g] for g in group.tolist()),
            groups=_groups(spread, device),
            rules=_rule_rows(spread, self.streams, device) if self.rules else (),
            present=tuple(self.present[g] for g in group.tolist()),
        )

    @classmethod
    def of(cls, streams: Iterable[tuple[int, Stream]], device: torch.device) -> Self | None:
        """Match the streams by group, with a row of logits each; None if no group is complete.

        A stream without the others in the batch is prefilling: its sample is discarded by the
        scheduler, so its row needs no scores. Not so if the group's rule may have ended the others:
        then what is there is scored, and the scheduler, which knows, compares (``present``).

        Args:
            streams: With their positions in the batch.
            device: Of the logits.
        """
        positions: dict[str, list[int]] = {}
        experts: list[tuple[list[int], Stream]] = []
        for position, stream in streams:
            of_group = positions.setdefault(stream.group, [-1] * (1 + len(stream.amateurs)))
            assert stream.index is not None
            of_group[stream.index] = position
            if stream.index == 0:
                experts.append((of_group, stream))
        complete = [
            (of_group, stream)
            for of_group, stream in experts
            if min(of_group) >= 0 or stream.retires
        ]
        if not complete:
            return None
        num, most = len(complete), max(len(of_group) for of_group, _ in complete)
        host = _Host(
            np.full((num, most), -1, dtype=np.int64),
            np.zeros((num, most - 1), dtype=np.float32),
            np.empty(num, dtype=np.float32),
            np.empty(num, dtype=np.int64),
            np.arange(num),
        )
        for g, (of_group, stream) in enumerate(complete):
            settings, amateurs = stream.settings, stream.amateurs
            host.members[g, : len(of_group)] = of_group
            host.weights[g, : len(amateurs)] = [
                math.nan if a.weight is None else a.weight for a in amateurs
            ]
            host.log_alpha[g] = math.log(settings.alpha) if settings.alpha else -math.inf
            host.caps[g] = settings.expert_top_k or 0
        members = tuple([at for at in of_group if at >= 0] for of_group, _ in complete)
        pairs = [(there[0], each) for there in members for each in there[1:]]
        at = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).to(device, non_blocking=True)
        of = tuple(stream for _, stream in complete)
        return cls(
            of,
            tuple(stream.group for stream in of),
            _groups(host, device),
            _rule_rows(host, of, device),
            tuple(
                sum(1 << i for i, at in enumerate(of_group[1:]) if at >= 0)
                for of_group, _ in complete
            ),
            members,
            at[:, 0].contiguous(),
            at[:, 1].contiguous(),
            host,
        )
