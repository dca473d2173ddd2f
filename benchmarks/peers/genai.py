# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI in this process: its continuous batching, with the adapter beside the weights.

``python -m benchmarks.peers.genai MODEL TARGET`` converts a model of transformers to the folder
TARGET, with optimum-intel.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.e2e.jobs import MODES, stamped

CACHE_GIB = 2


def convert(model: str, target: str) -> None:
    """Write a model and its tokenizer as OpenVINO's files; the weights stay as they are."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoTokenizer

    made = OVModelForCausalLM.from_pretrained(model, export=True, compile=False, load_in_8bit=False)
    made.save_pretrained(target)
    # The pipeline wants one, though it is given token ids.
    parts = convert_tokenizer(AutoTokenizer.from_pretrained(model), with_detokenizer=True)
    for name, part in zip(("tokenizer", "detokenizer"), parts, strict=True):
        openvino.save_model(part, Path(target) / f"openvino_{name}.xml")


class GenAI:
    """The model of ``settings["openvino"]`` with the adapter of ``settings["adapter"]``."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import openvino_genai as genai

        self.genai, self.settings = genai, settings
        folder = Path(settings["adapter"])
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        self.adapters = genai.AdapterConfig(
            genai.Adapter(folder / "adapter_model.safetensors"),
            config["lora_alpha"] / config["r"],  # its files have no alpha
            mode=genai.AdapterConfig.Mode.MODE_DYNAMIC,
        )
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GIB
        scheduler.max_num_seqs = settings["max_num_seqs"]
        scheduler.max_num_batched_tokens = settings["max_num_seqs"] * settings["context"]
        scheduler.enable_prefix_caching = False
        kind = {"float32": "f32", "bfloat16": "bf16"}[settings["dtype"]]
        self.properties = {"INFERENCE_PRECISION_HINT": kind, "KV_CACHE_PRECISION": kind}
        if "OMP_NUM_THREADS" in os.environ:
            self.properties["INFERENCE_NUM_THREADS"] = int(os.environ["OMP_NUM_THREADS"])
        self.pipeline = genai.ContinuousBatchingPipeline(
            settings["openvino"],
            scheduler,
            "CPU",
            {**self.properties, "adapters": self.adapters},
        )
        self.applied: bool | None = None  # whether the adapter is in force

    def facts(self) -> dict[str, Any]:
        """What OpenVINO is, as far as it matters for speed."""
        return {"openvino_genai": self.genai.get_version(), **self.properties}

    def run(
        self,
        mode: str,
        prompts: list[list[int]],
        tokens: int,
        adapters: int = 1,
        own: Sequence[list[list[int]]] = (),
    ) -> dict[str, Any]:
        """``Naive.run`` for one stream."""
        import numpy as np
        from openvino import Tensor

        expert, amateurs, _ = MODES[mode]
        if adapters != 1 or own or amateurs:
            raise ValueError(f"mode={mode!r}, adapters={adapters}: one adapter, one stream")
        config = self.genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.do_sample, config.ignore_eos = False, True
        config.adapters = self.adapters if expert else self.genai.AdapterConfig()
        if self.applied != bool(expert):
            # Requests that are added leave adapters as the last generate() put them into force.
            config.max_new_tokens = 1
            self.pipeline.generate([Tensor(np.array([prompts[0]], np.int64))], [config])
            config.max_new_tokens, self.applied = tokens, bool(expert)
        got: list[list[int]] = [[] for _ in prompts]
        stamps: list[list[float]] = [[] for _ in prompts]
        started = time.perf_counter()
        handles = [
            self.pipeline.add_request(i, Tensor(np.array([prompt], np.int64)), config)
            for i, prompt in enumerate(prompts)
        ]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter()
            for i, handle in enumerate(handles):
                if handle.can_read():
                    for output in handle.read().values():
                        got[i] += output.generated_ids
                        stamps[i] += [now] * len(output.generated_ids)
        return {**stamped(started, stamps), "tokens": got, "blocks": None}


if __name__ == "__main__":
    convert(*sys.argv[1:])
