# SPDX-License-Identifier: Apache-2.0
"""A contract: one thing that the package relies on in vLLM, and its check."""

from collections.abc import Callable
from dataclasses import dataclass

from vllm_cold.vllm import versions

Version = tuple[int, int]


class ContractBroken(Exception):
    """One sentence that names what broke."""


@dataclass(frozen=True, slots=True)
class Contract:
    """One place of vLLM that the package relies on.

    Attributes:
        name: Of the contract, and of its test.
        where: The place in vLLM.
        why: What fails without it.
        since: First version that it must hold in.
        until: First version in which it need not hold any more, None if there is none yet.
        check: Raises ContractBroken.
        note: True if nothing fails when it is broken, but somebody should look.
        speculation: Whether engines with speculative decoding alone rely on it.
    """

    name: str
    where: str
    why: str
    since: Version
    until: Version | None
    check: Callable[[], None]
    note: bool = False
    speculation: bool = False

    def applies(self, version: Version) -> bool:
        """Whether it must hold in this version of vLLM."""
        return self.since <= version and (self.until is None or version < self.until)


@dataclass(frozen=True, slots=True)
class Broken:
    """A contract that does not hold, and the sentence that says why."""

    contract: Contract
    reason: str


CONTRACTS: list[Contract] = []


def installed() -> Version:
    """Major and minor version of the vLLM that is imported; the newest supported one where it is
    not one of those, as in a checkout without tags.
    """
    import vllm

    text = getattr(vllm, "__version__", "") or versions.vllm_version()
    if versions.in_supported_range(text):
        major, minor = text.split(".")[:2]
        return int(major), int(minor)
    major_below, minor_below = versions.SUPPORTED[1]
    return major_below, minor_below - 1


def run(contract: Contract) -> None:
    """Check one contract.

    Raises:
        ContractBroken: it does not hold, or vLLM's code cannot even be looked at.
    """
    try:
        contract.check()
    except ContractBroken:
        raise
    except Exception as error:
        raise ContractBroken(
            f"{contract.where} could not be checked ({type(error).__name__}: {error})."
        ) from error


def contract(
    where: str,
    why: str,
    since: Version = (0, 23),
    until: Version | None = None,
    note: bool = False,
    speculation: bool = False,
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a check; the arguments are those of ``Contract``."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        name = check.__name__.removeprefix("_check_")
        CONTRACTS.append(Contract(name, where, why, since, until, check, note, speculation))
        return check

    return register
