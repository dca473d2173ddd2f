# SPDX-License-Identifier: Apache-2.0
"""What a rule is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from vllm_cold.rules.statistics import Statistics

LARGEST = 3e38  # rules compute in float32


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that requests may choose.

    Attributes:
        default: Of requests that do not say; None if they must.
        low: The least that is allowed.
        high: The most.
        about: What it is, in a few words.
        integer: Whether it must be one; up to 2**24 float32 holds each.
        each: Whether it is the amateurs' own: a request gives one number for all, or a list of as
            many as it has amateurs.

    Raises:
        ValueError: the default is not allowed.
    """

    default: float | None
    low: float
    high: float
    about: str = ""
    integer: bool = False
    each: bool = False

    def __post_init__(self) -> None:
        if not self.allows(self.least()):
            raise ValueError(f"the default of a parameter, {self.default}, {self.allowed}")

    def least(self) -> float:
        """Return the default, or the least value where there is none."""
        return self.low if self.default is None else self.default

    def allows(self, value: object) -> bool:
        """Whether a request may give this value."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        whole = not self.integer or value == value // 1
        return whole and max(self.low, -LARGEST) <= value <= min(self.high, LARGEST)

    @property
    def allowed(self) -> str:
        """What it allows, for errors."""
        if self.integer:
            return f"must be an integer from {self.low:.0f} to {self.high:.0f}"
        return f"must be a number from {self.low:g} to {self.high:g}"


class Choice(NamedTuple):
    """What a rule with state, or one that retires amateurs, returns.

    Attributes:
        weights: [G, S - 1] float32.
        state: [G, S - 1, K] float32, for the next step; None for a rule without.
        done: [G, S - 1] bool: amateurs that no later step of the group needs, whose weight is 0
            from the next step on; the engine ends them. None for none.
    """

    weights: "Tensor"
    state: "Tensor | None" = None
    done: "Tensor | None" = None


class Scores(NamedTuple):
    """What a rule of scores returns.

    Attributes:
        scores: [G, V] float32, finite or -inf: vLLM divides them by the temperature and samples
            from their softmax, so T ln r of a distribution r. Where all of a group are -inf, its
            answer ends before this token.
        costs: [G, S - 1, V] float32, finite: what each token would cost of each amateur's budget.
            At the next step ``Statistics.paid`` has those of the token that was taken. None for a
            rule that does not charge.
        left: [G, S - 1] float32, finite: what each token may cost at most. With ``costs``.
        limited: [G, S - 1] bool: whether that changed the distribution. With ``costs``.
        state: As in ``Choice``.
        done: As in ``Choice``; an amateur that is done must have no effect on the scores.
    """

    scores: "Tensor"
    costs: "Tensor | None" = None
    left: "Tensor | None" = None
    limited: "Tensor | None" = None
    state: "Tensor | None" = None
    done: "Tensor | None" = None


class Rule:
    """Chooses the weights of the amateurs at each step (``weights``), or computes what is sampled
    from (``scores``): a rule has one of the two. A request names it as its ``rule``.

    It is called once a step for all groups that use it, and computes with tensors alone: no
    ``item()``, ``if`` or shape that depends on their values, so that no device is waited for. It
    must judge each group by itself, with any number of amateurs but for ``amateurs``, and return
    the same for the same rows: each device of an engine calls it. It must not write into its
    arguments, but may into what ``Statistics.logits`` returns. It is tried on made-up groups before
    an engine serves it.

    A rule of scores says all of the distribution: requests that would change it afterwards, by
    top-p, penalties and the like, are refused, and so is speculative decoding.

    Attributes:
        name: What requests call it.
        parameters: What requests may choose, by name (``rule_parameters``).
        amateurs: How many amateurs a request has, all of whose weights it chooses; 0 for any
            number, of which it chooses some.
        state: K, how many float32 numbers of each amateur it keeps from step to step; all are 0
            before a group's first step.
        retires: Whether it may return amateurs as ``done``.
        charges: Whether it returns costs.
        draws: Whether what it promises is of tokens that are drawn: greedy requests are refused.
        mixes: Whether its weights are above 0 where amateurs are to be trusted, so that what the
            expert alone reads is followed less.
    """

    name: ClassVar[str] = ""
    parameters: ClassVar[Mapping[str, Parameter]] = {}
    amateurs: ClassVar[int] = 0
    state: ClassVar[int] = 0
    retires: ClassVar[bool] = False
    charges: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def weights(self, s: "Statistics", p: Any) -> "Tensor | Choice":
        """Return the weights of this step.

        Args:
            s: What is known of the groups.
            p: The parameters by name (``p.threshold``), each [G, 1] float32, or [G, S - 1] where
                ``Parameter.each``.

        Returns:
            [G, S - 1] float32, finite; below 0 to contrast with an amateur. Or a ``Choice``.
        """
        raise NotImplementedError

    def scores(self, s: "Statistics", p: Any) -> "Tensor | Scores":
        """Return what is sampled from at this step.

        Args:
            s: What is known of the groups.
            p: As in ``weights``.

        Returns:
            [G, V] float32, or ``Scores``.
        """
        raise NotImplementedError

    @property
    def is_of_scores(self) -> bool:
        """Whether it computes what is sampled from."""
        return type(self).scores is not Rule.scores

    @property
    def keeps_state(self) -> bool:
        """Whether a step needs something of the one before."""
        return self.state > 0 or self.charges


def by_name(names: Iterable[str], values: "Iterable[Tensor]") -> Any:
    """Return parameters as a rule gets them; it may write into their values."""
    return SimpleNamespace(**dict(zip(names, values, strict=True)))
