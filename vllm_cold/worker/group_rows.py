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

from vllm_cold.ops import contrastive_scores
from vllm_cold.ops.interface import Groups
from vllm_cold.wire.step_stats import ENDS, OTHER_DRAFTS, RULE_FAILED, StepStats
from vllm_cold.wire.stream import Stream
from vllm_cold.worker.explain_step import explain
from vllm_cold.worker.rule_weights import RuleRows, RuleStates


class _Host(NamedTuple):
    """What is scored of groups of up to S streams, on the host: N rows of each stream.

    Attributes:
        rows: [N, S] int64 row numbers of the logits, the expert's first; -1 for none.
        weights: [N, S - 1] float32, of the amateurs; 0 for none, NaN where a rule chooses.
        log_alpha: [N] float32.
        caps: [N] int64 caps on the candidates, 0 for none.
        group: [N] int64: which of the batch's groups it is.
    """

    rows: NDArray[Any]
    weights: NDArray[Any]
    log_alpha: NDArray[Any]
    caps: NDArray[Any]
    group: NDArray[Any]

    def to(self, device: torch.device) -> Groups:
        """Return them on the device of the logits; weights that a rule chooses are 0."""
        most = int(self.caps.max())
        return Groups(
            _tensor(self.rows, device),
            _tensor(np.nan_to_num(self.weights), device),
            _tensor(self.log_alpha, device),
            _tensor(self.caps, device) if most else None,
            most,
        )

    def without_gaps(self) -> Self:
        """Return them as the op takes them: amateurs that have ended leave no gap. An expert
        without any is its own amateur: it has candidates, too.
        """
        order = np.argsort(self.rows[:, 1:] < 0, axis=1, kind="stable")
        amateurs = np.take_along_axis(self.rows[:, 1:], order, 1)
        amateurs[:, 0] = np.where(amateurs[:, 0] < 0, self.rows[:, 0], amateurs[:, 0])
        rows = np.concatenate([self.rows[:, :1], amateurs], 1)
        return self._replace(rows=rows, weights=np.take_along_axis(self.weights, order, 1))


def _tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def _values(numbers: Sequence[float | Sequence[float]], amateurs: int) -> NDArray[Any]:
    """Return the values of a parameter: [n, amateurs] if a group has a list of its amateurs', else
    [n, 1].
    """
    if not any(isinstance(number, Sequence) for number in numbers):
        return np.array(numbers, dtype=np.float32)[:, None]
    values = np.zeros((len(numbers), amateurs), dtype=np.float32)
    for row, number in zip(values, numbers, strict=True):
        row[: len(number) if isinstance(number, Sequence) else amateurs] = number
    return values


def _rule_rows(
    host: _Host, streams: Sequence[Stream], device: torch.device
) -> tuple[RuleRows, ...]:
    """Return the groups of each rule, but for those whose amateurs have all ended."""
    if all(stream.settings.rule is None for stream in streams):
        return ()
    by_rule: dict[str, list[int]] = {}
    for row in np.flatnonzero((host.rows[:, 1:] >= 0).any(axis=1)).tolist():
        if (name := streams[host.group[row]].settings.rule) is not None:
            by_rule.setdefault(name, []).append(row)
    rules = []
    for name, at in by_rule.items():
        part = _Host(*(column[at] for column in host))
        experts = [streams[i] for i in part.group.tolist()]
        width = 1 + max(len(stream.amateurs) for stream in experts)
        part = part._replace(rows=part.rows[:, :width], weights=part.weights[:, : width - 1])
        settings = [stream.settings.rule_parameters or {} for stream in experts]
        names = tuple(settings[0])  # what the rule of this process lacks, it will say itself
        parameters = [_values([of_group[key] for of_group in settings], width - 1) for key in names]
        slots = [stream.slot for stream in experts if stream.slot is not None]
        if len(slots) < len(experts):  # then a rule with state fails
            slots = []
        rules.append(
            RuleRows(
                rule=name,
                names=names,
                parameters=tuple(_tensor(values, device) for values in parameters),
                at=_tensor(np.array(at), device),
                indices=tuple(at),
                groups=part.to(device),
                temperatures=_tensor(
                    np.array([stream.temperature for stream in experts], dtype=np.float32), device
                ),
                chooses=_tensor(np.isnan(part.weights), device),
                slots=_tensor(np.array(slots), device) if slots else None,
                num_slots=1 + max(slots, default=-1),
            )
        )
    return tuple(rules)


@dataclass(frozen=True, slots=True)
class GroupRows:
    """The groups of a batch that are scored, in no particular order.

    Attributes:
        streams: Of each group, one of its streams.
        members: Of each group, the positions of its streams in the batch, the expert's first.
        experts: [A] int64, of each amateur the expert's position.
        amateurs: [A] int64, the amateurs' positions.
        host: The rows that are scored and their settings, as arrays of the host.
        ids: Of each row that is written, the group's id; a group's rows in the order of its tokens.
        present: Of each row that is written, the amateurs that are there: bit i for the i-th.
        groups: The rows and settings; None if no group has one.
        rules: Those whose weights are chosen.
    """

    streams: tuple[Stream, ...]
    members: tuple[Sequence[int], ...]
    experts: Tensor
    amateurs: Tensor
    host: _Host
    ids: tuple[str, ...] = ()
    present: tuple[int, ...] = ()
    groups: Groups | None = None
    rules: tuple[RuleRows, ...] = ()

    def _with_rows(self, host: _Host) -> Self:
        """Return these groups with other rows that are written."""
        device, bits = self.experts.device, 1 << np.arange(host.rows.shape[1] - 1)
        return replace(
            self,
            host=host,
            ids=tuple(self.streams[g].group for g in host.group.tolist()),
            present=tuple(((host.rows[:, 1:] >= 0) @ bits).tolist()),
            groups=host.without_gaps().to(device) if len(host.rows) else None,
            rules=_rule_rows(host, self.streams, device),
        )

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
            Statistics of these rows; None if no group has one.
        """
        groups = self.groups
        if groups is None:
            return None
        choices = []
        for rule in self.rules:
            assert steps is not None and states is not None
            chosen = rule.choose(logits, steps, states)
            # Where the op has the weights of amateurs that are there.
            order = (rule.groups.rows[:, 1:] < 0).long().argsort(dim=1, stable=True)
            groups.weights[rule.at, : order.shape[1]] = chosen.weights.gather(1, order)
            choices.append((rule, chosen))
        statistics = torch.empty(len(self.ids), 3, dtype=torch.int64, device=logits.device)
        computed = [(rule, c.scores) for rule, c in choices if c.scores is not None]
        asking = {stream.group for stream in self.streams if stream.explain}
        to_explain = [i for i, group in enumerate(self.ids) if group in asking] if asking else []
        explained: Sequence[Tensor] = ()
        if to_explain:
            most = max(stream.explain for stream in self.streams)
            of_rules = {
                i: row
                for rule, scores in computed
                for i, row in zip(rule.indices, scores, strict=True)
            }
            explained = explain(logits, groups, to_explain, most, of_rules)
        favourites = [logits[rule.groups.rows[:, 0]].argmax(-1) for rule, _ in computed]
        contrastive_scores(logits, groups, inplace=True, statistics=statistics, check=False)
        for (rule, scores), favourite in zip(computed, favourites, strict=True):
            logits[rule.groups.rows[:, 0]] = scores
            changed = (scores.argmax(-1) != favourite).long()
            candidates = (scores > -math.inf).sum(-1)
            statistics[rule.at, :2] = torch.stack([candidates, changed], 1)
        if choices:
            columns = torch.zeros(len(self.ids), 2, dtype=torch.int64, device=logits.device)
            for rule, chosen in choices:
                # Where logits are no numbers, that is the reason, and stays.
                nonfinite = statistics[rule.at, 2]
                problem = torch.where(chosen.failed, RULE_FAILED, 0)
                if chosen.ends is not None:
                    problem = torch.where(chosen.ends, ENDS, problem)
                statistics[rule.at, 2] = torch.where(nonfinite == 0, problem, nonfinite)
                idle = (chosen.weights == 0).all(1) & (chosen.scores is None)
                columns[rule.at] = torch.stack([chosen.done, idle.long()], 1)
            statistics = torch.cat([statistics, columns], 1)
        if drafts is not None:
            rows = groups.rows
            drafted = drafts[torch.where(rows < 0, rows[:, :1], rows)]
            statistics[:, 2].masked_fill_((drafted != drafted[:, :1]).any(1), OTHER_DRAFTS)
        stats = StepStats(self.ids, statistics, self.present, to_explain, explained)
        charges = [(rule, c.charges) for rule, c in choices if c.charges is not None]
        if states is not None:
            states.unsettled = (stats, charges) if charges else None
        return stats

    def tell_amateurs(self, tokens: Tensor | list[Any]) -> None:
        """Copy what each expert got over its amateurs': tokens, drafts, or counts of them.

        On the device, before anything reads them: with async scheduling the next step's input
        comes from there.

        Args:
            tokens: [requests, ...] by position; changed in place.
        """
        if isinstance(tokens, Tensor):
            tokens[self.amateurs] = tokens[self.experts]
            return
        for expert, *amateurs in self.members:
            for amateur in amateurs:
                tokens[amateur] = list(tokens[expert])

    def spread(self, num_rows: Sequence[int] | NDArray[Any]) -> Self:
        """Return the same groups where requests have several rows of logits, or none.

        Args:
            num_rows: Of each position, how many rows it has, which follow those of the position
                before. A group whose streams do not have the same number gets none.
        """
        members = self.host.rows  # [groups, S] positions in the batch, -1 for none
        counts = np.asarray(num_rows, dtype=np.int64)
        first_rows = np.cumsum(counts) - counts  # of each position
        positions = np.where(members < 0, members[:, :1], members)  # the expert's for none
        # [groups] how many rows each of the group's streams has; 0 if they differ.
        of_streams = counts[positions]
        repeats = np.where((of_streams == of_streams[:, :1]).all(1), of_streams[:, 0], 0)
        # Of each row that is written: which group it is of, and which of the group's rows.
        group = np.repeat(np.arange(len(repeats)), repeats)
        nth = np.arange(len(group)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        rows = first_rows[positions[group]] + nth[:, None]
        rows[members[group] < 0] = -1
        return self._with_rows(_Host(rows, *(column[group] for column in self.host[1:])))

    @classmethod
    def match(cls, streams: Iterable[tuple[int, Stream]], device: torch.device) -> Self | None:
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
            host.rows[g, : len(of_group)] = of_group
            host.weights[g, : len(amateurs)] = [
                math.nan if a.weight is None else a.weight for a in amateurs
            ]
            host.log_alpha[g] = math.log(settings.alpha) if settings.alpha else -math.inf
            host.caps[g] = settings.expert_top_k or 0
        members = tuple([at for at in of_group if at >= 0] for of_group, _ in complete)
        pairs = [(expert, a) for expert, *amateurs in members for a in amateurs]
        at = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).to(device, non_blocking=True)
        experts_at, amateurs_at = at[:, 0].contiguous(), at[:, 1].contiguous()
        groups = cls(
            tuple(stream for _, stream in complete), members, experts_at, amateurs_at, host
        )
        return groups._with_rows(host)
