# SPDX-License-Identifier: Apache-2.0
"""Figures about contrastive decoding on their way from workers to the scheduler and to /metrics.
Imports no vLLM.

There are three stages. A worker's processor makes ``StepStats`` of each step. They hold of each
scored group how many candidates there were, whether contrastive decoding changed the token, and
whether the logits were numbers at all (``RowStats``). The scheduler adds requests, tokens and
groups (``CountersByKind``) and sends them as a ``ColdStats``. The front end makes metrics of these
(``metrics``). Each stage hands over only what is new, so that the next one can add it up. What
clients that ask are told of their tokens goes with them (``explained``).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

# In ``RowStats.nonfinite``, besides 1 and ``OUT_OF_RANGE``.
OTHER_DRAFTS, RULE_FAILED, ENDS = 2, 4, 8


class Explained(NamedTuple):
    """What explains E groups of up to S streams at one position: tensors, or the same as lists.
    In both amateurs that have ended leave no gap, as in ``Groups``.

    Attributes:
        tokens: [E, 2k] int64: the k best by score, then the k that the expert finds most probable,
            each the best first, ties to the lower id; -1 where there are fewer.
        scores: [E, 2k] float32, theirs; -inf for what is no candidate.
        logits: [E, S, 2k] float32, theirs in each stream; -inf where a token is not allowed.
        log_sums: [E, S] float32: ln of the sum of a stream's exp(logit), over the tokens that the
            expert may take.
        weights: [E, S - 1] float32, the amateurs'.
        divergences: [E, S - 1] float32: see ``Statistics.divergence``.
    """

    tokens: Any
    scores: Any
    logits: Any
    log_sums: Any
    weights: Any
    divergences: Any


class RowStats(NamedTuple):
    """Figures of one group at one position: a row of the op's statistics, and what its rule
    chose.

    Attributes:
        candidates: How many tokens the expert finds plausible.
        changed: 1 if another token than the expert's best had the best score.
        nonfinite: 1 if a row of the group held NaN or +inf; then the other two say nothing. 2 if
            the rows follow different drafts. ``OUT_OF_RANGE`` if a row number was, so that
            nobody scored. 4 if the group's rule had no weights or scores for it, 8 if it allows no
            token.
        done: Amateurs that its rule needs no more: bit i for the i-th.
        idle: 1 if its rule gave each amateur the weight 0, or has ended them all.
        present: Amateurs that were there, in bits as ``done``.
        explained: What the group's client is told, as lists; None where it does not ask.
        charges: Of each amateur that the group had at first what the token cost, what was left
            before it, and 1 where that was a limit; None of a rule that does not charge.
    """

    candidates: int
    changed: int
    nonfinite: int
    done: int = 0
    idle: int = 0
    present: int = 0
    explained: Explained | None = None
    charges: Sequence[tuple[float, float, float]] | None = None


class StepStats:
    """Figures of the groups that a worker scored in one step.

    The host does not wait for the device while the step runs. On an accelerator the figures are
    copied asynchronously, and whoever reads or pickles them waits for the copy. That happens after
    the step's tokens have arrived, which were made later, so the copy is done by then.

    Args:
        ids: The group's id of each row of figures. Where drafts are verified, a group has several
            rows, in the order of its tokens.
        statistics: [rows, 3 or 5] int64, the columns of ``RowStats`` up to ``idle``, which the
            device has written or will write; a tensor, or an array as all below when unpickled.
        present: The amateurs that were there, of each row of figures.
        to_explain: The rows whose clients ask for explanations.
        explained: These explanations; empty if nobody asks.
        charges: As ``charge`` takes them; None if no rule charges.
        charged: As it takes them.
    """

    def __init__(
        self,
        ids: tuple[str, ...],
        statistics: Any,
        present: tuple[int, ...],
        to_explain: Sequence[int] = (),
        explained: Sequence[Any] = (),
        charges: Any = None,
        charged: Sequence[int] = (),
    ) -> None:
        self.ids = ids
        self._present = present
        self._to_explain = to_explain
        self._arrives: Any = None  # an event of the device; None for what is there already
        self._tables = [self._to_host(table) for table in (statistics, *explained)]
        self._charges = charges
        self._charged = charged

    def charge(self, charges: Any, charged: Sequence[int]) -> None:
        """Add what the tokens cost that were taken, now that they are known.

        Args:
            charges: [rows, amateurs, 3] float32, as ``RowStats.charges``.
            charged: The rows of groups whose rules charge.
        """
        self._charges, self._charged = self._to_host(charges), charged

    def _to_host(self, table: Any) -> Any:
        if isinstance(table, np.ndarray) or table.device.type == "cpu":
            return table
        host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
        host.copy_(table, non_blocking=True)
        self._arrives = torch.get_device_module(table.device).Event()
        self._arrives.record()
        return host

    def _arrived(self) -> list[Any]:
        if self._arrives is not None:
            self._arrives.synchronize()
        return self._tables

    def figures(self) -> Iterator[tuple[str, RowStats]]:
        """Yield each row's group and figures."""
        rows, *columns = (table.tolist() for table in self._arrived())
        explained = zip(self._to_explain, map(Explained, *columns), strict=True) if columns else ()
        by_row = dict(explained)
        charges = {} if self._charges is None else dict(enumerate(self._charges.tolist()))
        charges = {at: charges[at] for at in self._charged}
        for at, (group, row) in enumerate(zip(self.ids, rows, strict=True)):
            present = self._present[at]
            figures = RowStats(*row)._replace(
                present=present, explained=by_row.get(at), charges=charges.get(at)
            )
            yield group, figures if present else figures._replace(idle=1)

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays: a tensor may be sent as a handle, which somebody has to keep open.
        statistics, *explained = map(np.asarray, self._arrived())
        charges = None if self._charges is None else np.asarray(self._charges)
        return StepStats, (
            self.ids,
            statistics,
            self._present,
            self._to_explain,
            explained,
            charges,
            self._charged,
        )
