# SPDX-License-Identifier: Apache-2.0
"""llama.cpp in this process: a batch is one ``llama_batch`` with a sequence for each request.

``python -m benchmarks.peers.llama FD``, in ``.venv/peers``, is a worker of ``benchmarks.e2e.pool``.

CoLD takes two contexts on the same weights, one with the adapter and one without: llama.cpp gives
an adapter to a context and not to a sequence. They decode one after the other, and what is chosen
is computed from both contexts' logits in numpy.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.e2e.jobs import ALPHA, MODES, stamped
from benchmarks.e2e.worker import main

Logits = NDArray[np.float32]


def contrast(expert: Logits, amateur: Logits, beta: float, alpha: float = ALPHA) -> list[int]:
    """What CoLD chooses greedily (docs/method.md) for logits [B, V]; [B]."""
    chosen = []
    for e, a in zip(expert, amateur, strict=True):
        candidates = np.flatnonzero(e >= e.max() + math.log(alpha))
        scores = (1 + beta) * e[candidates] - beta * a[candidates]
        chosen.append(int(candidates[scores.argmax()]))
    return chosen


class Context:
    """A llama.cpp context of B sequences, each with its own part of the KV cache."""

    def __init__(self, api: Any, model: Any, lora: Any, batch: int, settings: Any) -> None:
        self.api, self.batch = api, batch
        params = api.llama_context_default_params()
        params.n_ctx = batch * settings["context"]
        params.n_batch = batch * settings["context"]  # a batch's prompts in one call
        params.n_seq_max = batch
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = threads()
        if settings["dtype"] == "float32":
            params.type_k = params.type_v = api.GGML_TYPE_F32
        self.pointer = api.llama_init_from_model(model, params)
        if not self.pointer:
            raise RuntimeError(f"batch={batch}: llama.cpp made no context")
        if lora is not None:
            loras = (type(lora) * 1)(lora)
            if api.llama_set_adapters_lora(self.pointer, loras, 1, (ctypes.c_float * 1)(1.0)):
                raise RuntimeError("llama.cpp did not take the adapter")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self.input = api.llama_batch_init(params.n_batch, 0, 1)
        self.lengths = [0] * batch

    def start(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Forget everything and read the prompts; the logits of the next tokens [B, V]."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.pointer), False)
        self.lengths = [0] * self.batch
        return self.read(prompts)

    def read(self, texts: Sequence[Sequence[int]]) -> Logits:
        """Read more tokens of each sequence; the logits of the next ones [B, V], until the next
        call.
        """
        row, data = 0, self.input
        for sequence, text in enumerate(texts):
            for position, token in enumerate(text, self.lengths[sequence]):
                data.token[row] = token
                data.pos[row] = position
                data.n_seq_id[row] = 1
                data.seq_id[row][0] = sequence
                data.logits[row] = False
                row += 1
            data.logits[row - 1] = True
            self.lengths[sequence] += len(text)
        data.n_tokens = row
        if (status := self.api.llama_decode(self.pointer, data)) != 0:
            raise RuntimeError(f"llama_decode gave {status}")
        logits = self.api.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(logits, (self.batch, self.vocabulary))

    def close(self) -> None:
        """Give the memory back."""
        self.api.llama_batch_free(self.input)
        self.api.llama_free(self.pointer)


class Llama:
    """The model of ``settings["gguf"]`` with the adapter of ``settings["lora_gguf"]``."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import llama_cpp

        self.package, self.api, self.settings = llama_cpp, llama_cpp.llama_cpp, settings
        api = self.api
        api.llama_backend_init()
        path = settings["gguf"][settings["family"]]
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp did not load {path}")
        self.lora = api.llama_adapter_lora_init(self.model, settings["lora_gguf"].encode())
        if not self.lora:
            raise RuntimeError(f"llama.cpp did not load {settings['lora_gguf']}")
        self._contexts: dict[bool, Context] = {}  # by whether it has the adapter

    def facts(self) -> dict[str, Any]:
        """What llama.cpp is, as far as it matters for speed."""
        features = self.api.llama_print_system_info().decode().split("|")
        names = (each.split("=")[0].split(":")[-1].strip() for each in features if "= 1" in each)
        return {
            "llama-cpp-python": self.package.__version__,
            "threads": threads(),
            "KV cache": "float32" if self.settings["dtype"] == "float32" else "float16",
            "built with": " ".join(names),
        }

    def context(self, adapter: bool, batch: int) -> Context:
        """A context of a batch size; those of another size are given up."""
        for key, other in list(self._contexts.items()):
            if other.batch != batch:
                self._contexts.pop(key).close()
        if adapter not in self._contexts:
            lora = self.lora if adapter else None
            self._contexts[adapter] = Context(self.api, self.model, lora, batch, self.settings)
        return self._contexts[adapter]

    def run(
        self,
        mode: str,
        prompts: list[list[int]],
        tokens: int,
        own: Sequence[list[list[int]]] = (),
    ) -> dict[str, Any]:
        """``Naive.run`` for up to one amateur, which reads its expert's prompt."""
        expert, amateurs, beta, _ = MODES[mode]
        if own or amateurs > 1:
            raise ValueError(f"mode={mode!r}: one amateur, which reads its expert's prompt")
        sorts = [expert] + [False] * amateurs
        if len(set(sorts)) < len(sorts):
            raise ValueError(f"mode={mode!r}: the expert needs the adapter")
        contexts = [self.context(adapter, len(prompts)) for adapter in sorts]
        got: list[list[int]] = []
        times = []
        started = time.perf_counter()
        logits = [context.start(prompts) for context in contexts]
        for step in range(tokens):
            if step:
                texts = [[token] for token in got[-1]]
                logits = [context.read(texts) for context in contexts]
            got.append(
                contrast(*logits, float(beta)) if amateurs else logits[0].argmax(-1).tolist()
            )
            times.append(time.perf_counter())
        return {
            **stamped(started, [times] * len(prompts)),
            "tokens": [list(row) for row in zip(*got, strict=True)],
            "blocks": None,
        }


def threads() -> int:
    """As many as torch would take."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    main(Llama)
