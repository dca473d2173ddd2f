# SPDX-License-Identifier: Apache-2.0
"""Groups of streams on models of other families: the engine's tokens equal those of transformers
and peft. They are tiny and random, with random adapters.

What they differ by is what could go wrong with streams of their own length: positions, sliding
windows (the prompts are longer), biases, fused layers, caps on logits. A mixture of experts is
missing: with LoRA it does not run in stock vLLM on a CPU. Some also see, with other positions
(M-RoPE) or embeddings in place of token ids in every step: their texts are contrasted as any.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from tests.engine.families import FAMILIES, GROUPS, RANK
from tests.engine.streams import decode
from tests.naive import Group, Trace, assert_same_tokens
from vllm_cold import Amateur, ColdParams

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
# A bias, caps on logits and sliding windows, fused layers, M-RoPE; a quarter of a minute each.
IN_EVERY_RUN = ("qwen2", "gemma2", "phi3", "qwen2.5-vl")
# How an image stands in a text.
IMAGE = {
    "gemma3-vision": "<start_of_image>",
    "qwen2.5-vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3-vl": "<|vision_start|><|image_pad|><|vision_end|>",
}


@pytest.fixture(scope="module")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one for each family of this run."""
    folder = tmp_path_factory.mktemp("families")
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = {spec.params["family"] for spec in specs if spec and "family" in spec.params}
    # In a process without vLLM.
    command = [sys.executable, "-m", "tests.engine.families", str(folder), *sorted(wanted)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def check(llm: Any, folder: Path, groups: Sequence[Group]) -> None:
    """The engine's tokens equal the reference's, in which the amateurs count."""
    read = json.loads((folder / "traces.json").read_text())
    traces = {name: [Trace(**trace) for trace in many] for name, many in read.items()}
    pairs = zip(traces["groups"], traces["experts"], groups, strict=True)
    unlike = [cold.tokens != plain.tokens for cold, plain, group in pairs if group.amateurs]
    assert sum(unlike) > len(unlike) / 2, "the amateurs make no difference"
    assert_same_tokens(decode(llm, folder, groups), traces["groups"])


@pytest.mark.timeout(600)  # the first one waits for the reference of all
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in IN_EVERY_RUN else pytest.mark.full) for f in FAMILIES],
)
def test_tokens_equal_the_reference(family: str, folders: Path, make_llm: Any) -> None:
    llm = start(make_llm, folders, family)
    check(llm, folders / family, GROUPS)
    if family in IMAGE:
        refuse_an_image(llm, IMAGE[family])


def start(make_llm: Any, folders: Path, family: str, **options: Any) -> Any:
    # What makes prompts of images needs a tokenizer.
    options.setdefault("skip_tokenizer_init", family not in IMAGE)
    return make_llm(
        model=str(folders / family / "model"),
        max_lora_rank=RANK,
        max_loras=2,
        max_num_batched_tokens=64,
        async_scheduling=True,
        **options,
    )


def refuse_an_image(llm: Any, image: str) -> None:
    """A plain request may have one; a contrast is refused, whoever would see it."""
    seen = {"prompt": f"{image} w1", "multi_modal_data": {"image": Image.new("RGB", (56, 56))}}
    for one in (Amateur(prompt=" w2"), Amateur(lora_request=LoRARequest("one", 1, "/one"))):
        with pytest.raises(ValueError, match="CoLD does not support multimodal prompts; send text"):
            llm.generate(seen, ColdParams(amateur=one), use_tqdm=False)
    with pytest.raises(ValueError, match="as a mapping must have a tensor"):
        Amateur(prompt=seen)
    (output,) = llm.generate(seen, SamplingParams(max_tokens=2), use_tqdm=False)
    assert len(output.prompt_token_ids) > 4 and output.outputs[0].token_ids


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", IMAGE)
def test_an_engine_that_loads_the_text_model_alone(
    family: str, folders: Path, make_llm: Any
) -> None:
    limits = {"image": 0} if family == "gemma3-vision" else {"image": 0, "video": 0}
    llm = start(make_llm, folders, family, limit_mm_per_prompt=limits)
    assert not llm.llm_engine.model_config.supports_multimodal_inputs
    check(llm, folders / family, GROUPS)
