# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` with real servers of the tiny model, against the naive reference."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.docs.blocks import block
from tests.naive import NaiveCold, Trace, pair
from tests.server.conftest import Server, serve
from tests.server.conftest import arguments as of_servers
from vllm_cold.tools import models
from vllm_cold.tools.command_error import ToolError
from vllm_cold.tools.example import files
from vllm_cold.tools.main import main
from vllm_cold.tools.server import Server as Asking
from vllm_cold.tools.tune import baselines
from vllm_cold.tools.tune.grid import GREEDY, Setting

pytestmark = pytest.mark.server

ALPHAS, BETAS = (0.05, 0.3), (0.5, 2.0)
GRID = [Setting(alpha=alpha, beta=beta) for alpha in ALPHAS for beta in BETAS]
GRID_OPTIONS = ("--alpha", ",".join(map(str, ALPHAS)), "--beta", ",".join(map(str, BETAS)))
BEST = Setting(alpha=0.05, beta=2.0)
COUNT, MAX_TOKENS = 24, 16
TOTAL = COUNT + len(GRID) * COUNT // 2 + COUNT // 2  # greedy, the grid on dev, the best held out

Texts = dict[tuple[Setting, str], str]


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@dataclass
class Case:
    """Problems whose outputs are known, for every setting and greedily."""

    prompts: list[str]
    texts: Texts

    def write(self, path: Path, answers: Setting) -> str:
        rows = [{"prompt": p, "answer": self.texts[answers, p], "id": p} for p in self.prompts]
        return _write(path, rows)


@pytest.fixture(scope="module")
def case(tiny: Path, naive: NaiveCold) -> Case:
    """Problems that rounding cannot change, on which BEST and greedy decoding differ."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    prompts = [f"w{n} w{n + 100} w{3 * n + 10}" for n in range(10, 70)]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    traces: dict[Setting, list[Trace]] = {
        setting: naive.generate_many(
            [pair(x, "one", setting.alpha, setting.beta, MAX_TOKENS, None) for x in ids]
        )
        for setting in GRID
    }
    traces[GREEDY] = [naive.greedy(x, "one", MAX_TOKENS) for x in ids]
    made = Case([], {})
    for index, prompt in enumerate(prompts):
        found = {setting: every[index] for setting, every in traces.items()}
        if (
            all(trace.settled() == MAX_TOKENS for trace in found.values())
            and found[GREEDY].tokens != found[BEST].tokens
            and len(made.prompts) < COUNT
        ):
            made.prompts.append(prompt)
            for setting, trace in found.items():
                made.texts[setting, prompt] = tokenizer.decode(trace.tokens)
    assert len(made.prompts) == COUNT, "too few problems that show a difference"
    return made


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What stands for those that the command would have started."""
    with serve(tmp_path_factory.mktemp("tune"), of_server(tiny)) as running:
        yield running


@pytest.fixture
def starts(tiny: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of servers that the command would have started."""
    asked: list[dict[str, Any]] = []

    @contextmanager
    def start(model: str, adapters: Any, expert: str | None, **engine: Any) -> Iterator[Any]:
        asked.append({"model": model, **engine})
        with closing(Asking(server.url, expert, started=model)) as found:
            yield found

    monkeypatch.setattr(models, "serving", start)
    return asked


def of_server(tiny: Path) -> list[str]:
    """As ``arguments`` of tests' servers, with the name that the command gives its model."""
    words = of_servers(tiny)
    words[words.index("base")] = str(tiny / "model")
    words[words.index("256")] = "512"  # of --max-model-len: the example's prompts are long
    return words


def arguments(tiny: Path, problems: str, output: Path, *more: str) -> list[str]:
    return [
        *("tune", problems, "--model", str(tiny / "model"), "--adapter", str(tiny / "one")),
        *(*GRID_OPTIONS, "--max-tokens", str(MAX_TOKENS), "--output", str(output)),
        *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "8"),
        *("--enforce-eager", *more),
    ]


def outputs(folder: Path) -> Texts:
    """The texts in answers.jsonl, of which no two can have the same key."""
    content = (folder / "answers.jsonl").read_bytes()
    rows = [json.loads(line) for line in content.split(b"\n")[1:-1]]
    found: Texts = {}
    for row in rows:
        said = row["setting"]
        key = (GREEDY if said == "greedy" else msgspec.convert(said, Setting), row["id"])
        assert key not in found
        found[key] = row["text"]
    return found


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())  # type: ignore[no-any-return]


def check_outputs(folder: Path, case: Case) -> None:
    """Each output is the reference's, and none is missing."""
    found = outputs(folder)
    assert found == {key: case.texts[key] for key in found}
    assert len(found) == TOTAL


def test_a_server_without_memory_says_what_to_do(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """vLLM's own words, read from a real one: all memory is never free."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    rows = [{"prompt": f"w{n}", "answer": "w1"} for n in range(COUNT)]
    command = arguments(tiny, _write(tmp_path / "p.jsonl", rows), tmp_path / "out")
    assert main([*command, "--gpu-memory-utilization", "1"]) == 2
    said = "did not start: .*memory.*--gpu-memory-utilization"
    assert re.search(said, capsys.readouterr().err)


def test_a_gain_is_found_and_its_line_serves_what_was_measured(
    tiny: Path,
    case: Case,
    tmp_path: Path,
    starts: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = case.write(tmp_path / "problems.jsonl", BEST)
    folder = tmp_path / "out"
    command = arguments(tiny, problems, folder)
    assert main(command) == 0
    (asked,) = starts
    assert (asked["max_lora_rank"], asked["max_model_len"], asked["max_num_seqs"]) == (8, 128, 8)
    check_outputs(folder, case)
    found = report(folder)
    assert found["gain"] and found["test"]["answered"]["better"] == COUNT // 2
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(
        "Use alpha 0.05, beta 2, which beats greedy decoding: +100.0 points on 12 held-out"
    )
    assert found["serve"] in said

    words = shlex.split(found["serve"])
    with serve(tmp_path, words[2:], VLLM_LOGGING_LEVEL="INFO") as server:
        for prompt in case.prompts[:6]:
            answer = server.client.completions.create(
                model="one", prompt=prompt, temperature=0, max_tokens=MAX_TOKENS
            )
            assert answer.choices[0].text == case.texts[BEST, prompt]

        # Asked by the command of the page, a running server gives what the command's own gave,
        # whatever its default.
        monkeypatch.chdir(tmp_path)
        words = page(
            block("docs/tuning.md", "tune-url"),
            ("http://localhost:8000", server.url),
            ("cold-example/numbers.jsonl", "problems.jsonl"),
            (" --chat", ""),
            (" sorting ", " one "),
        )
        words += ["--match", "exact", *GRID_OPTIONS, "--max-tokens", str(MAX_TOKENS)]
        assert main([*words, "--concurrency", "8", "--output", "asked"]) == 0
        check_outputs(tmp_path / "asked", case)
        assert report(tmp_path / "asked")["run"]["server"] == server.url


def page(command: str, *replaced: tuple[str, str]) -> list[str]:
    """A command of the page, without its first word."""
    text = command.replace("\\\n", " ")
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    program, *words = shlex.split(text)
    assert program == "vllm-cold"
    return words


def make_example(tiny: Path) -> None:
    """The example's folder with the tiny model and adapter, and of each problem's passages two, as
    a letter is a token there.
    """
    folder = Path("cold-example")
    folder.mkdir()
    for name, target in (("model", "model"), ("sorting", "one")):
        (folder / name).symlink_to(tiny / target)
    for name in ("chats.jsonl", "numbers.jsonl"):
        (folder / name).write_bytes(files.FILES[name][1]())
    rows = files.problems()
    for row in rows:
        (message,), row["passages"] = row["messages"], row["passages"][:2]
        question = message["content"].partition("\n\n")[2]
        texts = [passage["text"] for passage in row["passages"]]
        message["content"] = "\n".join([*texts, "", question])
    _write(folder / "problems.jsonl", rows)


def test_the_commands_of_the_page(
    tiny: Path, tmp_path: Path, starts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pasted, on the example's files, with the tiny model and adapter in its folder."""
    monkeypatch.chdir(tmp_path)
    make_example(tiny)

    def run(name: str, command: str) -> dict[str, Any]:
        """The report of a command of the page, which finds no gain; the server that plays all of
        theirs calls the adapter otherwise.
        """
        words = page(command.replace("cold-example/sorting", "one=cold-example/sorting"))
        assert main([*words, "--output", name]) == 1
        return report(tmp_path / name)

    Path("scoring.py").write_text(block("docs/tuning.md", "tune-scoring"))
    found = run("tune", block("docs/tuning.md", "tune"))
    tried = [row["name"] for row in found["settings"]]
    first = ["no text", "a stronger prompt", "the text repeated", baselines.BEST, "cad"]
    # With the best passage, too, where that did best: which, such a model leaves to chance.
    assert tried in (first, [*first, f"cad with {baselines.BEST}"])
    assert "enable_lora" not in starts[-1] and "--enable-lora" not in found["serve"]
    found = run("adapter", block("docs/tuning.md", "tune-adapter"))
    assert found["run"]["adapter"] == "one" and len(found["settings"]) == 9
    found = run("tune-prompts", block("docs/tuning.md", "tune-prompts"))
    presets = [row["dev"]["setting"].get("preset") for row in found["settings"]]
    assert [preset for preset in presets if preset] == ["cfg", "adacad"]
    assert found["run"]["contrast"] == {"cold_without": "system"}
    found = run("tune-callable", block("docs/tuning.md", "tune-callable"))
    assert found["run"]["match"] == "scoring:similarity"
    assert 0.0 < found["test"]["answered"]["greedy"] < 1.0


def test_a_stock_server(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the page's command: the baselines alone, by fields that any server knows."""
    monkeypatch.chdir(tmp_path)
    make_example(tiny)
    options = [str(tiny / "model"), "--dtype", "float32", "--enforce-eager"]
    options += ["--max-model-len", "512", "--gpu-memory-utilization", "0.2"]
    command = block("docs/tuning.md", "tune-any")
    with serve(tmp_path, options, VLLM_PLUGINS="") as stock:
        words = page(command, ("http://localhost:8000", stock.url))
        assert main(words) == 1
        found = report(Path("cold-tune-server"))
        assert [row["name"] for row in found["settings"]][:4] == [
            "no text", "a stronger prompt", "the text repeated", baselines.BEST
        ]  # fmt: skip
        assert found["headline"].startswith("Keep the prompt as it is: no baseline beats it")
        # Without --baselines the command finds out by itself.
        assert main([word for word in words if word != "--baselines"]) == 1
        with pytest.raises(ToolError, match="vllm-cold is not active there"):
            Asking(stock.url)
