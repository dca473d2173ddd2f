# SPDX-License-Identifier: Apache-2.0
"""One process of ``benchmarks.bench_peers``, which works as ``benchmarks.e2e.worker`` does.

The families: ``llama`` and ``llama-q8`` are llama.cpp, in ``.venv/peers``; ``memory`` reads as many
bytes as the weights have, once for each token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.e2e.jobs import stamped
from benchmarks.e2e.worker import main


class Memory:
    """What no program that reads the weights from memory for each token can be faster than."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch

        self.data = torch.ones(settings["bytes"] // 4)

    def facts(self) -> dict[str, Any]:
        """What is read."""
        import torch

        return {"bytes": self.data.nbytes, "threads": torch.get_num_threads()}

    def run(
        self,
        mode: str,
        prompts: list[list[int]],
        tokens: int,
        own: Sequence[list[list[int]]] = (),
    ) -> dict[str, Any]:
        """As many reads as ``tokens``, whatever the prompts are."""
        times = []
        started = time.perf_counter()
        for _ in range(tokens):
            self.data.sum()
            times.append(time.perf_counter())
        return {**stamped(started, [times]), "tokens": [[0] * tokens], "blocks": None}


def make(settings: dict[str, Any]) -> Any:
    """The worker of a family."""
    if settings["family"].startswith("llama"):
        from benchmarks.peers.llama import Llama

        return Llama(settings)
    return Memory(settings)


if __name__ == "__main__":
    main(make)
