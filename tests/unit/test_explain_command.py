# SPDX-License-Identifier: Apache-2.0
"""The command line of ``vllm-cold explain``: its options, its errors and a server's odd answers."""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import loopback
from tests.asked import asked
from vllm_cold.tools import explain
from vllm_cold.tools.contrast import read_contrast
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.explain import offline
from vllm_cold.tools.explain.command import amateur_paths, ask_all, check_page, run
from vllm_cold.tools.explain.offline import OfflineSource
from vllm_cold.tools.explain.prompts import Asked, read_prompts
from vllm_cold.tools.explain.server import ServerSource
from vllm_cold.tools.explain.sources import Decoded
from vllm_cold.tools.explain.trace import Logprob

pytestmark = pytest.mark.unit


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    explain.add_parser(parser.add_subparsers())
    return parser.parse_args(["explain", *arguments])


def test_the_parser_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from vllm_cold.tools import explain; "
        "explain.add_parser(argparse.ArgumentParser().add_subparsers()); "
        "print(sorted({'vllm', 'torch', 'jinja2', 'rich', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


WRONG: dict[str, tuple[list[str], str]] = {
    "alpha": (["--alpha", "-1"], r"--alpha=-1.0: must be a number in \[0, 1\]"),
    "beta": (["--beta", "-1"], "--beta=-1.0: must be a number >= 0"),
    "beta text": (["--beta", "half"], "--beta='half': must be a number >= 0, .* or 'adaptive'$"),
    "beta max": (["--beta-max", "2"], "--beta-max=2.0: is for an adaptive beta, and beta is 0.5;"),
    "beta max range": (
        ["--beta", "adaptive", "--beta-max", "-1"],
        "--beta-max=-1.0: must be a number >= 0, at most 1e6$",
    ),
    "cap": (["--expert-top-k", "0"], "--expert-top-k=0: must be an integer from 1"),
    "tokens": (["--max-tokens", "0"], "--max-tokens=0: must be >= 1"),
    "candidates": (["--candidates", "21"], "--candidates=21: at most 20"),
    "html": (["--html", "no/such/page.html"], "--html=no/such/page.html: no such folder"),
    "html folder": (["--html", "."], r"--html=.: cannot be written \(Is a directory\)"),
    "html device": (["--html", "/proc/page.html"], "--html=/proc/page.html: cannot be written"),
    "model": ([], "--model is missing"),
    "model path": (["--model", "./nothing"], "--model='./nothing': no config.json there"),
    "url": (["--url", "localhost:8000"], "--url=localhost:8000: must be like http://"),
    "url port": (["--url", "http://localhost:abc"], "--url=http://localhost:abc: must be like"),
    "url port range": (["--url", "http://localhost:70000"], "must be like http://"),
    "url bracket": (["--url", "http://[::1"], r"--url=http://\[::1: must be like http://"),
    "url name": (["--url", "http://\u00fc..x"], "--url=http://\u00fc..x: must be like http://"),
    "url dots": (["--url", "http://a..b"], "--url=http://a..b: must be like http://"),
    "url sign": (["--url", "http://\u2603.net"], "must be like http://"),
    "url host": (["--url", "http://:8000"], "--url=http://:8000: must be like http://"),
    "url with dtype": (
        ["--url", "http://localhost:9", "--dtype", "auto"],
        "^--dtype: is for an engine in this process, and --url asks a server that is running",
    ),
    "url with length": (["--url", "http://localhost:9", "--max-model-len", "9"], "^--max-model-l"),
    "url with memory": (
        ["--url", "http://localhost:9", "--gpu-memory-utilization", "0.5"],
        "^--gpu-memory-utilization: is for an engine",
    ),
    "url with eager": (["--url", "http://localhost:9", "--enforce-eager"], "^--enforce-eager: is"),
    "url without eager": (["--url", "http://localhost:9", "--no-enforce-eager"], "^--no-enforce-"),
    "key": (["--model", "m", "--api-key", "hush"], "^--api-key: is for a server; add --url, or"),
    "insecure": (["--model", "m", "--insecure-http"], "^--insecure-http: is for a server; add --u"),
    "nobody": (["--url", "http://127.0.0.1:9"], "no server can be reached there"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(case: str) -> None:
    arguments, message = WRONG[case]
    with pytest.raises(ToolError, match=message):
        run(parse("--prompt", "x", "--adapter", "one", *arguments))


def test_beta_is_a_number_or_adaptive() -> None:
    assert parse("--prompt", "x", "--adapter", "one", "--beta", "2").beta == 2.0
    assert parse("--prompt", "x", "--adapter", "one", "--beta", "adaptive").beta == "adaptive"


def test_the_prompt_is_wanted_once(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([], "one of the arguments --prompt --prompts --serve is required"),
        (["--prompt", "a", "--prompts", "b"], "--prompts: not allowed with argument --prompt"),
    ):
        with pytest.raises(SystemExit):
            parse("--adapter", "one", *arguments)
        assert said in capsys.readouterr().err
    with pytest.raises(ToolError, match="--prompt: is empty"):
        run(parse("--adapter", "one", "--prompt", ""))


def test_prompts_that_are_no_text(tmp_path: Path) -> None:
    """As a shell hands over bytes that are not UTF-8, and as JSON can spell them."""
    with pytest.raises(ToolError, match="--prompt: is no UTF-8 text"):
        run(parse("--adapter", "one", "--prompt", b"\xff".decode(errors="surrogateescape")))
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "\\ud83d\\ude00"}\n{"prompt": "\\ud800"}\n')
    with pytest.raises(ToolError, match="line 3: prompt: has half a surrogate pair"):
        read_prompts(file)


def test_looking_whether_the_page_can_be_written_leaves_all_as_it_is(tmp_path: Path) -> None:
    link, target, old = tmp_path / "link.html", tmp_path / "target.html", tmp_path / "old.html"
    link.symlink_to(target)
    old.write_text("old")
    for path in (link, tmp_path / "new.html", old):
        check_page(path)
    assert link.is_symlink() and old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "old.html"]


def test_a_password_in_the_address_is_shown_nowhere(fake: str) -> None:
    url = fake.replace("//", "//user:sec@ret@")
    assert "ret" not in ServerSource(url, "one").description.source
    Fake.answers["models"] = (500, "{}")
    for wrong in (
        url,
        "http://user:sec@ret@127.0.0.1:9",
        "user:sec@ret@host",
        "http://u:sec@ret@h:x",
    ):
        with pytest.raises(ToolError, match="--url=") as error:
            ServerSource(wrong, "one")
        assert "ret" not in str(error.value) and "sec" not in str(error.value)


def test_a_key_is_sent_only_where_it_is_given(
    fake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: hush")

    def sent(*more: str) -> set[str]:
        """What the server was given as key, by the command."""
        Fake.headers_seen.clear()
        options = ["--prompt", "x", "--adapter", "one", "--html", str(tmp_path / "x"), *more]
        with pytest.raises(ToolError, match="does not return choices.0.prompt_token_ids"):
            run(parse("--url", fake, *options))
        assert len(Fake.headers_seen) > 2 and "hush" not in str(Fake.headers_seen)
        return {headers["authorization"] for headers in Fake.headers_seen}

    assert sent() == {"Bearer none"}
    monkeypatch.setenv("COLD_API_KEY", "")
    assert sent() == {"Bearer none"}
    monkeypatch.setenv("COLD_API_KEY", "mine")
    assert sent() == {"Bearer mine"}
    assert sent("--api-key", "other") == {"Bearer other"}
    assert os.environ["OPENAI_API_KEY"] == "hush"  # the client alone does not see it


def refusal(url: str, key: str | None, insecure_http: bool = False) -> str:
    with pytest.raises(ToolError) as error:
        ServerSource(url, "one", api_key=key, insecure_http=insecure_http)
    assert "hush" not in str(error.value)
    return str(error.value)


def test_a_key_does_not_cross_the_network_unencrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: ServerSource) -> None:
        raise ToolError("asked")

    monkeypatch.setattr(ServerSource, "_list_models", no_network)
    monkeypatch.delenv("COLD_API_KEY", raising=False)
    said = (
        "--url=http://example.com: a key or password would cross the network unencrypted; use "
        "https://, or --insecure-http to send it all the same"
    )
    assert refusal("http://example.com", "hush") == said
    assert refusal("http://user:hush@example.com", None) == said
    for url in (
        "HTTP://192.0.2.1:8000/v1",
        "http://0.0.0.0:8000",
        "http://localhost.example.com",
        "http://localhost@example.com",
        "http://127.0.0.1@example.com",
        "http://[2001:db8::1]:8000",
    ):
        assert "would cross the network unencrypted" in refusal(url, "hush"), url
        assert refusal(url, "hush", insecure_http=True) == "asked"
    for url in (
        "http://localhost:8000",
        "http://127.0.0.1:8000/v1",
        "http://127.9.9.9",
        "http://[::1]:8000",
        "http://user:hush@localhost",
        "https://example.com",
        "https://user:hush@example.com",
    ):
        assert refusal(url, "hush") == "asked", url
    assert refusal("http://example.com", None) == "asked"
    monkeypatch.setenv("COLD_API_KEY", "hush")
    assert refusal("http://example.com", None) == said


def test_a_key_stands_in_no_message(fake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("hush hush", "hush\n", "hush\u00e9", ""):
        assert refusal(fake, key).startswith("--api-key: an API key has ASCII characters")
    monkeypatch.setenv("COLD_API_KEY", "hush\n")
    assert refusal(fake, None).startswith("COLD_API_KEY: an API key has ASCII characters")
    Fake.answers["models"] = (403, '{"error": {"message": "hush may not"}}')
    assert refusal(fake, "hush") == f"--url={fake}: HTTP 403: ... may not"
    Fake.answers["models"] = (401, '{"error": {"message": "hush is wrong"}}')
    said = "API key; set COLD_API_KEY, or give --api-key"
    assert refusal(fake, "hush") == f"--url={fake}: wants another {said}"
    monkeypatch.delenv("COLD_API_KEY")
    assert refusal(fake, None) == f"--url={fake}: wants an {said}"


@pytest.mark.parametrize(
    ("given", "seen"), [({}, "1"), ({"gpu_memory_utilization": 0.5}, None)], ids=["none", "share"]
)
def test_the_share_of_memory_counts_on_cpu_too(
    given: dict[str, float], seen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM does not look at it where VLLM_CPU_KVCACHE_SPACE is set."""
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')

    def start(model: str, **options: Any) -> None:
        raise ToolError(f"{os.environ.get('VLLM_CPU_KVCACHE_SPACE')} {options['enforce_eager']}")

    monkeypatch.setattr(offline, "start_llm", start)
    monkeypatch.setattr(offline, "prepare_environment", lambda: None)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "")  # put back afterwards
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    with pytest.raises(ToolError, match=f"^{seen} True$"):
        OfflineSource("org/model", str(tmp_path), enforce_eager=None, **given)


def test_an_engine_that_fails_is_a_sentence() -> None:
    def generate(*_: Any, **__: Any) -> None:
        raise RuntimeError("CoLD: the logits hold NaN")

    source = object.__new__(OfflineSource)
    source.llm = SimpleNamespace(generate=generate)
    with pytest.raises(ToolError, match="the engine failed while it decoded.*hold NaN"):
        source._generate([[1]], None, None)


def test_prompt_files(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text("first\n\n  second\n", encoding="utf-8")
    assert [row.prompt for row in read_prompts(lines)] == ["first", "  second"]
    objects = tmp_path / "prompts.jsonl"
    objects.write_text(
        '\ufeff{"prompt": "a\\nb", "id": 1}\r\n\n{"prompt": "c\u2028d"}\n', encoding="utf-8"
    )
    assert [row.prompt for row in read_prompts(objects)] == ["a\nb", "c\u2028d"]
    for text, message in (
        ('{"prompt": "a"}\n{"text": "b"}\n', 'line 2: needs either "prompt" or "messages"'),
        ('["prompt"]\n', "line 1: must be an object such as"),
        ('{"prompt": 3}\n', "line 1: prompt: Input should be a valid string"),
        ('{"prompt": "a"\n', "line 1: not JSON .* at column"),
        ("[" * 100_000 + "\n", "line 1: not JSON .nested too deeply"),
        ("\n", "holds no prompt; put one on each line"),
        ('{"prompt": "a"}\n' * 51, "holds 51 prompts; one page takes up to 50"),
    ):
        objects.write_text(text)
        with pytest.raises(ToolError, match=message):
            read_prompts(objects)
    with pytest.raises(ToolError, match=r"cannot be read \(No such file"):
        read_prompts(tmp_path / "nothing")
    objects.write_bytes(b"\xff\xfe")
    with pytest.raises(ToolError, match="is no UTF-8 text"):
        read_prompts(objects)


class Fake(loopback.Answering):
    """A server that knows two models and answers completions as ``answers`` says."""

    answers: dict[str, Any] = {}
    headers_seen: list[dict[str, str]] = []
    bodies: list[tuple[str, Any]] = []

    def do_GET(self) -> None:
        self.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
        if "models" in self.answers:
            status, text = self.answers["models"]
            self.send_text(status, text)
            return
        cards = [
            {"id": "base", "object": "model", "parent": None, "max_model_len": 256},
            {"id": "one", "object": "model", "parent": "base"},
        ]
        self.send(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        self.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
        body = self.body()
        self.bodies.append((self.path, body))
        wants = (body.get("vllm_xargs") or {}).get("cold_alpha")
        if wants == -1 and self.answers["plugin"]:
            message = "cold_alpha=-1: must be a number in [0, 1]"
            self.send(400, {"error": {"message": message, "code": 400}})
        elif body.get("prompt_logprobs", 0) > self.answers.get("max_logprobs", 20):
            message = "Requested prompt logprobs of 256, which is greater than max allowed: 7"
            self.send(400, {"error": {"message": message, "code": 400}})
        elif self.path.endswith("/chat/completions") and "chat" in self.answers:
            self.send(200, self.answers["chat"])
        elif "text" in self.answers:
            self.send_text(200, self.answers["text"])
        else:
            choice = {"index": 0, "text": "", "finish_reason": "length"}
            choices = self.answers.get("choices", [choice])
            self.send(200, {"id": "x", "object": "text_completion", "choices": choices})


@pytest.fixture
def fake() -> Iterator[str]:
    Fake.answers = {"plugin": True}
    with loopback.serving(Fake) as address:
        yield address


def test_names_that_the_server_does_not_have(fake: str) -> None:
    for options, message in (
        ({"adapter": "two"}, r"--adapter=two: no such adapter on the server \(loaded: one\)"),
        ({"adapter": "base"}, r"--adapter=base: no such adapter"),
        ({"adapter": "one", "amateurs": ["two"]}, r"--amateur=two: no such adapter"),
        ({"adapter": "one", "amateurs": ["one"]}, "--amateur=one: must differ"),
        ({"adapter": "one", "model": "other"}, r"--model=other: no such base .*\(there are: base"),
    ):
        with pytest.raises(ToolError, match=message):
            ServerSource(fake, **options)
    source = ServerSource(f"{fake}/v1/", "one")
    assert source.description.model == "base"
    assert source.max_model_len == 256


@pytest.mark.parametrize(
    "answer",
    [
        (404, "not here"),
        (200, "<html></html>"),
        (200, "{}"),
        (200, "[1]"),
        (200, '{"data": [1]}'),
        (200, '{"data": [{"id": "one", "parent": "base", "max_model_len": "long"}]}'),
    ],
)
def test_something_else_than_vllm(answer: tuple[int, str], fake: str) -> None:
    Fake.answers["models"] = answer
    with pytest.raises(ToolError, match="what answers there is no vLLM server"):
        ServerSource(fake, "one")


def test_a_server_that_fails(fake: str) -> None:
    Fake.answers["models"] = (500, '{"error": {"message": "out of order"}}')
    with pytest.raises(ToolError, match="HTTP 500: out of order"):
        ServerSource(fake, "one")


def test_a_server_without_the_plugin_is_found_out(fake: str) -> None:
    Fake.answers["plugin"] = False
    with pytest.raises(ToolError, match="this server ignores cold_alpha, so vllm-cold is not act"):
        ServerSource(fake, "one")


def test_what_the_server_allows_is_found_out(fake: str) -> None:
    assert ServerSource(fake, "one").largest_top() == 7


def test_an_older_server_that_ignores_named_tokens(fake: str) -> None:
    """It answers with its own choice of tokens: what was asked for is missing, not made up."""
    source = ServerSource(fake, "one")
    for tops, expected in (
        ([{"token_id:5": -0.5, "token_id:6": -9999.0}], {5: -0.5, 6: -math.inf}),
        ([None], {}),
        ([], {}),
    ):
        Fake.answers["choices"] = [{"index": 0, "logprobs": {"top_logprobs": tops}}]
        assert source.look_up(None, [([1], [7])]) == [expected]


def test_a_servers_answers_are_read(fake: str) -> None:
    """Choices in any order, for texts in theirs."""
    source = ServerSource(fake, "one")
    written = {"text": "a", "finish_reason": "stop", "token_ids": [4, 2], "stop_reason": None}
    row = {
        "5": {"logprob": -0.5, "rank": 1, "decoded_token": " a"},
        "6": {"logprob": -9999.0, "rank": 9, "decoded_token": None},
    }
    Fake.answers["choices"] = [
        {"index": 1, **written, "text": "b", "prompt_logprobs": [None]},
        {"index": 0, **written, "prompt_token_ids": [1, 2], "prompt_logprobs": [None, row]},
    ]
    found = source.greedy([[1], [2]], 2)
    assert found == [Decoded((4, 2), "a", "stop"), Decoded((4, 2), "b", "stop")]
    rows = source.score("one", [[1, 2], [1]], 2)
    assert rows == [[{5: Logprob(-0.5, " a"), 6: Logprob(-math.inf, "")}], []]
    del Fake.answers["choices"][0]
    assert source.read(asked(["x"]))[0].streams[0].ids == (1, 2)


ASKS: dict[str, Callable[[ServerSource], object]] = {
    "encode": lambda source: source.read(asked(["x"])),
    "chat": lambda source: source.read(asked(["x"], chat=True)),
    "decode": lambda source: source.greedy([[1]], 1),
    "score": lambda source: source.score("one", [[1, 2]], 3),
    "look up": lambda source: source.look_up("one", [([1], [2])]),
}


@pytest.mark.parametrize(
    ("ask", "fields", "what"),
    [
        ("encode", {}, "choices.0.prompt_token_ids"),
        ("encode", {"prompt_token_ids": None}, "choices.0.prompt_token_ids"),
        ("chat", {}, "prompt_token_ids"),
        ("decode", {"finish_reason": "stop"}, "choices.0.token_ids"),
        ("decode", {"finish_reason": None, "token_ids": [1]}, "choices.0.finish_reason"),
        ("score", {}, "choices.0.prompt_logprobs"),
        (
            "score",
            {"prompt_logprobs": [None, {"5": {"logprob": "high", "decoded_token": "a"}}]},
            "choices.0.prompt_logprobs.1.5.logprob",
        ),
        ("look up", {"logprobs": None}, "choices.0.logprobs"),
        ("look up", {"logprobs": {"top_logprobs": [{"a": -1}]}}, "choices.0.logprobs.top_logp.*"),
    ],
)
def test_what_a_server_does_not_return_is_named(
    ask: str, fields: dict[str, Any], what: str, fake: str
) -> None:
    source = ServerSource(fake, "one")
    Fake.answers["choices"] = [{"index": 0, "text": "", **fields}]
    said = (
        f"--url={fake}: the server does not return {what} as vLLM does; vLLM 0.23 or newer is "
        "needed, without a proxy that strips fields"
    )
    with pytest.raises(ToolError, match=f"^{said}$"):
        ASKS[ask](source)


def test_a_reply_that_is_no_json_is_named(fake: str) -> None:
    source = ServerSource(fake, "one")
    Fake.answers["text"] = "<html></html>"
    with pytest.raises(ToolError, match="the server does not return JSON as vLLM does"):
        source.score("one", [[1, 2]], 3)
    Fake.answers = {"plugin": True, "choices": []}
    with pytest.raises(ToolError, match="the server does not return choices as vLLM does"):
        source.read(asked(["x"]))


def asks(*arguments: str) -> list[Asked]:
    return ask_all(parse(*arguments))


def test_the_options_are_what_a_client_would_send(tmp_path: Path) -> None:
    [one] = asks("--url", "u", "--prompt", "xy", "--part", "0:1", "--weights", "-0.5")
    assert one.args == {"cold_part": "0:1", "cold_weights": -0.5}
    [one] = asks(
        *("--url", "u", "--adapter", "a", "--prompt", "x", "--chat", "--alpha", "0.2"),
        *("--amateur", "", "--amateur", "b", "--amateur-prompt", "y", "--amateur-prompt", ""),
        *("--weights", "-0.5", "--weights", "adaptive"),
    )
    assert one.args == {
        "cold_alpha": 0.2,
        "cold_amateur": ["", "b"],
        "cold_amateur_prompt": ["y", ""],
        "cold_weights": [-0.5, "adaptive"],
    }
    assert one.chat
    # A preset's values are not overridden by what nobody said.
    [one] = asks("--model", "m", "--prompt", "xy", "--part", "0:1", "--preset", "cad")
    assert (one.contrast.settings.alpha, one.contrast.settings.beta) == (0.0, 0.5)
    [one] = asks(
        "--model", "m", "--prompt", "xy", "--part", "0:1", "--preset", "cad", "--alpha", "0.3"
    )
    assert (one.contrast.settings.alpha, one.contrast.settings.beta) == (0.3, 0.5)
    # Nor has a preset's beta a use beside a weight, or its most.
    adacad = ("--part", "0:1", "--preset", "adacad", "--weights", "-0.5")
    [one] = asks("--model", "m", "--prompt", "xy", *adacad)
    assert one.contrast.settings.as_dict() == {"alpha": 0.0, "beta": 0.5}
    # A part for each amateur, which has the adapter of its expert.
    parts = ("--part", "0:1", "--part", "1:2", "--amateur", "", "--amateur", "")
    [one] = asks("--model", "m", "--prompt", "xy", *parts)
    assert [str(amateur.source) for amateur in one.contrast.amateurs] == [
        "without 0:1", "without 1:2",
    ]  # fmt: skip
    # Adapters are named, the base model and none at all are not.
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    paths = ("--amateur", "m", "--amateur", f"sql={tmp_path}", "--amateur", "")
    prompts = ("--amateur-prompt", "y", "--amateur-prompt", "", "--amateur-prompt", "z")
    [one] = asks("--model", "m", "--prompt", "xy", *paths, *prompts)
    assert one.args["cold_amateur"] == ["m", "sql", ""]
    assert amateur_paths(parse("--model", "m", "--prompt", "xy", *paths)) == [f"sql={tmp_path}"]


def test_rows_say_what_their_amateurs_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows: list[dict[str, Any]] = [
        {"messages": messages},
        {"messages": messages, "cold_amateur_messages": messages[1:], "id": 3},
        {"prompt": "xy", "cold_part": [0, 1]},
        {"prompt": "xy", "cold_amateur_prompt": ["a", "b"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--url", "u", "--prompts", str(file), "--without", "system", "--alpha", "0.2")
    chat, own, part, two = asks(*given)
    assert chat.prompt == (("system", "s"), ("user", "u"))
    assert chat.args == {"cold_without": "system", "cold_alpha": 0.2}
    assert own.args["cold_amateur_messages"] == json.dumps(messages[1:])
    assert "cold_without" not in own.args
    assert part.reads(part.contrast.amateurs[0])[0] == "the same text without characters 0:1"
    assert len(two.contrast.amateurs) == 2


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"text": "x"}, 'line 1: needs either "prompt" or "messages"'),
    "both": (
        {"prompt": "x", "messages": [{"role": "user", "content": "u"}]},
        "line 1: needs either",
    ),
    "no messages": ({"messages": []}, "line 1: messages: .*at least 1 item"),
    "no content": (
        {"messages": [{"role": "user"}]},
        r"line 1: messages\.0\.content: Field required",
    ),
    "surrogate": (
        {"messages": [{"role": "user", "content": "\ud800"}]},
        r"line 1: messages\.0\.content: has half a surrogate pair",
    ),
    "knob": ({"prompt": "x", "cold_beta": 1.0}, "line 1: cold_beta=1.0: a row may have"),
    "part": (
        {"prompt": "x", "cold_part": "0:9"},
        "line 1: cold_part='0:9': the prompt has 1 characters$",
    ),
    "not a chat": (
        {"prompt": "x", "cold_without": "system"},
        "line 1: cold_without='system': is for chats, whose prompt is messages; leave a part of a",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_mistakes_in_rows(case: str, tmp_path: Path) -> None:
    row, said = ROWS[case]
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(ToolError, match=f"^--prompts={file}: {said}"):
        asks("--model", "m", "--adapter", "one", "--prompts", str(file))


def test_options_that_do_not_fit_a_row(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "x"}')
    given = ("--model", "m", "--prompts", str(file))
    said = "line 1: --without='system': is for chats, whose prompt is messages; leave a part of a "
    with pytest.raises(ToolError, match=said + "text out with --part$"):
        asks(*given, "--without", "system")


OPTIONS: dict[str, tuple[list[str], str]] = {
    "nothing": (
        [],
        "^--prompt: nothing to contrast with: give --adapter, or say what the amateur reads",
    ),
    "the base model": (["--amateur", "m"], "^--prompt: nothing to contrast with"),
    "preset": (["--preset", "cot"], "^--preset='cot': must be one of cold, cad, adacad, cfg, dex"),
    "no own prompt": (
        ["--preset", "cfg"],
        "^--preset='cfg': contrasts with another prompt; say which with --without, --part, --amat",
    ),
    "two prompts": (
        ["--amateur-prompt", "y", "--part", "0:1"],
        "^--part='0:1': the amateur has a prompt already, by --amateur-prompt$",
    ),
    "counts": (
        ["--weights", "1", "--weights", "-1", "--amateur-prompt", "y", "--amateur-prompt", "z"]
        + ["--amateur-prompt", "x"],
        "lists have one for each amateur$",
    ),
    "weight": (["--part", "0:1", "--weights", "much"], "^--weights='much': must be a number from"),
    "beta without use": (
        ["--amateur-prompt", "y", "--weights", "-1", "--beta", "2"],
        "^--beta=2.0: no amateur uses it",
    ),
    "no amateur": (["--amateur", "no/such"], "^--amateur='no/such': no such folder"),
    "no text": (["--amateur-prompt", b"\xff".decode(errors="surrogateescape")], "is no UTF-8 text"),
    "no count": (
        ["--amateur-prompt", "y", "--without", "system", "--without", "1"],
        r"^--without=\['system', 1\]: there is one for each amateur; give as many --amateur, '' f",
    ),
    "parts without a count": (
        ["--part", "0:1", "--part", "1:2"],
        "^--part=.*: there is one for ea",
    ),
    "messages": (
        ["--amateur-messages", "[]"],
        r"^--amateur-messages='\[\]': must be a list of messages",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_mistakes_about_amateurs(case: str) -> None:
    arguments, said = OPTIONS[case]
    with pytest.raises(ToolError, match=said):
        asks("--model", "m", "--prompt", "x", *arguments)


def sent(fake: str, one: Asked, adapter: str | None = "one") -> dict[str, Any]:
    """The keys of the request for a prompt's CoLD answer."""
    return ServerSource(fake, adapter)._xargs(one)


def test_a_server_is_asked_in_the_users_way(fake: str) -> None:
    """And its own defaults have no say: not its cap, its preset, nor what it leaves out."""
    most = 2**31 - 1
    [plain] = asked(["x"], beta=1.0)
    assert sent(fake, plain) == {
        "cold": 1,
        "cold_alpha": 0.1,
        "cold_beta": 1.0,
        "cold_expert_top_k": most,
        "cold_amateur": "base",
    }
    [cad] = asked(["xy"], part="0:1", preset="adacad")
    assert sent(fake, cad, None) == {
        "cold": 1,
        "cold_alpha": 0.0,
        "cold_beta": "adaptive",
        "cold_beta_max": 1.0,
        "cold_expert_top_k": most,
        "cold_part": "0:1",
        "cold_preset": "adacad",
    }
    [two] = asked(["xy"], amateur=["", "two"], part=["0:1", ""], weights=[-0.5, "adaptive"])
    found = sent(fake, two)
    assert "cold_beta" not in found and found["cold_beta_max"] == 1.0
    assert found["cold_weights"] == [-0.5, "adaptive"]
    for given in (plain, cad, two):  # and it fits together
        read_contrast({k: v for k, v in sent(fake, given).items() if k != "cold"})


def test_a_server_without_an_adapter(fake: str) -> None:
    source = ServerSource(fake)
    assert source.description.adapter is None and source.description.model == "base"
    assert source._name(None) == "base"
    ServerSource(fake, "one", ["base"])  # by its name


def test_an_answer_to_another_prompt_is_refused(fake: str) -> None:
    source = ServerSource(fake, "one")
    written = {"text": "a", "finish_reason": "stop", "token_ids": [4, 2]}
    Fake.answers["choices"] = [{"index": 0, **written, "prompt_token_ids": [1, 2]}]
    [read] = source.read(asked(["xy"]))
    assert source.cold([read], 2) == [Decoded((4, 2), "a", "stop")]
    Fake.answers["choices"] = [{"index": 0, **written, "prompt_token_ids": [1, 3]}]
    with pytest.raises(ToolError, match="the server reads the prompt 'xy' in another way each"):
        source.cold([read], 2)


def test_a_chat_is_asked_as_a_chat(fake: str) -> None:
    """What an amateur reads is made by the server too: as a chat without CoLD."""
    source = ServerSource(fake, "one")
    said = {"index": 0, "finish_reason": "stop", "token_ids": [4, 2]}
    message = {"role": "assistant", "content": "a"}
    Fake.answers["chat"] = {"prompt_token_ids": [1, 2], "choices": [{**said, "message": message}]}
    Fake.bodies.clear()
    chat = (("system", "s"), ("user", "u"))
    [one] = asked([chat], amateur="base", without="system")
    [read] = source.read([one])
    assert [(stream.adapter, stream.ids) for stream in read.streams] == [
        ("one", (1, 2)),
        (None, (1, 2)),
    ]
    assert source.cold([read], 2) == [Decoded((4, 2), "a", "stop")]
    paths, bodies = zip(*Fake.bodies, strict=True)
    assert set(paths) == {"/v1/chat/completions"}
    system, user = ({"role": role, "content": content} for role, content in chat)
    assert [body["messages"] for body in bodies] == [[system, user], [user], [system, user]]
    assert [body["vllm_xargs"] for body in bodies[:2]] == [{"cold": 0}] * 2
    assert bodies[2]["vllm_xargs"].items() >= one.args.items() | {("cold", 1)}
    assert all(body["return_token_ids"] and body["model"] == "one" for body in bodies)
    # A server's parser may have taken all of the answer for thoughts.
    Fake.answers["chat"]["choices"][0]["message"] = {"content": None, "reasoning": "a"}
    assert source.cold([read], 2) == [Decoded((4, 2), "", "stop")]
