# SPDX-License-Identifier: Apache-2.0
"""The pages' commands of servers, with the tiny model and its adapters in place of the reader's.
(Clients' blocks are in ``tests/server``.)
"""

from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import block
from tests.naive import NaiveCold
from tests.recipes.page import served
from tests.server.conftest import serve
from tests.vllm_parser import serve_parser

pytestmark = pytest.mark.server

ALPHA, BETA = 0.1, 0.5  # of the pages' command


def with_tiny(text: str, tiny: Path) -> list[str]:
    """The words of a command, with the tiny model's paths."""
    own = {"MODEL": str(tiny / "model"), "sql=/path/to/sql-adapter": f"sql={tiny / 'one'}"}
    return served(text, own)


def test_yaml_file_is_the_same_as_the_options(tiny: Path, tmp_path: Path) -> None:
    """vLLM's own parser reads both."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    settings = yaml.safe_load(block("docs/serving.md", "config"))
    assert settings["lora-modules"] == ["sql=/path/to/sql-adapter"]
    file = tmp_path / "server.yaml"
    text = block("docs/serving.md", "config").replace("/path/to/sql-adapter", str(tiny / "one"))
    file.write_text(text)
    parser = serve_parser()
    options = with_tiny(block("docs/serving.md", "serve"), tiny)
    by_options = parser.parse_args(options)
    by_file = parser.parse_args([options[0], "--config", str(file)])
    assert vars(by_file) == vars(by_options)
    by_file.model = by_file.model_tag  # as ``vllm serve`` does
    cold = AsyncEngineArgs.from_cli_args(by_file).additional_config["cold"]
    assert cold == {"enabled": True, "alpha": ALPHA, "beta": BETA}


@pytest.mark.full
def test_speculation(tiny: Path, naive: NaiveCold, tmp_path: Path) -> None:
    """As the page about it starts a server: the same tokens, and its drafts are counted once."""
    arguments = with_tiny(block("docs/speculation.md", "serve"), tiny)
    arguments += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    prompt = list(range(20, 60))
    expected = naive.generate(prompt, expert="one", alpha=ALPHA, beta=BETA, max_tokens=64)
    with serve(tmp_path, arguments) as server:
        xargs = {"cold": True, "cold_alpha": ALPHA, "cold_beta": BETA}
        answer = server.client.completions.create(
            model="sql",
            prompt=prompt,
            temperature=0.0,
            max_tokens=64,
            extra_body={"vllm_xargs": xargs, "return_token_ids": True},
        )
        sure = expected.settled()
        assert sure >= 8
        assert answer.choices[0].token_ids[:sure] == expected.tokens[:sure]  # type: ignore[attr-defined]
        drafts = server.metric("vllm:cold_draft_tokens_total")
        assert drafts == server.metric("vllm:spec_decode_num_draft_tokens_total") > 0
        right = server.metric("vllm:cold_accepted_draft_tokens_total")
        assert right == server.metric("vllm:spec_decode_num_accepted_tokens_total")
