# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its exit status, with an engine that is a function."""

from __future__ import annotations

import builtins
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, blocks
from vllm_cold.method.settings import ENGINE, MAX_EXPERT_TOP_K
from vllm_cold.tools import tune
from vllm_cold.tools.main import build_parser, main
from vllm_cold.tools.tune import decode
from vllm_cold.tools.tune.answers import Answer, Job
from vllm_cold.tools.tune.grid import Setting
from vllm_cold.tools.tune.problems import load_problems
from vllm_cold.tools.tune.task import Task

pytestmark = pytest.mark.unit

COUNT = 40
TOTAL = 2 * COUNT + COUNT // 2  # greedy, two settings on dev, the best on the rest
BEST = Setting(alpha=0.1, beta=0.5)
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
    write(tmp_path, ({"prompt": f"p{n}", "answer": "right", "id": f"p{n}"} for n in range(COUNT)))
    for name in ("sql", "chat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"r": 8}')

    def make(*more: str) -> list[str]:
        return [
            *("tune", str(tmp_path / "p.jsonl"), "--model", "org/model"),
            *("--adapter", str(tmp_path / "sql"), "--alpha", "0.1", "--beta", "0.5,1"),
            *("--output", str(tmp_path / "out"), *more),
        ]

    return make


class Engine:
    """In place of ``Engine``.

    Attributes:
        tasks: Of engines that were started.
        jobs: Jobs that were done, in order.
        text: Gives the output of a job.
        finish: vLLM's reason, of all outputs.
        end: Before which job (by number) ``error`` is raised.
    """

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.jobs: list[Job] = []
        self.text: Callable[[Job], str] = lambda job: "right" if job.setting == BEST else "wrong"
        self.finish = "stop"
        self.end: int | None = None
        self.error: BaseException = KeyboardInterrupt()

    def start(self, task: Task) -> Engine:
        self.tasks.append(task)
        return self

    def run(self, jobs: Iterable[Job], done: Callable[[Job, Answer], None]) -> None:
        for job in jobs:
            if len(self.jobs) == self.end:
                self.end = None
                raise self.error
            self.jobs.append(job)
            done(job, Answer(self.text(job), self.finish))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(decode, "Engine", made.start)
    return made


def keys(jobs: Iterable[Job]) -> list[tuple[Setting | None, str]]:
    return [(job.setting, job.problem.id) for job in jobs]


def read_report(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "report.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test-fraction", "0.9"], "with fewer than 6 no difference can be significant. Bring 6"),
        (["--match", "number"], "--match=number: line 1: cannot use the answer 'right': it has no"),
        (["--amateur", "SQL"], "is given twice; leave it out"),
        (["--amateur-prompt", "\udc80"], "--amateur-prompt='\\udc80': must be valid Unicode text"),
        (["--better", "x"], "--better: is for amateurs that read another prompt"),
        (["--weights", "-1"], "--beta=0.5: no amateur uses it, as each has"),
        (["--alpha", "0.1,"], "--alpha='': must be a number"),
        (["--beta", "1,mti,half"], "--beta='half': must be a number, or the name of a rule: acd, "),
        (["--beta-max", "2"], "--beta-max=2.0: no rule that is tried has such a parameter"),
        (
            ["--rule-parameters", '{"taw": 2}', "--beta", "mti"],
            "--rule-parameters['taw']=2: no rule that is tried has such a parameter",
        ),
        (
            ["--rule-parameters", '{"tau": -2}', "--beta", "mti"],
            "--rule-parameters['tau']=-2: must be a number from 0 to 100",
        ),
        (["--preset", "what"], "--preset='what': must be one of cold, cad"),
        (
            ["--preset", "cad"],
            "--preset='cad': contrasts with another prompt; say which with --wit",
        ),
        (["--engine-args", "[1]"], "--engine-args='[1]': must be a JSON object (Expected `object`"),
        (["--engine-args", '{"hf_token": "hf_secret"}'], "set HF_TOKEN"),
        (["--concurrency", "2"], "--concurrency: is for a server; add --url, or leave it out"),
        (["--max-tokens", "0"], "argument --max-tokens: 0: must be 1 or more"),
        (["--test-fraction", "nan"], "argument --test-fraction: nan: must be between 0 and 1"),
        (["--seed", "x"], "argument --seed: invalid integer value: 'x'"),
        (["--model", ""], "--model is missing: name the base model, or a server with --url"),
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
    words = line(*(str(tmp_path / "sql") if word == "SQL" else word for word in more))
    try:
        assert main(without(line(), "--model") if more == ["--model", ""] else words) == 2
    except SystemExit as end:
        assert end.code == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("vllm-cold tune: ") and message in printed
    assert "hf_secret" not in printed and not re.search("cold_[a-z]", printed)
    assert not engine.tasks and not (tmp_path / "out").exists()


def test_one_engine_one_greedy_pass_and_nothing_held_out_but_the_best(
    line: Line, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line()) == 0
    assert len(engine.tasks) == 1
    done = keys(engine.jobs)
    assert len(done) == len(set(done)) == TOTAL
    found = {setting: sum(key[0] == setting for key in done) for setting, _ in done}
    assert found == {None: COUNT, BEST: COUNT, Setting(alpha=0.1, beta=1.0): COUNT // 2}
    on_dev = {id for setting, id in done if setting == Setting(alpha=0.1, beta=1.0)}
    assert [key[0] for key in done[:3]] == [BEST, Setting(alpha=0.1, beta=1.0), None]
    assert {key[1] for key in done[-COUNT // 2 :]} == {f"p{n}" for n in range(COUNT)} - on_dev
    report = read_report(tmp_path)
    assert report["gain"] and report["test"]["count"] == COUNT // 2
    assert len(report["changes"]) == COUNT // 2 and report["changes"][0]["cold"] == "right"
    names = {"report.json", "answers.jsonl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    printed = capsys.readouterr()
    assert f"{COUNT} problems (20 dev, 20 held out), 2 settings. 0 answers are" in printed.err
    assert printed.out.splitlines()[-1] == report["headline"]


def test_the_status_is_1_where_nothing_is_better(
    line: Line, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.text = lambda job: "right"
    assert main(line()) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "No setting beats greedy decoding significantly, so use that: alpha 0.1, beta 0.5, picked "
        "from 2 settings, differs by 0.0 points on 20 held-out problems (95 % interval -12.6 to "
        "+12.6, p = 1); 0.0 on 20 dev problems."
    )


@pytest.mark.parametrize("end", [0, 80])
def test_going_on_after_an_interruption_at_any_place(
    line: Line, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], end: int
) -> None:
    engine.end = end
    assert main(line()) == 130
    printed = capsys.readouterr().err
    assert f"stopped; {end} answers are kept in {tmp_path / 'out' / 'answers.jsonl'}" in printed
    assert "and the same command goes on from there" in printed
    assert not (tmp_path / "out" / "report.json").exists()
    assert main(line()) == 0
    done = keys(engine.jobs)
    assert len(done) == len(set(done)) == TOTAL
    assert f"{end} answers are there already." in capsys.readouterr().err
    assert main(line()) == 0 and len(engine.jobs) == TOTAL and len(engine.tasks) == 2


def test_what_the_answers_depend_on_may_not_change(
    line: Line, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line()) == 0
    for more, said in (
        (["--max-tokens", "9"], "max_tokens was 256 and is 9"),
        (["--stop", "x"], "stop was [] and is ['x']"),
        (["--dtype", "half"], "engine"),
        (["--model", "org/other"], "model was 'org/model' and is 'org/other'"),
    ):
        assert main(line(*more)) == 2
        printed = capsys.readouterr().err
        assert "holds answers of another run (" in printed and said in printed
    (tmp_path / "sql" / "adapter_config.json").write_text('{"r": 4}')
    assert main(line()) == 2
    assert "(files changed)" in capsys.readouterr().err
    assert len(engine.tasks) == 1


def test_rule_split_answers_and_grid_may_change(line: Line, engine: Engine, tmp_path: Path) -> None:
    assert main(line()) == 0
    assert main(line("--match", "contains")) == 0
    file = tmp_path / "p.jsonl"
    file.write_text(file.read_text().replace('"right"', '["right", "Right"]', 1))
    assert main(line()) == 0
    assert len(engine.tasks) == 1  # the outputs depend on none of these
    engine.jobs.clear()
    assert main(line("--alpha", "0.1,0.2")) == 0
    added = {Setting(alpha=0.2, beta=0.5), Setting(alpha=0.2, beta=1.0)}
    assert {job.setting for job in engine.jobs} == added
    engine.jobs.clear()
    assert main(line("--seed", "1")) == 0
    assert {job.setting for job in engine.jobs} == {Setting(alpha=0.1, beta=1.0)}


def write(tmp_path: Path, rows: Iterable[dict[str, Any]]) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_chats(tmp_path: Path) -> None:
    """Problems that are conversations."""
    turns = [{"role": "system", "content": "Be right."}, {"role": "user", "content": "?"}]
    write(
        tmp_path,
        (
            {"messages": [*turns, {"role": "user", "content": f"{n}"}], "answer": "right"}
            for n in range(COUNT)
        ),
    )


def without(words: list[str], *options: str) -> list[str]:
    for option in options:
        at = words.index(option)
        words = words[:at] + words[at + 2 :]
    return words


def test_no_adapter_but_another_prompt(line: Line, engine: Engine, tmp_path: Path) -> None:
    write_chats(tmp_path)
    assert main(without(line("--without", "system", "--preset", "cad"), "--adapter")) == 0
    assert engine.tasks[0].engine == {"additional_config": {"cold": {"enabled": False}}}
    report = read_report(tmp_path)
    assert [row["name"] for row in report["settings"]] == [
        "no instruction", "a better prompt", "the instruction twice",
        "alpha 0.1, beta 0.5", "alpha 0.1, beta 1", "cad",
    ]  # fmt: skip
    assert report["run"]["adapter"] is None
    assert report["run"]["contrast"] == {"cold_without": "system"}
    assert report["serve"] == (
        "vllm serve org/model --sampler cold --cold-without system --cold-alpha 0.1 --cold-beta 0.5"
    )
    assert not any("must also send" in note for note in report["notes"])


def texts(silent: int) -> list[dict[str, Any]]:
    """Rows with a text and a question; of the first so many the text does not answer."""
    rows = [
        {"prompt": f"T{n}. Q?", "answer": "right", "id": f"p{n}", "cold_part": [0, len(f"T{n}. ")]}
        for n in range(COUNT)
    ]
    return [{**row, "answers": False} if n < silent else row for n, row in enumerate(rows)]


def test_plain_prompts_come_first_and_are_told(
    line: Line, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, texts(silent=16))
    names = ["no text", "a better prompt", "the text twice"]
    told: list[str] = []

    def text(job: Job) -> str:
        """A text that answers helps, more so by cad; others harm."""
        answers, line = job.problem.has_answer, job.problem.line
        if job.setting == Setting("cad"):
            if len(engine.jobs) > 1 and not told:
                told.append(" ".join(capsys.readouterr().out.split()))
            right = answers
        elif job.plain == names[0]:
            right = not answers
        else:
            right = answers and line % (4 if job.plain == names[1] else 3) == 0
        return "right" if right else "wrong"

    engine.text = text
    words = without(line("--preset", "cad", "--better", "By the text:"), "--alpha", "--beta")
    assert main(words) == 0
    seen = {job.setting.plain: job.problem.plain for job in engine.jobs if job.setting}
    assert list(seen) == [None, *names]
    one = engine.jobs[0].problem
    n = one.id[1:]
    assert [reads.value for reads in one.plain.values()] == [
        "Q?", f"T{n}. By the text: Q?", f"T{n}. T{n}. Q?",
    ]  # fmt: skip
    (first,) = told
    assert "The text helps: 33.3 % are right with it, 0.0 % without (24 problems, p = " in first
    assert "Where it does not answer, the text harms: 0.0 % are right with it, 100.0 %" in first
    report = read_report(tmp_path)
    assert [row["name"] for row in report["settings"]] == [*names, "cad"]
    assert report["first"][0] in first and "Blind spot" not in first
    assert 'A better prompt has "By the text:" before the question' in " ".join(report["notes"])
    printed = capsys.readouterr().out
    assert "no answer:" in printed and "8 whose text does not answer; greedy: 0.0 %" in printed
    # The same again decodes nothing; another sentence makes one prompt another one.
    engine.jobs.clear()
    assert main(words) == 0 and not engine.jobs
    assert main([*words, "--better", "Read!"]) == 0
    assert {job.plain for job in engine.jobs} == {"a better prompt"} and len(engine.jobs) == COUNT


def test_what_harms_where_texts_do_not_answer_is_no_default(
    line: Line, engine: Engine, tmp_path: Path
) -> None:
    write(tmp_path, texts(silent=16))
    engine.text = lambda job: (
        "right" if (job.setting == Setting("cad")) == job.problem.has_answer else "wrong"
    )
    assert main(without(line("--preset", "cad"), "--alpha", "--beta")) == 1
    report = read_report(tmp_path)
    assert report["headline"].startswith("Use cad only where the text is known to answer, which")
    assert report["test_silent"]["difference"] == -1.0 and report["test"]["difference"] == 1.0
    assert "--sampler" not in report["serve"]
    sent = '"vllm_xargs": {"cold": 1, '
    assert any(
        note.startswith(f"Where the text is known to answer, requests must also send {sent}")
        and "cold_* keys of its problem's row" in note
        for note in report["notes"]
    )


def test_without_rows_that_do_not_answer_there_is_a_blind_spot(
    line: Line, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, texts(silent=0))
    engine.text = lambda job: "right" if job.setting == Setting("cad") else "wrong"
    assert main(without(line("--preset", "cad"), "--alpha", "--beta")) == 0
    assert read_report(tmp_path)["headline"].endswith(
        "nothing is known of texts that do not answer."
    )
    assert 'Blind spot: no problem says "answers": false' in capsys.readouterr().out
    # An instruction has nothing to answer, and an adapter's amateur no other prompt.
    write_chats(tmp_path)
    more = ("--without", "system", "--preset", "cfg", "--output", str(tmp_path / "2"))
    assert main(without(line(*more), "--alpha", "--beta", "--adapter")) in (0, 1)
    assert "Blind spot" not in capsys.readouterr().out


def test_rows_say_what_their_amateurs_read(line: Line, engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, texts(silent=0))
    engine.text = lambda job: "right" if job.setting == Setting("cad") else "wrong"
    assert main(without(line("--preset", "cad"), "--alpha", "--beta")) == 0
    report = read_report(tmp_path)
    told = {"cold": 1, "cold_expert_top_k": MAX_EXPERT_TOP_K, "cold_preset": "cad"}
    said = f'"vllm_xargs": {json.dumps(told)} and the cold_* keys of its problem\'s row'
    said = f"With CoLD requests must also send {said}"
    assert any(note.startswith(said) for note in report["notes"])
    assert report["serve"].endswith(f"--lora-modules sql={tmp_path / 'sql'} --sampler cold")


def test_two_amateurs(line: Line, engine: Engine, tmp_path: Path) -> None:
    more = ["--amateur", str(tmp_path / "chat"), "--amateur", "org/model"]
    words = without(line(*more, "--weights", "0.5", "--weights", "-0.5"), "--beta")
    engine.text = lambda job: "right" if job.setting else "wrong"
    assert main(words) == 0
    assert engine.tasks[0].engine["max_loras"] == 2
    report = read_report(tmp_path)
    told = {"cold_amateur": ["chat", "org/model"], "cold_weights": [0.5, -0.5], "cold_alpha": 0.1}
    assert any(json.dumps(told)[1:] in note for note in report["notes"])
    assert report["serve"].endswith("--sampler cold")
    assert report["headline"].startswith("Use alpha 0.1, which beats greedy")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "problem 'line-1' (line 1): nothing to contrast with: give --adapter, or say what"),
        (["--amateur", "org/model"], "nothing to contrast with"),
        (
            ["--preset", "dexperts"],
            "(line 1): --preset='dexperts': is for 2 amateurs: list their adapters in --amateur",
        ),
        (
            ["--without", "tool"],
            "(line 1): --without='tool': the conversation has no such",
        ),
        (
            ["--part", "0:3"],
            "(line 1): --part='0:3': is for completions, whose prompt is one text",
        ),
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
    assert main(words if "--preset" in more else without(words, "--adapter")) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1
    assert not re.search("cold_[a-z]", printed)  # which nobody has written
    assert not engine.tasks and not (tmp_path / "out").exists()


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
    assert main(line()) == 0  # the answer is kept, and another rule can use it
    assert len(set(keys(engine.jobs))) == len(engine.jobs)


def test_notes_say_what_a_reader_has_to_know(line: Line, engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    again = {"messages": [{"role": "user", "content": "p1"}], "answer": "right"}  # with --chat
    file.write_text(file.read_text() + json.dumps(again) + "\n")
    engine.finish = "length"
    more = ("--amateur", str(tmp_path / "chat"), "--stop", "\n", "--chat")
    assert main(line(*more)) == 0
    report = read_report(tmp_path)
    notes = " ".join(report["notes"])
    assert '"cold_amateur": "chat", "cold_alpha": 0.1, "cold_beta": 0.5}.' in notes
    assert 'had max_tokens 256, stop ["\\n"].' in notes
    assert "Rows that repeat an earlier prompt and were left out: 1." in notes
    assert "100.0 % of the answers of greedy were cut off at 256 tokens" in notes
    assert "100.0 % of the answers of the picked setting were cut off" in notes
    assert "--max-loras 2" in report["serve"]
    (tmp_path / "out" / "answers.jsonl").unlink()
    engine.text = lambda job: "no"
    assert main(line(*more)) == 1
    assert any("Nothing is right, with" in note for note in read_report(tmp_path)["notes"])


def test_a_library_that_is_missing_is_named_before_anything_starts(
    line: Line,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "scipy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *arguments)

    # As in a process that has imported none of them.
    for name in ("command", "verdict"):
        monkeypatch.delitem(sys.modules, f"vllm_cold.tools.tune.{name}", raising=False)
        monkeypatch.delattr(tune, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(line()) == 2
    said = "this command needs scipy: install vllm-cold with its extra tools, or pip"
    assert said in capsys.readouterr().err
    assert not engine.tasks


def test_the_page_shows_problems_that_can_be_read(tmp_path: Path) -> None:
    rows, chats = (b.text for b in blocks("docs/tuning.md") if b.language == "json")
    (tmp_path / "p.jsonl").write_text(rows)
    problems, _ = load_problems(str(tmp_path / "p.jsonl"))
    assert [p.answer for p in problems] == ["42", ["2", "3"], 12]
    (tmp_path / "p.jsonl").write_text(chats)
    problems, _ = load_problems(str(tmp_path / "p.jsonl"), args={"cold_without": "system"})
    assert [p.args for p in problems] == [
        {"cold_without": "system"}, {"cold_without": 0}, {"cold_part": [0, 31]},
    ]  # fmt: skip
    assert problems[2].prompt[31:] == "Question: How many arches? Answer:"


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
