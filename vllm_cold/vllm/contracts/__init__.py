# SPDX-License-Identifier: Apache-2.0
"""Checks every place of vLLM that the package relies on; needs no GPU, no model and no engine.

Why: most of these places are internals that vLLM changes without notice. Each has one small
function here, so that a new vLLM fails at a named contract instead of in the middle of a request.
Where a behaviour cannot be seen from a signature, the order of statements in vLLM's source is
compared (as syntax, so that comments and line breaks do not matter).

``check_all()`` gives what is broken for the installed vLLM. A contract holds from version
``since`` up to, not including, ``until``; the versions are those that were read (0.23, 0.32,
0.33), so a place that appeared between 0.23 and 0.32 says 0.32.
"""

# Importing them registers what they check.
from vllm_cold.vllm.contracts import (
    ascend,
    cpu_lora,
    frontend,
    requests,
    scheduler,
    scheduler_output,
    speculation,
    worker,
)
from vllm_cold.vllm.contracts.contract import (
    CONTRACTS,
    Broken,
    Contract,
    ContractBroken,
    Version,
    installed,
    run,
)


def check_all(version: Version | None = None) -> list[Broken]:
    """The contracts that this vLLM breaks.

    Args:
        version: Check what must hold in this version; default: the installed one.
    """
    version = version or installed()
    broken = []
    for contract in CONTRACTS:
        if contract.applies(version):
            try:
                run(contract)
            except ContractBroken as error:
                broken.append(Broken(contract, str(error)))
    return broken


__all__ = [
    "CONTRACTS",
    "Broken",
    "Contract",
    "ContractBroken",
    "Version",
    "ascend",
    "check_all",
    "cpu_lora",
    "frontend",
    "installed",
    "requests",
    "run",
    "scheduler",
    "scheduler_output",
    "speculation",
    "worker",
]
