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

    Raises:
        ValueError: the default is not allowed.
    """

    default: float | None
    low: float
    high: float
    about: str = ""
    integer: bool = False

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


class Rule:
    """Chooses the weights of the amateurs at each step. A request names it as its ``rule``.

    It is called once a step for all groups that use it, and computes with tensors alone: no
    ``item()``, ``if`` or shape that depends on their values, so that no device is waited for. It
    must judge each group by itself, with any number of amateurs but for ``amateurs``, and return
    the same for the same rows: each device of an engine calls it. It must not write into its
    arguments, but may into what ``Statistics.logits`` returns. It is tried on made-up groups before
    an engine serves it.

    Attributes:
        name: What requests call it.
        parameters: What requests may choose, by name (``rule_parameters``).
        amateurs: How many amateurs a request has, all of whose weights it chooses; 0 for any
            number, of which it chooses some.
        state: K, how many float32 numbers of each amateur it keeps from step to step; all are 0
            before a group's first step.
        retires: Whether it may return amateurs as ``done``.
        mixes: Whether its weights are above 0 where amateurs are to be trusted, so that what the
            expert alone reads is followed less.
    """

    name: ClassVar[str] = ""
    parameters: ClassVar[Mapping[str, Parameter]] = {}
    amateurs: ClassVar[int] = 0
    state: ClassVar[int] = 0
    retires: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def weights(self, s: "Statistics", p: Any) -> "Tensor | Choice":
        """Return the weights of this step.

        Args:
            s: What is known of the groups.
            p: The parameters by name (``p.threshold``), each [G, 1] float32.

        Returns:
            [G, S - 1] float32, finite; below 0 to contrast with an amateur. Or a ``Choice``.
        """
        raise NotImplementedError


def by_name(names: Iterable[str], values: "Tensor") -> Any:
    """Return parameters as a rule gets them, which may write into ``values``, [P, G, 1]."""
    return SimpleNamespace(**dict(zip(names, values.unbind(), strict=True)))
