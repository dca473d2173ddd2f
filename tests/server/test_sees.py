# SPDX-License-Identifier: Apache-2.0
"""A small look at images over HTTP, in every run; ``test_images`` has the rest."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import serve
from vllm_cold import Noise

pytestmark = pytest.mark.server

MAKE = """
import sys
from pathlib import Path
from tests.engine import families, media
families.make_model(media.MEDIA["llava-1.5"].model, Path(sys.argv[1]))
"""


def url(image: Any) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def messages(image: Any) -> list[dict[str, Any]]:
    parts = [
        {"type": "image_url", "image_url": {"url": url(image)}},
        {"type": "text", "text": " w21 w22"},
    ]
    return [{"role": "user", "content": parts}]


@pytest.mark.timeout(600)
def test_vcd(tmp_path: Path) -> None:
    """The preset's answers are those against messages with a picture that the client noised, and
    not the model's own.
    """
    from tests.engine.media import Picture

    model = tmp_path / "model"
    subprocess.run(
        [sys.executable, "-c", MAKE, str(model)], cwd=Path(__file__).parents[2], check=True,
        env=os.environ,
    )  # fmt: skip
    arguments = [
        str(model),
        *("--served-model-name", "base", "--dtype", "float32", "--enforce-eager"),
        *("--sampler", "cold", "--cold-without", "system", "--max-model-len", "128"),
        *("--max-num-seqs", "8", "--max-num-batched-tokens", "64", "--skip-mm-profiling"),
        *("--gpu-memory-utilization", "0.2", "--limit-mm-per-prompt", '{"image": 1}'),
    ]
    with serve(tmp_path, arguments) as server:

        def tokens(image: Any, **args: Any) -> list[int]:
            body = {
                **{"model": "base", "messages": messages(image), "max_tokens": 8},
                **{"temperature": 0, "ignore_eos": True, "return_token_ids": True},
                "vllm_xargs": args,
            }
            status, text = server.post("/v1/chat/completions", body)
            assert status == 200, text
            [choice] = json.loads(text)["choices"]
            found: list[int] = choice["token_ids"]
            return found

        pictures = [Picture(seed).make() for seed in range(4)]
        vcd = [tokens(one, cold_preset="vcd") for one in pictures]
        own = [
            tokens(
                one,
                cold_alpha=0.1,
                cold_beta=1,
                cold_amateur_messages=json.dumps(messages(Noise(500)(one))),
            )
            for one in pictures
        ]
        assert vcd == own
        assert vcd != [tokens(one, cold=0) for one in pictures]
        body = {"model": "base", "messages": messages(pictures[0])}
        wrong = body | {"vllm_xargs": {"cold_images": "noise:1000"}}
        status, text = server.post("/v1/chat/completions", wrong)
        assert status == 400 and "cold_images='noise:1000': must be 'none', 'noise:500'" in text
        server.wait_until_idle()
