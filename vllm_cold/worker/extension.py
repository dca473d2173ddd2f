# SPDX-License-Identifier: Apache-2.0
"""vLLM's public hook for extensions of a worker (``worker_extension_cls``), by which a model runner
gets what ``runner_hooks`` has. An engine's own extension stays, behind this one.
"""

from functools import partial
from typing import Any

from vllm_cold.compat.engine import CHAINED
from vllm_cold.compat.patching import named
from vllm_cold.worker import runner_hooks


class ColdWorkerExtension:
    """Extends the runner of each worker of an engine with contrastive decoding."""

    def init_worker_extension(self) -> None:
        """Extend the worker's runner; vLLM calls it when the device is ready, before it loads the
        model.
        """
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        method = type(runner).initialize_kv_cache
        runner.initialize_kv_cache = partial(runner_hooks.wrap_initialize_kv_cache, method, runner)
        if (of_user := getattr(super(), "init_worker_extension", None)) is not None:
            of_user()


def __getattr__(name: str) -> type:
    """Return the class that ``compat.engine.chained_extension`` names: vLLM asks for it as an
    attribute of this module.
    """
    if not name.startswith(CHAINED):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, of_user = name.removeprefix(CHAINED).rpartition(":")
    made = type(name, (ColdWorkerExtension, named(f"{module.replace(':', '.')}:{of_user}")), {})
    globals()[name] = made  # vLLM asks whether a worker has it already
    return made
