# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` with real engines on the tiny model, against the naive reference."""

import gc
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.docs.blocks import block
from tests.engine.conftest import leave_imports_alone
from tests.naive import Amateur, Group, NaiveCold, Request, Trace
from tests.server.conftest import serve
from vllm_cold.method.settings import preset_knobs
from vllm_cold.tools.main import main
from vllm_cold.tools.tune import decode
from vllm_cold.tools.tune.grid import Setting, make_grid

pytestmark = pytest.mark.engine

ALPHAS, BETAS = (0.05, 0.3), (0.5, 2.0)
GRID = [Setting(alpha=alpha, beta=beta) for alpha in ALPHAS for beta in BETAS]
BEST = Setting(alpha=0.05, beta=2.0)
COUNT, MAX_TOKENS = 24, 16
TOTAL = COUNT + len(GRID) * COUNT // 2 + COUNT // 2  # greedy, the grid on dev, the best held out

SYSTEM = {"role": "system", "content": "Answer with a number."}
Texts = dict[tuple[Setting | None, str], str]


@dataclass
class Case:
    """Problems whose outputs are known, for every setting and (None) greedily."""

    prompts: list[str]
    texts: Texts

    def write(self, path: Path, answers: Setting | None) -> str:
        rows = [{"prompt": p, "answer": self.texts[answers, p], "id": p} for p in self.prompts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets in the environment ends with the test. In place of the folder's
    fixture: the engine is as a user has it.
    """
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")


def _case(tiny: Path, naive: NaiveCold, amateur: str | None) -> Case:
    """Problems that rounding cannot change, on which BEST and greedy decoding differ."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    prompts = [f"w{n} w{n + 100} w{3 * n + 10}" for n in range(10, 70)]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    traces: dict[Setting | None, list[Trace]] = {
        setting: naive.generate_many(
            [Request(x, "one", setting.alpha, setting.beta, MAX_TOKENS, amateur) for x in ids]
        )
        for setting in GRID
    }
    traces[None] = [naive.greedy(x, "one", MAX_TOKENS) for x in ids]
    case = Case([], {})
    for index, prompt in enumerate(prompts):
        found = {setting: every[index] for setting, every in traces.items()}
        if (
            all(trace.settled() == MAX_TOKENS for trace in found.values())
            and found[None].tokens != found[BEST].tokens
            and len(case.prompts) < COUNT
        ):
            case.prompts.append(prompt)
            for setting, trace in found.items():
                case.texts[setting, prompt] = tokenizer.decode(trace.tokens)
    assert len(case.prompts) == COUNT, "too few problems that show a difference"
    return case


@pytest.fixture(scope="module")
def base(tiny: Path, naive: NaiveCold) -> Case:
    """Against the base model."""
    return _case(tiny, naive, None)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The engines that were started, which end with the test."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    leave_imports_alone()
    made: list[Any] = []
    original: Callable[..., Any] = decode.start_llm

    def start(*args: Any, **engine: Any) -> Any:
        made.append(original(*args, **engine))
        return made[-1]

    monkeypatch.setattr(decode, "start_llm", start)
    yield made
    for llm in made:
        llm.llm_engine.engine_core.shutdown()
    made.clear()
    gc.collect()
    cleanup_dist_env_and_memory()


def arguments(tiny: Path, problems: str, output: Path, *more: str) -> list[str]:
    return [
        *("tune", problems, "--model", str(tiny / "model"), "--adapter", str(tiny / "one")),
        *("--alpha", ",".join(map(str, ALPHAS)), "--beta", ",".join(map(str, BETAS))),
        *("--max-tokens", str(MAX_TOKENS), "--output", str(output), "--enforce-eager"),
        *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "8", *more),
    ]


def outputs(folder: Path) -> Texts:
    """The texts in answers.jsonl, of which no two can have the same key. A line that is being
    written is no line yet.
    """
    file = folder / "answers.jsonl"
    if not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_bytes().split(b"\n")[1:-1]]
    found: Texts = {}
    for row in rows:
        said = row["setting"]
        key = (None if said == "greedy" else msgspec.convert(said, Setting), row["id"])
        assert key not in found
        found[key] = row["text"]
    return found


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())  # type: ignore[no-any-return]


def picked(folder: Path) -> Setting:
    (row,) = [row for row in report(folder)["settings"] if row["picked"]]
    return msgspec.convert(row["setting"], Setting)


def check_outputs(folder: Path, case: Case) -> None:
    """Each output is the reference's, and there are those that are needed and no others."""
    found = outputs(folder)
    assert found == {key: case.texts[key] for key in found}
    assert len(found) == TOTAL
    best = picked(folder)
    for setting, count in {
        None: COUNT, best: COUNT, **{s: COUNT // 2 for s in GRID if s != best}
    }.items():  # fmt: skip
        assert sum(key[0] == setting for key in found) == count, setting


def test_a_gain_is_found_with_one_engine(
    tiny: Path, base: Case, tmp_path: Path, starts: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    problems = base.write(tmp_path / "problems.jsonl", BEST)
    folder = tmp_path / "out"
    assert main(arguments(tiny, problems, folder)) == 0
    assert len(starts) == 1
    check_outputs(folder, base)
    found = report(folder)
    assert found["gain"] is True and picked(folder) == BEST
    assert found["test"]["cold"] == 1.0 and found["test"]["greedy"] == 0.0
    assert found["test"]["count"] == COUNT // 2 == found["test"]["better"]
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith(
        "Use alpha 0.05, beta 2, which beats greedy decoding: +100.0 points on 12 held-out"
    )
    assert found["serve"] in printed.out.splitlines()
    assert found["serve"].endswith("--sampler cold --cold-alpha 0.05 --cold-beta 2.0")
    # The same command again has nothing to decode; another rule needs no engine either.
    assert main(arguments(tiny, problems, folder)) == 0
    assert main(arguments(tiny, problems, folder, "--match", "contains")) == 0
    assert len(starts) == 1


def _streams_case(
    tiny: Path,
    naive: NaiveCold,
    grid: list[Setting],
    group: Callable[[Any, int, Setting], Group],
) -> tuple[list[int], Texts]:
    """Numbers of problems that rounding cannot change, and their texts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    kept: list[int] = []
    texts: Texts = {}
    for number in range(10, 70):
        groups = {setting: group(tokenizer, number, setting) for setting in grid}
        first = groups[grid[0]]
        found: dict[Setting | None, Trace] = {s: naive.decode(g) for s, g in groups.items()}
        found[None] = naive.greedy(first.prompt_ids, first.expert, MAX_TOKENS)
        if any(trace.settled() < MAX_TOKENS for trace in found.values()):
            continue
        kept.append(number)
        for setting, trace in found.items():
            texts[setting, str(number)] = tokenizer.decode(trace.tokens)
        if len(kept) == 14:
            return kept, texts
    raise AssertionError("too few problems that are clear")


def _tune(
    tiny: Path,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    answers: Texts,
    best: Setting,
    *more: str,
) -> dict[str, Any]:
    """Run the command on rows, of which ``best`` gives the answers; the report."""
    for row in rows:
        row["answer"] = answers[best, row["id"]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "out"
    words = [
        *("tune", str(tmp_path / "p.jsonl"), "--model", str(tiny / "model"), *more),
        *("--max-tokens", str(MAX_TOKENS), "--output", str(folder), "--enforce-eager"),
        *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "8"),
    ]
    assert main(words) in (0, 1)
    found = outputs(folder)
    assert found == {key: answers[key] for key in found}
    assert {setting for setting, _ in found} == {setting for setting, _ in answers}
    return report(folder)


def test_prompts_alone_without_lora(
    tiny: Path, naive: NaiveCold, tmp_path: Path, starts: list[Any]
) -> None:
    """The base model against itself without its instruction: a grid and presets."""
    grid = make_grid({"alpha": "0.05", "beta": "2"}, "cfg,adacad")

    def chat(number: int) -> list[dict[str, str]]:
        return [
            {"role": "system", "content": f" w{number} w{2 * number}"},
            {"role": "user", "content": f" w{number + 100} w{3 * number + 10}"},
        ]

    def group(tokenizer: Any, number: int, setting: Setting) -> Group:
        def ids(messages: list[dict[str, str]]) -> list[int]:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            return list(tokenizer.encode(text, add_special_tokens=False))

        (_, user) = chat(number)
        knobs = {**preset_knobs(setting.preset), **setting.values}
        adaptive = knobs["beta"] == "adaptive"
        strength = knobs["beta_max"] if adaptive else knobs["beta"]
        amateur = Amateur(-strength, None, ids([user]), adaptive)
        return Group(ids(chat(number)), None, [amateur], knobs["alpha"], MAX_TOKENS)

    numbers, texts = _streams_case(tiny, naive, grid, group)
    rows: list[dict[str, Any]] = [{"messages": chat(n), "id": str(n)} for n in numbers]
    rows[0]["cold_without"] = 0  # the same, said by the row
    more = ("--without", "system", "--alpha", "0.05", "--beta", "2", "--preset", "cfg,adacad")
    found = _tune(tiny, tmp_path, rows, texts, grid[1], *more)
    assert len(starts) == 1 and starts[0].llm_engine.vllm_config.lora_config is None
    assert picked(tmp_path / "out") == grid[1]
    assert found["test"]["cold"] == 1.0 and "--enable-lora" not in found["serve"]


def test_two_amateurs_with_weights_and_prompts(
    tiny: Path, naive: NaiveCold, tmp_path: Path, starts: list[Any]
) -> None:
    """Towards another adapter, and away from the expert's own with what each row says."""
    grid = make_grid({"alpha": "0.05,0.3"}, weights=[0.5, -1.0])

    def texts_of(number: int) -> tuple[str, str]:
        return f"w{number} w{number + 100} w{3 * number}", f"w{number + 50} w7"

    def group(tokenizer: Any, number: int, setting: Setting) -> Group:
        prompt, own = (tokenizer.encode(text) for text in texts_of(number))
        amateurs = [Amateur(0.5, "two"), Amateur(-1.0, "one", own)]
        assert setting.alpha is not None
        return Group(prompt, "one", amateurs, setting.alpha, MAX_TOKENS)

    numbers, texts = _streams_case(tiny, naive, grid, group)
    rows = []
    for n in numbers:
        prompt, own = texts_of(n)
        rows.append({"prompt": prompt, "id": str(n), "cold_amateur_prompt": ["", own]})
    more = ("--adapter", str(tiny / "one"), "--amateur", str(tiny / "two"), "--amateur", "")
    more += ("--weights", "0.5", "--weights", "-1", "--alpha", "0.05,0.3")
    found = _tune(tiny, tmp_path, rows, texts, grid[1], *more)
    assert len(starts) == 1
    assert any('"cold_weights": [0.5, -1.0]' in note for note in found["notes"])


def test_an_engine_without_memory_says_what_to_do(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """vLLM's own words, read from a real one: all memory is never free."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    rows = [{"prompt": f"w{n}", "answer": "w1"} for n in range(COUNT)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = arguments(tiny, str(tmp_path / "p.jsonl"), tmp_path / "out")
    assert main([*command, "--gpu-memory-utilization", "1"]) == 2
    said = r"does not start: .*memory.*\(change --gpu-memory-utilization, .* VLLM_CPU_KVCACHE_SPACE"
    assert re.search(said, capsys.readouterr().err)


def _interrupt(command: list[str], folder: Path, least: int, sign: int) -> tuple[int, str]:
    """Run until ``least`` outputs are there, then send a signal; exit status and stderr."""
    # What a shell starts in the background ignores it, and so would all that these tests start.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "vllm_cold.tools.main", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        signal.signal(signal.SIGINT, former)
        deadline = time.monotonic() + 200
        while len(outputs(folder)) < least:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(sign)
        _, printed = process.communicate(timeout=100)
    return process.returncode, printed


def test_what_is_decoded_survives_ctrl_c_and_kill(
    tiny: Path, base: Case, tmp_path: Path, starts: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    problems = base.write(tmp_path / "problems.jsonl", BEST)
    folder = tmp_path / "out"
    command = arguments(tiny, problems, folder, "--max-num-seqs", "2")  # so that it takes seconds
    file = folder / "answers.jsonl"

    status, printed = _interrupt(command, folder, 6, signal.SIGINT)
    assert status == 130
    assert "the same command goes on from there" in printed and "Traceback" not in printed
    first = outputs(folder)
    assert 6 <= len(first) < TOTAL
    assert f"stopped; {len(first)} answers are kept in {file}" in printed

    status, _ = _interrupt(command, folder, len(first) + 20, signal.SIGKILL)
    assert status == -signal.SIGKILL
    second = outputs(folder)
    assert first.items() <= second.items()
    before = len(second)
    assert len(first) + 20 <= before < TOTAL

    assert main(command) == 0
    assert len(starts) == 1
    check_outputs(folder, base)
    assert f"{before} answers are there already." in capsys.readouterr().err


def test_the_line_serves_what_was_measured(
    tiny: Path, base: Case, tmp_path: Path, starts: list[Any]
) -> None:
    problems = base.write(tmp_path / "problems.jsonl", BEST)
    assert main(arguments(tiny, problems, tmp_path / "out")) == 0
    words = shlex.split(report(tmp_path / "out")["serve"])
    assert words[:2] == ["vllm", "serve"]
    with serve(tmp_path, words[2:], VLLM_LOGGING_LEVEL="INFO") as server:
        for prompt in base.prompts[:6]:
            answer = server.client.completions.create(
                model="one", prompt=prompt, temperature=0, max_tokens=MAX_TOKENS
            )
            assert answer.choices[0].text == base.texts[BEST, prompt]

        # Asked by the command itself, the server gives what the engine gave, whatever its default.
        words = arguments(tiny, problems, tmp_path / "asked")
        asked = [*words[: words.index("--enforce-eager")], "--url", server.url]
        asked[asked.index("--adapter") + 1] = "one"
        at = asked.index("--model")
        assert main([*asked[:at], *asked[at + 2 :], "--concurrency", "8"]) == 0
        check_outputs(tmp_path / "asked", base)

        # And by the command of the page.
        (tmp_path / "page").mkdir()
        write_sums(tmp_path / "page" / "problems.jsonl")
        script = block("docs/tuning.md", "tune-url")
        script = script.replace("http://localhost:8000", server.url).replace(" sql ", " one ")
        done = _shell(script, tmp_path / "page", tiny, more="--limit 12")
        assert done.returncode == 1, done.stderr[-3000:]
        assert report(tmp_path / "page" / "cold-tune")["run"]["server"] == server.url


def _shell(
    script: str, folder: Path, tiny: Path, more: str = "--enforce-eager"
) -> subprocess.CompletedProcess[str]:
    """Run a command of the page; without compiling, which takes a minute on a CPU."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script.rstrip()} {more}"],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MODEL": str(tiny / "model"),
            "ADAPTER": str(tiny / "one"),
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def write_sums(path: Path) -> None:
    rows = [
        {"prompt": f"What is {n} and {n}?", "answer": str(2 * n), "id": f"q{n}"}
        for n in range(10, 34)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_commands_of_the_page(tiny: Path, tmp_path: Path) -> None:
    """As a reader types them, in a folder with a file of problems."""
    write_sums(tmp_path / "problems.jsonl")
    done = _shell(block("docs/tuning.md", "tune"), tmp_path, tiny)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "No setting beats greedy decoding significantly, so" in done.stdout
    found = report(tmp_path / "cold-tune")
    assert found["run"]["match"] == "number" and len(found["settings"]) == 9

    chats = [
        {"messages": [SYSTEM, {"role": "user", "content": f"{n} and {n}?"}], "answer": 2 * n}
        for n in range(10, 34)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    script = block("docs/tuning.md", "tune-prompts")
    done = _shell(f"{script.rstrip()} --output prompts", tmp_path, tiny)
    assert done.returncode == 1, done.stderr[-3000:]
    found = report(tmp_path / "prompts")
    assert [row["setting"]["preset"] for row in found["settings"]] == ["cfg", "adacad"]
    assert found["run"]["contrast"] == {"cold_without": "system"}

    (tmp_path / "scoring.py").write_text(block("docs/tuning.md", "tune-scoring"))
    done = _shell(block("docs/tuning.md", "tune-callable"), tmp_path, tiny)
    assert done.returncode == 1, done.stderr[-3000:]
    found = report(tmp_path / "tuned")
    assert found["run"]["match"] == "scoring:similarity"
    assert 0.0 < found["test"]["greedy"] < 1.0
