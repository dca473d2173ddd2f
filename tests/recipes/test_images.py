# SPDX-License-Identifier: Apache-2.0
"""Images as the documentation shows them, and in the tools: a tiny random vision-language model,
real engines, a real server.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import block
from tests.engine.conftest import make_families
from tests.engine.media import Picture as Stripes
from tests.recipes import page
from tests.recipes.recorder import Recorder, record
from tests.server.conftest import Server, serve

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.timeout(900)]

MODEL, PHOTO = "Qwen/Qwen2-VL-2B-Instruct", "cold-example/photo.png"
SMALL: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model and a photo."""
    families = make_families(tmp_path_factory.mktemp("images"), "tests.engine.media", "qwen2-vl")
    (families / "qwen2-vl" / "cold-example").mkdir()
    Stripes(0, 56, 56).make().save(families / "qwen2-vl" / PHOTO)
    return families / "qwen2-vl"


@pytest.fixture(scope="module")
def served(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Recorder, str, Server]]:
    """The recipe's server, and the recorder in front of it."""
    own = {MODEL: str(folder / "model")}
    options = page.served(block("docs/images.md", "image-server"), own)
    options += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    options += ["--gpu-memory-utilization", "0.2"]
    with (
        serve(tmp_path_factory.mktemp("served"), options) as server,
        record(server.port) as (recorder, url),
    ):
        yield recorder, url, server


@pytest.mark.engine
def test_the_command(folder: Path) -> None:
    script = block("docs/explain.md", "image").rstrip() + " --dtype float32 --max-tokens 8"
    assert script.count(MODEL) == 1
    printed = page.run(script.replace(MODEL, str(folder / "model")), folder, {})
    flowing = " ".join(printed.split())
    assert "against base model noise:500, weight -1" in flowing
    assert "[image photo.png, 56 × 56, noise:500]⏎ Is there a dog" in flowing
    assert "base64" not in printed + (folder / "cold-explain.html").read_text()


@pytest.mark.server
def test_the_recipe(
    folder: Path, served: tuple[Recorder, str, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the model's name, and by keys: what explicit requests get."""
    recorder, url, _ = served
    recorder.take()
    monkeypatch.chdir(folder)
    printed = page.run_python(block("docs/images.md", "image-openai"), url)
    first, second = recorder.take()
    assert (first["model"], first["vllm_xargs"]) == ("base:vcd", {})
    url_ = first["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url_.partition(",")[2]) == (folder / PHOTO).read_bytes()

    def said(**xargs: Any) -> str:
        body = {"model": "base", "messages": first["messages"], "max_tokens": 32, "temperature": 0}
        found = recorder.post("/v1/chat/completions", body | {"vllm_xargs": xargs})
        return str(found["choices"][0]["message"]["content"])

    vcd = {"cold_alpha": 0.1, "cold_beta": 1.0}
    noise, none = said(**vcd, cold_images="noise:500"), said(**vcd, cold_without="images")
    assert printed == f"{noise}\n{none}".strip()
    assert len({noise, none, said(cold=0)}) == 3
    assert second["vllm_xargs"] == {"cold_images": "none"}


@pytest.mark.engine
def test_the_offline_block(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vllm
    from PIL import Image

    from vllm_cold import Amateur, Blur, ColdParams, Noise

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.chdir(folder)
    original, made = vllm.LLM, []

    class Small(original):  # type: ignore[misc, valid-type]
        def __init__(self, model: str, **options: Any) -> None:
            super().__init__(model, **SMALL, **options)
            made.append(self)

    monkeypatch.setattr(vllm, "LLM", Small)
    text = block("docs/images.md", "images").replace(MODEL, str(folder / "model"))
    namespace: dict[str, Any] = {}
    exec(compile(text, "block", "exec"), namespace)
    printed = capsys.readouterr().out
    [llm] = made
    question, greedy = namespace["question"], namespace["greedy"]
    photo = Image.open(PHOTO).convert("RGB")

    def chat(*images: Any) -> list[Any]:
        parts = [{"type": "image_pil", "image_pil": image} for image in images]
        return [{"role": "user", "content": [*parts, question]}]

    expected = [
        llm.chat(
            chat(photo),
            ColdParams(beta=1.0, amateur=Amateur(prompt=own), **greedy),
            use_tqdm=False,
        )[0].outputs[0].text
        for own in (chat(Noise(500)(photo)), chat(), chat(Blur(12)(photo)))
    ]  # fmt: skip
    assert "\n".join(expected) in printed
    assert len(set(expected)) == 3
    llm.llm_engine.engine_core.shutdown()
