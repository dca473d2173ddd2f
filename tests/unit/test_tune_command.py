# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its exit status, with an engine that is a function."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import io
import json
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console
from vllm.lora.request import LoRARequest

from tests.docs.blocks import ROOT, blocks
from vllm_cold.method.amateurs import Text
from vllm_cold.method.settings import DEFAULT_BETA_MAX, ENGINE, ColdError
from vllm_cold.tools import tune
from vllm_cold.tools.adapters import Adapter
from vllm_cold.tools.contrast import Content
from vllm_cold.tools.errors import ToolError
from vllm_cold.tools.main import build_parser, main
from vllm_cold.tools.tune import command, stats
from vllm_cold.tools.tune.contrasts import check_problems
from vllm_cold.tools.tune.data import Problem, load_problems
from vllm_cold.tools.tune.decode import Decoder, Job
from vllm_cold.tools.tune.grid import Setting, make_grid
from vllm_cold.tools.tune.progress import watch
from vllm_cold.tools.tune.store import Output

pytestmark = pytest.mark.unit

COUNT = 40
BEST = Setting(0.1, 0.5)
Line = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets in the environment ends with the test."""
    for name in (
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_NO_USAGE_STATS",
        "TOKENIZERS_PARALLELISM",
        "VLLM_LOGGING_LEVEL",
    ):
        monkeypatch.setenv(name, "0")


@pytest.fixture
def line(tmp_path: Path) -> Line:
    """``line(*more)``: a command line that is right, with further options."""
    rows = [{"prompt": f"p{n}", "answer": "right", "id": f"p{n}"} for n in range(COUNT)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("sql", "chat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"r": 8}')

    def make(*more: str) -> list[str]:
        return [
            *("tune", str(tmp_path / "p.jsonl"), "--model", "org/model"),
            *("--adapter", str(tmp_path / "sql"), "--alpha", "0.1,1", "--beta", "0.5,1"),
            *("--output", str(tmp_path / "out"), *more),
        ]

    return make


class Engine:
    """In place of ``start_llm`` and ``Decoder``.

    Attributes:
        starts: Engines that were started.
        jobs: Jobs that were done, in order.
        text: Gives the output of a job.
        finish: vLLM's reason, of all outputs.
        end: Before which job (by number) ``error`` is raised.
    """

    def __init__(self) -> None:
        self.starts: list[tuple[Any, ...]] = []
        self.jobs: list[Job] = []
        self.text: Callable[[Job], str] = lambda job: "right" if job.setting == BEST else "wrong"
        self.finish = "stop"
        self.end: int | None = None
        self.error: BaseException = KeyboardInterrupt()
        self.penalties: dict[str, float] = {}

    def start(self, model: str, verbose: bool, **engine: Any) -> Engine:
        self.starts.append((model, engine))
        return self

    def decoder(self, *arguments: Any) -> Engine:
        return self

    def tokenize(self, problems: Iterable[Problem]) -> None:
        pass

    def run(self, jobs: Iterable[Job], done: Callable[[Job, Output], None]) -> None:
        for job in jobs:
            if len(self.jobs) == self.end:
                self.end = None
                raise self.error
            self.jobs.append(job)
            done(job, Output(self.text(job), 1, self.finish))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(command, "start_llm", made.start)
    monkeypatch.setattr(command, "Decoder", made.decoder)
    return made


def keys(jobs: Iterable[Job]) -> list[tuple[Setting | None, str]]:
    return [(job.setting, job.problem.id) for job in jobs]


def read_report(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "report.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--alpha", "-1"], "--alpha=-1.0: must be a number in [0, 1]"),
        (["--alpha", "1"], "nothing to compare"),
        (["--beta-max", "2"], "--beta-max=2.0: is for an adaptive beta, and beta is 0.5,1; leave"),
        (["--beta", "1,half"], "--beta='half': must be a number >= 0, at most 1e6"),
        (["--expert-top-k", "0"], "--expert-top-k=0: must be an integer from 1 to"),
        (["--preset", "cat"], "--preset='cat': must be one of cold, cad, adacad, cfg, dexperts"),
        (["--confidence", "1"], "--confidence=1.0: must be at least 0.5 and below 1"),
        (["--confidence", "nan"], "--confidence=nan: must be at least 0.5 and below 1"),
        (["--max-tokens", "0"], "--max-tokens=0: must be 1 or more"),
        (["--stop", ""], "--stop='': a stop string must not be empty"),
        (["--limit", "0"], "--limit=0: must be 1 or more"),
        (["--limit", "8"], "with fewer than 6 no difference can be significant. Bring 12"),
        (["--test-fraction", "1"], "--test-fraction=1.0: must be between 0 and 1"),
        (["--seed", "-1"], "--seed=-1: must be 0 or more"),
        (["--match", "fuzzy"], "--match='fuzzy': must be one of exact, number"),
        (["--match", "number"], "--match=number: line 1: the answer 'right' has no numbers"),
        (["--model", "./none"], "--model='./none': no config.json there"),
        (["--adapter", "none"], "--adapter='none': no such folder"),
        (["--amateur", "{sql}"], "is the adapter itself; leave it out"),
        (["--amateur", "sql={chat}"], "has the name 'sql' of another adapter"),
        (["--without", "system,"], "--without='system,': must be roles, or indices of messages"),
        (["--without", "system", "--part", "0:1"], "--part='0:1': the amateur has a prompt alread"),
        (["--part", "1:1"], "--part='1:1': must be [start, end) with 0 <= start < end"),
        (["--amateur-prompt", ""], "--amateur-prompt='': must not be empty"),
        (["--amateur-prompt", "\udc80"], "--amateur-prompt: is no UTF-8 text; set the terminal"),
        (["--amateur-messages", "[]"], "--amateur-messages='[]': must be a list of messages, with"),
        (
            ["--without", "0", "--without", "1"],
            "--without=[0, 1]: there is one for each amateur",
        ),
        (["--weights", "x"], "--weights='x': must be a number from -1e6 to 1e6, or 'adaptive', or"),
        (["--weights", "1", "--amateur", "{chat}", "--amateur", ""], "--beta='0.5,1': no amateur"),
        (["--weights", "1", "--weights", "-1"], "--beta='0.5,1': no amateur uses it, as each has"),
        (["--max-lora-rank", "1"], "--max-lora-rank=1: an adapter has rank 8"),
        (["--engine-args", "{"], "--engine-args='{': not JSON"),
        (["--engine-args", "[1]"], "--engine-args='[1]': must be a JSON object"),
        (["--engine-args", '{"enable_lora": false}'], "enable_lora is set by this command"),
        (
            ["--engine-args", '{"additional_config": {"cold": true}}'],
            "additional_config's cold is a server's default",
        ),
        (["--engine-args", '{"hf_token": "hf_secret"}'], "set HF_TOKEN instead"),
        (["--dtype", "half", "--engine-args", '{"dtype": "float32"}'], "dtype is set by this"),
    ],
)
def test_a_mistake_is_one_sentence_and_starts_nothing(
    line: Line,
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    folders = {name: str(tmp_path / name) for name in ("sql", "chat")}
    more = [word.format(**folders) if re.search("{(sql|chat)}", word) else word for word in more]
    assert main(line(*more)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("vllm-cold tune: ") and message in printed
    assert len(printed.splitlines()) == 1 and "hf_secret" not in printed
    assert not engine.starts and not (tmp_path / "out").exists()


def test_one_engine_one_greedy_pass_and_nothing_held_out_but_the_best(
    line: Line, engine: Engine, tmp_path: Path
) -> None:
    assert main(line()) == 0
    assert len(engine.starts) == 1
    done = keys(engine.jobs)
    assert len(done) == len(set(done))
    found = {setting: sum(key[0] == setting for key in done) for setting, _ in done}
    # alpha 1 is greedy decoding itself and is not decoded.
    assert found == {None: COUNT, BEST: COUNT, Setting(0.1, 1.0): COUNT // 2}
    report = read_report(tmp_path)
    assert report["gain"] and report["run"]["problems"]["held_out"] == COUNT // 2
    names = ("report.json", "report.html", "heatmap.png", "results.sqlite")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)


def test_as_many_passes_are_counted_as_announced(
    line: Line, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line("--alpha", "0.1,0.2,1", "--beta", "0.5,1,2")) == 0
    printed = capsys.readouterr().err
    assert "; 6 settings. 0 outputs are there already.\n9 passes: greedy on" in printed
    assert re.findall(r"\[pass (\d+)/(\d+)\]", printed) == [(f"{n}", "9") for n in range(1, 10)]


def test_the_status_is_1_where_nothing_is_better(
    line: Line, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.text = lambda job: "right"
    assert main(line()) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "No setting beats greedy decoding significantly, so use that, without `--sampler cold`: "
        "alpha 0.1, beta 0.5, picked from 2 settings, differs by 0.0 points on 20 held-out "
        "problems (95 % interval -16.1 to +16.1, p = 1.00), too few to find any difference "
        "reliably."
    )


def test_a_fault_has_a_status_of_its_own(
    line: Line, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.end, engine.error = 3, ZeroDivisionError("a bug")
    assert main(line()) == 3
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "ZeroDivisionError: a bug" in printed
    assert printed.endswith("vllm-cold tune: failed unexpectedly; please report the lines above\n")
    assert main(line()) == 0


class Failing:
    """A vLLM engine whose step fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.aborted = False

    def add_request(self, *_: Any, **__: Any) -> None:
        pass

    def step(self) -> Any:
        raise self.error

    def has_unfinished_requests(self) -> bool:
        return True

    def abort_request(self, _: Any) -> None:
        self.aborted = True
        raise RuntimeError("it is dead")


def failing_decoder(error: BaseException) -> Decoder:
    made = make_decoder(limit=8, max_tokens=4)
    made._engine = Failing(error)
    made.tokenize([Problem("a", 1, "a", ("a",))])
    return made


def test_an_engine_that_fails_is_a_sentence() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    for error, said in (
        (
            RuntimeError("CoLD: the logits\nhold NaN"),
            r"\(RuntimeError\): CoLD: the logits hold NaN",
        ),
        (MemoryError(), r"the engine failed while it decoded \(MemoryError\)"),
        (EngineDeadError(), r"\(EngineDeadError\): EngineCore encountered an issue"),
    ):
        decoder = failing_decoder(error)
        with pytest.raises(ToolError, match=said):
            decoder.run([Job(None, Problem("a", 1, "a", ("a",)))], lambda *_: None)
        assert not decoder._engine.aborted  # there is nothing left to tell it
    decoder = failing_decoder(KeyError("a bug"))
    with pytest.raises(KeyError):
        decoder.run([Job(None, Problem("a", 1, "a", ("a",)))], lambda *_: None)


def test_greedy_is_greedy_whatever_the_engines_default() -> None:
    decoder = make_decoder(limit=8, max_tokens=4)
    assert decoder._params(Job(None, Problem("a", 1, "a", ("a",)))).extra_args == {"cold": 0}


@pytest.mark.slow
@pytest.mark.parametrize("end", [0, 1, 39, 40, 55, 80, 99])
def test_going_on_after_an_interruption_at_any_place(
    line: Line, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], end: int
) -> None:
    engine.end = end
    assert main(line()) == 130
    printed = capsys.readouterr().err
    assert f"stopped; {end} outputs are kept in {tmp_path / 'out' / 'results.sqlite'}" in printed
    assert "and the same command goes on from there" in printed
    assert main(line()) == 0
    done = keys(engine.jobs)
    assert len(done) == len(set(done)) == 2 * COUNT + COUNT // 2
    assert f"{end} outputs are there already." in capsys.readouterr().err
    assert main(line()) == 0 and len(engine.jobs) == len(done) and len(engine.starts) == 2


def test_an_interrupted_restart_says_how_to_go_on(
    line: Line, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line()) == 0
    engine.end = len(engine.jobs) + 3
    assert main(line("--restart")) == 130
    assert "the same command without --restart goes on" in capsys.readouterr().err
    engine.jobs.clear()
    assert main(line()) == 0
    assert len(engine.jobs) == 2 * COUNT + COUNT // 2 - 3


def test_what_the_outputs_depend_on_may_not_change(
    line: Line, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line()) == 0
    for more in (["--max-tokens", "9"], ["--chat"], ["--stop", "x"], ["--dtype", "half"]):
        assert main(line(*more)) == 2
        assert "holds outputs of another run" in capsys.readouterr().err
    (tmp_path / "sql" / "adapter_config.json").write_text('{"r": 4}')
    assert main(line()) == 2
    assert "the adapters changed" in capsys.readouterr().err
    assert len(engine.starts) == 1


@pytest.mark.slow
def test_rule_split_and_grid_may_change_and_that_is_said(
    line: Line, engine: Engine, tmp_path: Path
) -> None:
    assert main(line()) == 0
    assert main(line("--match", "contains")) == 0
    assert len(engine.starts) == 1
    engine.jobs.clear()
    assert main(line("--alpha", "0.1,0.2")) == 0
    assert {job.setting for job in engine.jobs} == {Setting(0.2, 0.5), Setting(0.2, 1.0)}
    assert main(line("--seed", "1")) == 0
    file = tmp_path / "p.jsonl"
    file.write_text(file.read_text().replace('"right"', '["right", "Right"]', 1))
    engine.jobs.clear()
    assert main(line("--seed", "1")) == 0
    assert main(line("--seed", "1", "--confidence", "0.9")) == 0
    assert not engine.jobs  # the outputs do not depend on the answers
    assert any("judged in 6 ways" in note for note in read_report(tmp_path)["notes"])


@pytest.mark.slow
def test_an_adaptive_beta_in_the_grid(line: Line, engine: Engine, tmp_path: Path) -> None:
    best = Setting(0.1, "adaptive", 2.0)
    engine.text = lambda job: "right" if job.setting == best else "wrong"
    more = ("--beta", "0.5,1,adaptive", "--beta-max", "2")
    assert main(line()) == 1
    engine.jobs.clear()
    assert main(line(*more)) == 0
    assert {job.setting for job in engine.jobs} == {best}  # the numbers were there
    report = read_report(tmp_path)
    assert msgspec.convert(report["best"], Setting) == best
    assert report["serve"].endswith("--cold-alpha 0.1 --cold-beta adaptive --cold-beta-max 2.0")
    # Another most is another setting, and going on decodes nothing twice.
    engine.jobs.clear()
    assert main(line(*more)) == 0 and not engine.jobs
    assert main(line(*more[:2])) == 1
    most = DEFAULT_BETA_MAX
    assert {job.setting for job in engine.jobs if job.setting} >= {Setting(0.1, "adaptive", most)}
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "results.sqlite")) as connection:
        (text,) = connection.execute("SELECT value FROM note WHERE name = 'analyses'").fetchone()
    analyses = [analysis["settings"] for analysis in json.loads(text)]
    assert [points[2]["beta_max"] for points in analyses[1:]] == [2.0, most]


def test_the_engine_is_asked_for_an_adaptive_beta() -> None:
    decoder = failing_decoder(KeyError())
    for setting in (
        Setting(0.1, "adaptive", 2.0),
        Setting(0.1, 2.0),
        Setting(0.1, 0.5, expert_top_k=9),
        Setting(0.0, 0.5, preset="cold"),
    ):
        params = decoder._params(Job(setting, Problem("a", 1, "a", ("a",))))
        assert (params.alpha, params.expert_top_k) == (setting.alpha, setting.expert_top_k)
        assert params.combine()[1] == ((-setting.strength, setting.adaptive),)


def test_the_engine_is_asked_for_what_a_problem_says() -> None:
    messages = (("system", "Be brief."), ("user", "Why is it so?"))
    problem = Problem("a", 1, messages, ("a",), args={"cold_without": "system"})
    decoder = make_decoder(limit=20, max_tokens=4)
    decoder.tokenize([problem])
    assert decoder._streams["a"][0].ids == (7, 2, 6, 5, 3, 2, 2, 3, 10)
    params = decoder._params(Job(Setting(0.0, 0.5, preset="cad"), problem))
    (amateur,) = params.amateurs
    assert amateur.prompt == [5, 3, 2, 2, 3, 10]
    assert amateur.lora_request is decoder._adapters["sql"]  # its expert's
    assert (params.alpha, amateur.weight) == (0.0, -0.5)
    # The base model towards one adapter and away from another.
    args = {"cold_amateur": ["sql", "chat"]}
    problem = Problem("b", 2, "Why?", ("a",), args=args)
    decoder = make_decoder(limit=20, max_tokens=4, expert=None, seats=3)
    decoder.tokenize([problem])
    (setting,) = make_grid({}, "dexperts")
    params = decoder._params(Job(setting, problem))
    assert [a.lora_request.lora_name for a in params.amateurs] == ["sql", "chat"]
    assert [w.weight for w in params.combine()[1]] == [1.0, -1.0]
    # Weights in place of beta, one of them adaptive, and the base model with another prompt.
    args = {"cold_amateur": ["base", "chat"], "cold_amateur_prompt": ["So what?", ""]}
    problem = Problem("c", 3, "Why?", ("a",), args=args)
    decoder = make_decoder(limit=20, max_tokens=4, seats=3)
    decoder.tokenize([problem])
    (setting,) = make_grid({"alpha": "0.1", "beta_max": "2"}, weights=("adaptive", 0.25))
    params = decoder._params(Job(setting, problem))
    assert [a.prompt for a in params.amateurs] == [[0, 2, 5], None]
    assert [a.lora_request and a.lora_request.lora_name for a in params.amateurs] == [None, "chat"]
    assert params.combine()[1] == ((-2.0, True), (0.25, False))


def test_streams_that_have_no_room_or_no_contrast() -> None:
    def refused(said: str, seats: int = 2, expert: str | None = "sql", **args: Any) -> None:
        given = {f"cold_{name}": value for name, value in args.items()}
        problem = Problem("a", 7, (("user", "Hi"), ("user", "you")), ("a",), args=given)
        decoder = make_decoder(limit=10, max_tokens=4, seats=seats, expert=expert)
        with pytest.raises(ToolError, match=rf"problem 'a' \(line 7\): {said}"):
            decoder.tokenize([problem])

    refused("an amateur's prompt has 7 tokens, with", amateur_prompt="a b c d e f")
    refused("expert and amateurs take 3 sequences, and .* raise --max-num-seqs", weights=[1.0, 2.0])
    own = json.dumps([{"role": "user", "content": "Hi"}, {"role": "user", "content": "you"}])
    refused("--amateur-messages=.*: gives the amateur the tokens that", amateur_messages=own)
    refused("--amateur-messages=.*: gives the amateur", amateur_messages=own, expert=None)
    refused("--without='tool': the conversation has no such message", without="tool")
    problem = Problem("a", 7, (("user", "Hi"), ("user", "you")), ("a",))
    decoder = make_decoder(limit=10, max_tokens=4)
    decoder.tokenize(
        [dataclasses.replace(problem, args={"cold_amateur_messages": own, "cold_amateur": "base"})]
    )


def write_chats(tmp_path: Path, **more: Any) -> None:
    """Problems that are conversations; the first row says more."""
    turns = [{"role": "system", "content": "Be right."}, {"role": "user", "content": "?"}]
    rows: list[dict[str, Any]] = [
        {"messages": [*turns, {"role": "user", "content": f"{n}"}], "answer": "right"}
        for n in range(COUNT)
    ]
    rows[0] |= more
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_adapter(words: list[str]) -> list[str]:
    at = words.index("--adapter")
    return words[:at] + words[at + 2 :]


def test_no_adapter_but_another_prompt(line: Line, engine: Engine, tmp_path: Path) -> None:
    write_chats(tmp_path)
    words = without_adapter(line("--without", "system", "--preset", "cad"))
    assert main(words) == 0
    model, arguments = engine.starts[0]
    assert arguments == {"additional_config": {"cold": {"enabled": False}}}
    report = read_report(tmp_path)
    assert [row["setting"]["preset"] for row in report["rows"]] == [None] * 4 + ["cad"]
    assert report["headline"].startswith(
        "Use `--sampler cold --cold-alpha 0.1 --cold-beta 0.5 --cold-without system`, which beats"
    )
    assert report["run"]["adapter"] is None
    assert report["run"]["contrast"] == "itself without system"
    assert report["serve"] == (
        "vllm serve org/model --sampler cold --cold-alpha 0.1 --cold-beta 0.5 --cold-without system"
    )
    assert not any("must send" in note for note in report["notes"])
    html = (tmp_path / "out" / "report.html").read_text()
    assert "p.jsonl, the base model against itself without system, org/model" in html
    # Another contrast is another run, and so is that of one row.
    engine.starts.clear()
    assert main([*words, "--without", "1"]) == 2
    write_chats(tmp_path, cold_without=1)
    assert main(words) == 2
    write_chats(tmp_path)
    assert main(words) == 0 and not engine.starts


def test_rows_say_what_their_amateurs_read(line: Line, engine: Engine, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"It is {n}. What?", "answer": "right", "cold_part": [0, 6]}
        for n in range(COUNT)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine.text = lambda job: "right" if job.setting and job.setting.preset else "wrong"
    words = [w for w in line("--preset", "cad") if w not in ("--alpha", "0.1,1", "--beta", "0.5,1")]
    assert main(words) == 0
    assert {job.problem.args["cold_part"][1] for job in engine.jobs} == {6}
    report = read_report(tmp_path)
    assert report["run"]["contrast"] == "what each problem says"
    assert any(
        "with CoLD, each request must send the cold_* keys of its problem's row." in n
        for n in report["notes"]
    )
    assert report["serve"].endswith(
        f"--lora-modules sql={tmp_path / 'sql'} --sampler cold --cold-alpha 0.0 --cold-beta 0.5"
    )


@pytest.mark.slow
def test_all_presets_that_fit(
    line: Line, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tried(words: list[str]) -> list[str | None]:
        assert main(words) in (0, 1), capsys.readouterr().err
        return [row["setting"]["preset"] for row in read_report(tmp_path)["rows"]]

    def alone(*more: str) -> list[str]:
        words = line("--preset", "all", "--restart", *more)
        at = words.index("--alpha")
        return words[:at] + words[at + 4 :]

    assert tried(alone()) == ["cold"]
    two = ("--amateur", str(tmp_path / "chat"), "--amateur", "org/model")
    assert tried(alone(*two)) == ["cold", "dexperts"]
    # A point of the grid is the preset, and cfg decodes as cad does.
    assert tried(line("--preset", "all", "--restart")) == [None] * 4
    write_chats(tmp_path)
    assert tried(alone("--without", "system")) == ["cold", "cad", "adacad"]
    write_chats(tmp_path, cold_without=0)
    assert tried(alone()) == ["cold"]  # the others fit one row alone


def test_two_amateurs(line: Line, engine: Engine, tmp_path: Path) -> None:
    words = line("--amateur", str(tmp_path / "chat"), "--amateur", "org/model")
    words += ["--weights", "0.5", "--weights", "-0.5"]
    at = words.index("--beta")
    del words[at : at + 2]
    engine.text = lambda job: "right" if job.setting else "wrong"
    assert main(words) == 0
    assert engine.starts[0][1]["max_loras"] == 2
    report = read_report(tmp_path)
    assert report["run"]["contrast"] == "adapter chat and the base model"
    told = {"cold_amateur": ["chat", "org/model"], "cold_weights": [0.5, -0.5]}
    assert any(f'must send `"vllm_xargs": {json.dumps(told)}`.' in n for n in report["notes"])
    assert report["serve"].endswith("--sampler cold --cold-alpha 0.1")
    assert report["headline"].startswith(
        "Use `--sampler cold --cold-alpha 0.1` and, in each request, "
        f'`"vllm_xargs": {json.dumps(told)}`, which beats greedy decoding: +100.0 points on 20 held'
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "problem 'line-1' (line 1): nothing to contrast with: give --adapter, or say what"),
        (["--amateur", "org/model"], "nothing to contrast with"),
        (
            ["--preset", "cad"],
            "--preset='cad': contrasts with another prompt; say which with --without",
        ),
        (
            ["--preset", "dexperts"],
            "(line 1): --preset='dexperts': is for 2 amateurs: list their adapters in --amateur",
        ),
        (
            ["--without", "tool"],
            "problem 'line-1' (line 1): --without='tool': the conversation has no such",
        ),
        (["--without", "0,1,2"], "leaves no message; one must be left"),
        (["--part", "0:3"], "(line 1): --part='0:3': is for completions, whose prompt is one text"),
    ],
)
def test_what_cannot_be_contrasted_is_said_before_anything_starts(
    line: Line,
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    write_chats(tmp_path)
    words = line(*more)
    assert main(words if "--preset" in more else without_adapter(words)) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1
    assert not re.search("cold_[a-z]", printed)  # which nobody has written
    assert not engine.starts and not (tmp_path / "out").exists()


def test_a_callable_that_fails_ends_the_run_at_once(
    line: Line,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tune_failing.py").write_text("def rule(output, answer): return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    assert main(line("--match", "tune_failing:rule")) == 2
    assert "raised ZeroDivisionError" in capsys.readouterr().err
    assert len(engine.jobs) == 1
    assert main(line()) == 0  # the output is kept, and another rule can use it
    assert len(set(keys(engine.jobs))) == len(engine.jobs)


def test_notes_say_what_a_reader_has_to_know(line: Line, engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    again = {"messages": [{"role": "user", "content": "p1"}], "answer": "right"}  # with --chat
    file.write_text(file.read_text() + json.dumps(again) + "\n")
    engine.penalties = {"repetition_penalty": 1.1}
    engine.finish = "length"
    assert main(line("--amateur", str(tmp_path / "chat"), "--stop", "\n", "--chat")) == 0
    report = read_report(tmp_path)
    notes = " ".join(report["notes"])
    assert 'must send `"vllm_xargs": {"cold_amateur": "chat"}`' in notes
    assert 'send temperature 0, max_tokens 256 and stop ["\\n"].' in notes
    assert "1 row repeats an earlier prompt and was left out." in notes
    assert "100.0 % of the outputs of greedy were cut off at 256 tokens" in notes
    assert "100.0 % of the outputs of the picked setting were cut off" in notes
    assert "generation_config.json sets repetition_penalty 1.1" in notes
    assert "--max-loras 2" in report["serve"]


@pytest.mark.parametrize(
    ("module", "library"),
    [("stats", "scipy"), ("heatmap", "matplotlib"), ("page", "jinja2")],
)
def test_a_library_that_is_missing_is_named_before_anything_starts(
    line: Line,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    library: str,
) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *arguments)

    # As in a process that has imported none of them.
    for name in ("command", module):
        monkeypatch.delitem(sys.modules, f"vllm_cold.tools.tune.{name}", raising=False)
        monkeypatch.delattr(tune, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(line()) == 2
    said = f"this command needs {library}: install vllm-cold with its extra tools, or pip"
    assert said in capsys.readouterr().err
    assert not engine.starts


@pytest.mark.parametrize(
    ("active", "said"),
    [
        (True, "CoLD cannot be used in this engine: no LoRA."),
        (False, "COLD_ENABLED=0 is set; unset"),
    ],
)
def test_an_engine_without_cold_decodes_nothing(
    monkeypatch: pytest.MonkeyPatch, active: bool, said: str
) -> None:
    from vllm_cold.vllm import availability
    from vllm_cold.vllm.frontend import config

    if active:
        monkeypatch.setattr(availability, "inactive", lambda: None)
    else:
        monkeypatch.setenv("COLD_ENABLED", "0")
    monkeypatch.setattr(config, "is_configured", lambda config: False)
    monkeypatch.setattr(config, "unsupported", lambda config: "no LoRA.")
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=None))
    with pytest.raises(ToolError, match=said):
        Decoder(llm, "base", [Adapter("sql", "/sql", 8)], "sql", max_tokens=8)


def test_bars_on_a_terminal_and_lines_everywhere() -> None:
    problem = Problem("a", 1, "a", ("a",))
    jobs = [Job(BEST, problem)] * 2
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        with watch(console, total=5, found=3, parts=2) as watcher:
            watcher.expect((None, "dev"), [], 3)
            watcher.expect((BEST, "dev"), jobs, 0)
            assert not watcher.count((BEST, "dev"))
            assert watcher.count((BEST, "dev"))
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert "[pass 1/2] greedy, dev: 3 problems found; 3/5 outputs, 0 s" in printed
        assert "[pass 2/2] alpha 0.1, beta 0.5, dev: 2 problems done; 5/5 outputs, 0 s" in printed
        assert ("━" in printed) is terminal
        if terminal:
            passes, outputs, _ = printed.splitlines()[-3:]
            assert "passes" in passes and "2/2" in passes and "5/5" in outputs


def make(field: str, reads: Content) -> list[int]:
    """Words are tokens; the template fails for an assistant's message."""
    if isinstance(reads, Text):
        return [0, *map(len, reads.value.split())]
    if reads.value[0]["role"] == "assistant":
        raise ColdError(field, "x", "no assistant first")
    text = " ".join(f"{m['role']}: {m['content']}" for m in reads.value) + " assistant:"
    return [*map(len, text.split())]


def make_decoder(
    limit: int, max_tokens: int, chat: bool = False, expert: str | None = "sql", seats: int = 2
) -> Decoder:
    made = object.__new__(Decoder)
    made._make, made._chat = make, chat
    made._base, made._expert = "base", expert
    made._adapters = {n: LoRARequest(n, i, f"/{n}") for i, n in enumerate(("sql", "chat"), 1)}
    made._streams = {}
    made._common = {"max_tokens": max_tokens}
    made._config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=limit),
        scheduler_config=SimpleNamespace(max_num_seqs=seats),
    )
    return made


def prompts_of(decoder: Decoder) -> dict[str, list[int]]:
    return {name: list(streams[0].ids) for name, streams in decoder._streams.items()}


def test_prompts_and_messages_become_tokens() -> None:
    text = Problem("text", 1, "one two", ("a",))
    chat = Problem("chat", 2, (("user", "one two"),), ("a",))
    decoder = make_decoder(limit=8, max_tokens=4)
    decoder.tokenize([text, chat])
    assert prompts_of(decoder) == {"text": [0, 3, 3], "chat": [5, 3, 3, 10]}
    decoder = make_decoder(limit=8, max_tokens=4, chat=True)
    decoder.tokenize([text])
    assert prompts_of(decoder) == {"text": [5, 3, 3, 10]}


def test_prompts_that_cannot_be_decoded() -> None:
    long = Problem("long", 3, "a b c d", ("a",))
    with pytest.raises(ToolError, match=r"'long' \(line 3\): its prompt has 5 tokens, with"):
        make_decoder(limit=8, max_tokens=4).tokenize([long])
    make_decoder(limit=9, max_tokens=4).tokenize([long])
    first = Problem("first", 4, (("assistant", "x"),), ("a",))
    said = r"'first' \(line 4\): prompt='x': no assistant first$"
    with pytest.raises(ToolError, match=said):
        make_decoder(limit=8, max_tokens=4).tokenize([first])


def test_the_page_shows_problems_that_can_be_read(tmp_path: Path) -> None:
    rows, chats = (b.text for b in blocks("docs/tuning.md") if b.language == "json")
    (tmp_path / "p.jsonl").write_text(rows)
    problems, _ = load_problems(str(tmp_path / "p.jsonl"))
    assert [p.answer for p in problems] == ["42", ["2", "3"], 12]
    (tmp_path / "p.jsonl").write_text(chats)
    check = check_problems(make_grid({}, "cfg,adacad"), None, "base", [], False)
    problems, _ = load_problems(
        str(tmp_path / "p.jsonl"), args={"cold_without": "system"}, check=check
    )
    assert [p.args for p in problems] == [
        {"cold_without": "system"}, {"cold_without": 0}, {"cold_part": [0, 31]},
    ]  # fmt: skip
    assert problems[2].prompt[31:] == "Question: How many arches? Answer:"


def test_the_page_says_how_many_problems_are_needed() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    header = re.search(r"\| held-out problems \| (.+) \|", page)
    assert header is not None
    shares = [float(text.split()[0]) / 100 for text in header[1].split(" | ")]
    rows = re.findall(r"(?m)^\| (\d+) \| ((?:[\d.]+|none)(?: \| (?:[\d.]+|none))+) \|$", page)
    assert len(rows) >= 5 and len(shares) == 4
    for count, cells in rows:
        for share, cell in zip(shares, cells.split(" | "), strict=True):
            found = stats.detectable(int(count), share, 0.05, True)
            assert cell == ("none" if found is None else f"{100 * found:.1f}"), (count, share)


def test_the_page_names_options_that_exist() -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    (parser,) = (
        action.choices["tune"]
        for action in build_parser()._actions
        if isinstance(action.choices, dict)
    )
    known = set(parser._option_string_actions)
    known |= {
        "--sampler",
        *("--cold-" + name.replace("_", "-") for name in ENGINE),
    }  # of vllm serve
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page)) <= known


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["tune", "--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "module:function" in printed and "Ends with status 0" in printed
