# SPDX-License-Identifier: Apache-2.0
"""Drafters for speculative decoding: tiny checkpoints, and an oracle that knows the text.

Each function returns the ``speculative_config`` of ``LLM``; those of drafters with weights write a
checkpoint first. A drafter is built of the target's own weights and drafts what the base model says
next, so that an adapter's text or a contrast agrees with it in part.

EAGLE never sees the prompt's first token, whoever made its weights: after short prompts that costs
some acceptance, which is welcome. vLLM treats the drafts of EAGLE-3 and MTP alike.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.conftest import scheduler
from tests.tiny import SPECIAL_TOKENS


def draft_model(target: Path, tokens: int = 3) -> dict[str, Any]:
    """A model of its own: that of `target`."""
    return {"method": "draft_model", "model": str(target), "num_speculative_tokens": tokens}


def eagle(target: Path, folder: Path, tokens: int = 3) -> dict[str, Any]:
    """EAGLE for a Llama: a layer that adds nothing, as vLLM leaves out the first one's norm, and
    the target's layers after it. The target's hidden states are not used. EAGLE has no last norm,
    which does not change the best token while the target's is one everywhere.
    """
    config = json.loads((target / "config.json").read_text())
    weights = load_file(target / "model.safetensors")
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    # Of a token's embedding and the target's hidden state, beside each other.
    own = {"fc.weight": torch.cat((torch.eye(hidden), torch.zeros(hidden, hidden)), dim=1)}
    for name, weight in weights.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
        if found is None:
            continue
        layer, inner = int(found[1]), found[2]
        own[f"layers.{layer + 1}.{inner}"] = weight
        if layer == 0 and inner != "input_layernorm.weight":
            adds = inner in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            own[f"layers.0.{inner}"] = weight * (0.0 if adds else 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers + 1}))
    save_file(own, folder / "model.safetensors", {"format": "pt"})
    return {"method": "eagle", "model": str(folder), "num_speculative_tokens": tokens}


def ngram(tokens: int = 3, device: bool = False) -> dict[str, Any]:
    """What followed the last two tokens before, or the last three. A random model repeats nothing;
    requests with three ``allowed_token_ids`` do, and then half of the drafts are right.
    """
    if not device:
        bear_numba()
    return {
        "method": "ngram_gpu" if device else "ngram",
        "num_speculative_tokens": tokens,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 3,
    }


def bear_numba() -> None:
    """Let engines start in this process after one has imported numba, which the look-up of n-grams
    on the CPU is compiled by: vLLM looks for its kernels in all that is loaded, and among numba's
    functions are some whose ``__dict__`` is none.
    """
    from vllm.triton_utils import dispatcher

    def names(value: object) -> dict[str, Any]:
        own = vars(value)
        return own if isinstance(own, dict) else {}

    dispatcher.vars = names


def bear_log1p(patch: pytest.MonkeyPatch) -> None:
    """Let V2 reject drafts that were sampled in Triton's interpreter, which has no function of
    libdevice.
    """
    import triton
    import triton.language as tl
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils

    @triton.jit
    def log1p(x):  # type: ignore[no-untyped-def]
        return tl.log(1.0 + x)

    patch.setattr(rejection_sampler_utils, "tldevice", SimpleNamespace(log1p=log1p))


ORACLE = "TEST_ORACLE"
"""The environment variable that names the oracle's file."""


class Oracle:
    """Drafts what follows in texts that it is told, each token spoiled with some probability:
    a drafter for V1's ``custom_class``.

    Whether and how a token is spoiled depends on the text before it alone, so two streams with the
    same tokens get the same drafts.
    """

    def __init__(self, vllm_config: Any) -> None:
        told = json.loads(Path(os.environ[ORACLE]).read_text())
        self._texts: list[list[int]] = told["texts"]
        self._spoiled: float = told["spoiled"]
        self._vocab_size: int = vllm_config.model_config.get_vocab_size()
        self._tokens: int = vllm_config.speculative_config.num_speculative_tokens

    def load_model(self, *args: Any) -> None:
        """Nothing; vLLM's CPU runner calls it without looking whether it is there."""

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: Any,
        token_ids_cpu: Any,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Drafts for the requests that have sampled; as vLLM calls it."""
        return [
            self.draft(token_ids_cpu[i, : num_tokens_no_spec[i]].tolist()) if sampled else []
            for i, sampled in enumerate(sampled_token_ids)
        ]

    def draft(self, text: Sequence[int]) -> list[int]:
        """What comes after `text`; nothing if that is in none of the texts."""
        length = len(text)
        known = (t for t in self._texts if len(t) > length and t[:length] == list(text))
        draft = next(known, [])[length : length + self._tokens]
        return [self._spoil(token, length + i, text) for i, token in enumerate(draft)]

    def _spoil(self, token: int, position: int, text: Sequence[int]) -> int:
        digest = hashlib.sha256(f"{position} {text}".encode()).digest()
        if int.from_bytes(digest[:4]) >= self._spoiled * 2**32:
            return token
        others = self._vocab_size - SPECIAL_TOKENS
        shift = 1 + int.from_bytes(digest[4:8]) % (others - 1)
        return SPECIAL_TOKENS + (token - SPECIAL_TOKENS + shift) % others


def oracle(
    patch: pytest.MonkeyPatch,
    folder: Path,
    texts: Sequence[Sequence[int]],
    tokens: int = 4,
    spoiled: float = 0.3,
    runner: str = "v1",
    as_ngrams: bool = False,
) -> dict[str, Any]:
    """A drafter that knows `texts`, each a prompt with what follows, and spoils each token of its
    drafts with a probability. It writes a file into `folder`. V1 takes it as a class; in V2, which
    refuses those, and `as_ngrams`, it stands in for the one that looks up n-grams, in this process.
    """
    path = folder / "oracle.json"
    path.write_text(json.dumps({"texts": [list(text) for text in texts], "spoiled": spoiled}))
    patch.setenv(ORACLE, str(path))
    if runner == "v1" and as_ngrams:
        from vllm.v1.spec_decode import ngram_proposer

        class Ngrams(Oracle):
            def propose(  # type: ignore[override]
                self, num: int, *args: Any, **kwargs: Any
            ) -> list[list[int]]:
                return super().propose(*args, **kwargs)

        patch.setattr(ngram_proposer, "NgramProposer", Ngrams)
        return ngram(tokens)
    if runner == "v1":
        name = f"{Oracle.__module__}.{Oracle.__qualname__}"
        return {"method": "custom_class", "model": name, "num_speculative_tokens": tokens}
    from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator

    def propose(
        self: Any, input_batch: Any, *args: Any, dummy_run: bool = False, **kwargs: Any
    ) -> Tensor:
        drafts: Tensor = self.drafts[: input_batch.num_reqs]
        if not dummy_run:
            known = self.__dict__.setdefault("_oracle", Oracle(self.vllm_config))
            slots = input_batch.idx_mapping[: input_batch.num_reqs].tolist()
            for row, slot in zip(drafts, slots, strict=True):
                length = int(self.req_states.total_len.gpu[slot])
                text = self.req_states.all_token_ids.gpu[slot, :length].tolist()
                draft = known.draft(text)
                row[:] = SPECIAL_TOKENS  # V2 always takes all of them
                row[: len(draft)] = torch.tensor(draft)
        return drafts

    patch.setattr(NgramGPUSpeculator, "propose", propose)
    return ngram(tokens, device=True)


def counted(llm: Any) -> tuple[int, int]:
    """Drafts of contrastive requests, and those of them that were right."""
    sums = scheduler(llm)._counters.sums.values()
    return sum(s.draft_tokens for s in sums), sum(s.accepted_draft_tokens for s in sums)
