# SPDX-License-Identifier: Apache-2.0
"""The blocks about a server: it starts as the pages say, and their clients get from it what the
reference gives. The tiny model and its adapters stand for the reader's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.blocks import block
from tests.naive import NaiveCold
from tests.recipes.page import words
from tests.server.conftest import Server, serve
from tests.vllm_parser import serve_parser

pytestmark = pytest.mark.server

PAGE_URL = "http://localhost:8000"
PROMPT, MAX_TOKENS = "List all users.", 64
ALPHA, BETA = 0.1, 0.5  # of the pages' command
SETTLED = 8  # tokens that the reference must be sure of, or a comparison would say nothing


def serve_words(tiny: Path) -> list[str]:
    """The command of the pages, with the tiny model's paths."""
    return with_tiny(block("docs/serving.md", "serve"), tiny)


def with_tiny(text: str, tiny: Path) -> list[str]:
    """The words of a command, with the tiny model's paths."""
    own = {"MODEL": str(tiny / "model"), "sql=/path/to/sql-adapter": f"sql={tiny / 'one'}"}
    return [own.get(word, word) for word in words(text, {})]


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The pages' server. "chat" is loaded too, as ``ask(cold_amateur="chat")`` wants."""
    program, command, *arguments = serve_words(tiny)
    assert (program, command) == ("vllm", "serve")
    arguments += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    arguments += ["--max-loras", "2", "--lora-modules"]
    arguments += [f"sql={tiny / 'one'}", f"chat={tiny / 'two'}"]
    with serve(tmp_path_factory.mktemp("docs"), arguments) as server:
        yield server


class Texts:
    """The reference's texts for the prompt of the pages."""

    def __init__(self, tiny: Path, naive: NaiveCold) -> None:
        from transformers import AutoTokenizer

        self.naive = naive
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tiny / "model")
        self.ids = self.tokenizer(PROMPT).input_ids

    def begin(self, text: str, **cold: Any) -> bool:
        """Whether ``text`` is what CoLD with these settings gives; without any: "sql" alone."""
        if cold:
            settings: dict[str, Any] = {"alpha": ALPHA, "beta": BETA, **cold}
            trace = self.naive.generate(self.ids, expert="one", max_tokens=MAX_TOKENS, **settings)
        else:
            trace = self.naive.greedy(self.ids, "one", MAX_TOKENS)
        assert trace.settled() >= SETTLED
        right = self.tokenizer.decode(trace.tokens[: trace.settled()], skip_special_tokens=True)
        return text.startswith(right)


@pytest.fixture(scope="module")
def texts(tiny: Path, naive: NaiveCold) -> Texts:
    return Texts(tiny, naive)


def run_python(text: str, server: Server) -> dict[str, Any]:
    """The names that a block leaves, run against this server."""
    assert PAGE_URL in text
    namespace: dict[str, Any] = {}
    exec(compile(text.replace(PAGE_URL, server.url), "block", "exec"), namespace)
    return namespace


def test_ask(server: Server, texts: Texts) -> None:
    """All calls of the block are answered, and do what their comments say."""
    before = server.metric("vllm:request_success_total")
    ask = run_python(block("docs/serving.md", "client"), server)["ask"]
    assert server.metric("vllm:request_success_total") - before == 6
    assert texts.begin(ask(), beta=BETA)
    strong = {"alpha": 0.2, "beta": 1.0, "expert_top_k": 20}
    assert texts.begin(ask(cold_alpha=0.2, cold_beta=1.0, cold_expert_top_k=20), **strong)
    adaptive = ask(cold_beta="adaptive", cold_beta_max=2.0)
    assert texts.begin(adaptive, rule="adaptive", rule_parameters={"beta_max": 2.0})
    assert not texts.begin(adaptive, beta=2.0)
    unsure = ask(cold_beta="mti", cold_rule_parameters='{"tau": 2.0}')
    assert texts.begin(unsure, rule="mti", rule_parameters={"tau": 2.0})
    assert texts.begin(ask(cold_amateur="chat"), amateur="two")
    assert texts.begin(ask(cold=0))


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
    options = serve_words(tiny)[2:]
    by_options = parser.parse_args(options)
    by_file = parser.parse_args([options[0], "--config", str(file)])
    assert vars(by_file) == vars(by_options)
    by_file.model = by_file.model_tag  # as ``vllm serve`` does
    cold = AsyncEngineArgs.from_cli_args(by_file).additional_config["cold"]
    assert cold == {"enabled": True, "alpha": ALPHA, "beta": BETA}


def test_speculation(tiny: Path, texts: Texts, tmp_path: Path) -> None:
    """As the page about it starts a server: the same text, and its drafts are counted once."""
    program, command, *arguments = with_tiny(block("docs/speculation.md", "serve"), tiny)
    assert (program, command) == ("vllm", "serve")
    arguments += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    with serve(tmp_path, arguments) as server:
        answer = server.client.completions.create(
            model="sql",
            prompt=PROMPT,
            temperature=0.0,
            max_tokens=MAX_TOKENS,
            extra_body={"vllm_xargs": {"cold": True, "cold_alpha": ALPHA, "cold_beta": BETA}},
        )
        assert texts.begin(answer.choices[0].text, beta=BETA)
        drafts = server.metric("vllm_cold_draft_tokens_total")
        assert drafts == server.metric("vllm:spec_decode_num_draft_tokens_total") > 0
        right = server.metric("vllm_cold_accepted_draft_tokens_total")
        assert right == server.metric("vllm:spec_decode_num_accepted_tokens_total")
