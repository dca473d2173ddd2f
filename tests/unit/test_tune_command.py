# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its exit status, with a function in place of a server."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.docs.blocks import ROOT, blocks
from vllm_cold.settings.table import ENGINE, MAX_EXPERT_TOP_K
from vllm_cold.tools import models, tune
from vllm_cold.tools.contrast_args import ROW_KEYS
from vllm_cold.tools.main import build_parser, main
from vllm_cold.tools.tune import tune_command as tune_command
from vllm_cold.tools.tune.answers import Job, Output
from vllm_cold.tools.tune.grid import GREEDY, Setting
from vllm_cold.tools.tune.problems import load_problems

pytestmark = pytest.mark.unit

COUNT = 40
TOTAL = 2 * COUNT + COUNT // 2  # greedy, two settings on dev, the best on the rest
BEST, OTHER, CAD = Setting(alpha=0.1, beta=0.5), Setting(alpha=0.1, beta=1.0), Setting("cad")
NAMES = ["no text", "a stronger prompt", "the text repeated"]
Capture = pytest.CaptureFixture[str]
PRESET = ("--alpha", "--beta")  # left out, there are presets alone


class Command:
    """The command, in a folder with problems and adapters, with a function in place of a server.

    Attributes:
        folder: The folder.
        started: Arguments of the servers that were started.
        jobs: Jobs that were done, in order.
        text: Gives the output of a job.
        finish: vLLM's reason, of all outputs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[dict[str, Any]] = []
        self.jobs: list[Job] = []
        self.text: Callable[[Job], str] = lambda job: "right" if job.setting == BEST else "wrong"
        self.finish = "stop"

    @contextmanager
    def serving(self, model: str, adapters: Any, expert: Any, **engine: Any) -> Iterator[object]:
        self.started.append(engine)
        yield object()

    def ask(
        self, task: Any, server: Any, jobs: Iterable[Job], done: Callable[[Job, Output], None]
    ) -> None:
        for job in jobs:
            self.jobs.append(job)
            done(job, Output(self.text(job), self.finish))

    def __call__(self, *more: str, without: Iterable[str] = ()) -> int:
        """The status of a command line that is right, with further options and without others."""
        words = [
            *("tune", str(self.folder / "p.jsonl"), "--model", "org/model"),
            *("--adapter", str(self.folder / "sql"), "--alpha", "0.1", "--beta", "0.5,1"),
            *("--output", str(self.folder / "out"), *more),
        ]
        for option in without:
            at = words.index(option)
            del words[at : at + 2]
        return main(words)

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        (self.folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_chats(self, *before: tuple[str, str]) -> None:
        """Chats that begin with a system prompt."""
        self.write(
            {
                "messages": [
                    {"role": role, "content": content}
                    for role, content in (("system", "Be right."), *before, ("user", f"{n}"))
                ],
                "answer": "right",
            }
            for n in range(COUNT)
        )

    def write_texts(self, silent: int = 0) -> None:
        """Rows with a text and a question; of the first so many the text does not answer."""
        more: list[dict[str, Any]] = [{"answers": False}] * silent + [{}] * (COUNT - silent)
        self.write(
            {"prompt": f"T{n}. Q{n}?", "answer": "right", "cold_part": [0, len(f"T{n}. ")], **row}
            for n, row in enumerate(more)
        )

    def take(self) -> list[tuple[Setting, str]]:
        """What was decoded since the last time."""
        decoded = [(job.setting, job.problem.id) for job in self.jobs]
        self.jobs.clear()
        assert len(decoded) == len(set(decoded))
        return decoded

    @property
    def report(self) -> Any:
        return json.loads((self.folder / "out" / "report.json").read_text())

    @property
    def headline(self) -> str:
        return self.report["headline"]  # type: ignore[no-any-return]

    @property
    def notes(self) -> str:
        return " ".join(self.report["notes"])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    command = Command(tmp_path)
    command.write({"prompt": f"p{n}", "answer": "right", "id": f"p{n}"} for n in range(COUNT))
    for name in ("sql", "chat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"r": 8}')
    monkeypatch.setattr(models, "serving", command.serving)
    monkeypatch.setattr(tune_command, "ask", command.ask)
    return command


MISTAKES = """
--test-fraction nan                | --test-fraction=nan: must be between 0 and 1, both excluded
--max-tokens 0                     | --max-tokens=0: must be >= 1
--seed -1                          | --seed=-1: must be >= 0
--amateur-prompt \udc80            | --amateur-prompt='\\udc80': must be valid Unicode text
--better x                         | --better: every amateur must read another prompt
--weights -1                       | (line 1): --beta=0.5: no amateur uses it, as each has
--beta 1,mti                       | --beta='mti': must be a number >= 0, at most 1e6
--rule half                        | --rule='half': must be the name of a rule: acd,
--rule-parameters {"tau":2}        | (line 1): --rule-parameters={'tau': 2}: is for a rule, and
--preset cad                       | (line 1): --preset='cad': contrasts with another prompt; say
--without tool                     | (line 1): --without='tool': is for chat
--url http://127.0.0.1:1 --dtype half | --dtype: is for an engine that is started, and --url
"""


@pytest.mark.parametrize("row", MISTAKES.strip().splitlines())
def test_a_mistake_is_one_sentence_and_starts_nothing(
    command: Command, capsys: Capture, row: str
) -> None:
    words, message = (part.strip() for part in row.split(" | "))
    assert command(*words.split()) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("vllm-cold tune: ") and message in sentence
    assert not re.search("cold_[a-z]", sentence)
    assert not command.started and not (command.folder / "out").exists()


def test_nothing_to_contrast_with(command: Command, capsys: Capture) -> None:
    assert command(without=["--adapter"]) == 2
    assert "problem 'p0' (line 1): nothing to contrast with" in capsys.readouterr().err


def test_one_engine_one_greedy_pass_and_nothing_held_out_but_the_best(
    command: Command, capsys: Capture
) -> None:
    assert command() == 0
    assert len(command.started) == 1
    done = command.take()
    assert Counter(setting for setting, _ in done) == {
        GREEDY: COUNT, BEST: COUNT, OTHER: COUNT // 2
    }  # fmt: skip
    assert [setting for setting, _ in done[:3]] == [BEST, OTHER, GREEDY]
    on_dev = {id for setting, id in done if setting == OTHER}
    assert {id for _, id in done[-COUNT // 2 :]} == {f"p{n}" for n in range(COUNT)} - on_dev
    report = command.report
    assert report["gain"] and report["test"]["answered"]["count"] == COUNT // 2
    assert [row["picked"] for row in report["settings"]] == [True, False]
    assert len(report["changes"]) == COUNT // 2 and report["changes"][0]["cold"] == "right"
    printed = capsys.readouterr()
    assert f"{COUNT} problems (20 dev, 20 held out), 2 settings. 0 answers are" in printed.err
    assert printed.out.splitlines()[-1] == report["headline"]


def test_what_the_answers_depend_on_may_not_change(command: Command, capsys: Capture) -> None:
    assert command() == 0
    for options, message in (
        (["--max-tokens", "9"], "max_tokens was 256 and is 9"),
        (["--stop", "x"], "stop was [] and is ['x']"),
        (["--dtype", "half"], "engine"),
        (["--model", "org/other"], "model was"),
        ([], "files changed"),
    ):
        if not options:
            (command.folder / "sql" / "adapter_config.json").write_text('{"r": 4}')
        assert command(*options) == 2
        assert f"holds answers of another run ({message}" in capsys.readouterr().err
    assert len(command.started) == 1


def test_rule_split_answers_and_grid_may_change(command: Command) -> None:
    assert command() == 0
    assert command("--match", "contains") == 0
    file = command.folder / "p.jsonl"
    file.write_text(file.read_text().replace('"right"', '["right", "Right"]', 1))
    assert command() == 0
    assert len(command.started) == 1  # the outputs depend on none of these
    command.take()
    assert command("--alpha", "0.1,0.2") == 0
    added = {Setting(alpha=0.2, beta=0.5), Setting(alpha=0.2, beta=1.0)}
    assert {setting for setting, _ in command.take()} == added
    assert command("--seed", "1") == 0
    assert {setting for setting, _ in command.take()} == {OTHER}


def test_a_callable_that_fails_ends_the_run_at_once(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (command.folder / "tune_failing.py").write_text("def rule(output, answer): return 1 / 0\n")
    monkeypatch.chdir(command.folder)
    assert command("--match", "tune_failing:rule") == 2
    assert "raised ZeroDivisionError" in capsys.readouterr().err
    assert len(command.jobs) == 1
    assert command() == 0 and len(command.take()) == TOTAL  # another rule can use the answer


def test_whether_irrelevant_context_was_tested(command: Command, capsys: Capture) -> None:
    """An instruction has nothing to answer; documents have, which a preset or a row says."""

    def printed(*options: str) -> str:
        command("--without", "system", *options, without=["--adapter"])
        return capsys.readouterr().out

    command.write_chats()
    assert "Not tested" not in printed("--preset", "cfg")
    config = {"cold": {"enabled": False}}
    assert command.started == [{"additional_config": config}]
    text = printed("--preset", "cad")
    assert "Not tested" in text and "The text has" in text
    file = command.folder / "p.jsonl"
    file.write_text(file.read_text().replace('{"mess', '{"answers": false, "mess', 12))
    text = printed()
    assert "Not tested" not in text and "The text has" in text


def test_baselines_come_first_and_their_findings(command: Command, capsys: Capture) -> None:
    command.write_texts(silent=16)
    before: list[str] = []

    def text(job: Job) -> str:
        if job.setting == CAD and len(command.jobs) > 1:
            before.append(" ".join(capsys.readouterr().out.split()))
        return "right" if job.setting == CAD else "wrong"

    command.text = text
    options = ("--preset", "cad", "--better", "By the text:")
    assert command(*options, without=PRESET) == 0
    seen = {job.setting.baseline: job.reads.value for job in command.jobs if job.problem.line == 4}
    texts = ("T3. Q3?", "Q3?", "T3. By the text: Q3?", "T3. T3. Q3?")
    assert seen == dict(zip((None, *NAMES), texts, strict=True))
    command.jobs.clear()
    report = command.report
    assert report["first"][0] in before[0] and "Not tested" not in before[0]
    assert [row["name"] for row in report["settings"]] == [*NAMES, "cad"]
    assert 'The stronger prompt has "By the text:" before the question' in command.notes
    # What is asked twice is decoded once.
    file = command.folder / "p.jsonl"
    file.write_text(re.sub(r"Q\d+\?", "Q?", file.read_text()))
    assert command(*options, without=PRESET) == 0
    assert [setting.baseline for setting, _ in command.take()].count("no text") == 1


@pytest.mark.parametrize("chats", [True, False])
def test_a_baseline_that_gains_is_tried_with_contrasts(command: Command, chats: bool) -> None:
    """With the one that gains most alone, and not with the other."""
    (command.write_chats if chats else command.write_texts)()
    lacks, preset = ("instruction", "cfg") if chats else ("text", "cad")
    repeated, key = f"the {lacks} repeated", f"cold_amateur_{'messages' if chats else 'prompt'}"
    both = Setting(preset, baseline=repeated)  # type: ignore[arg-type]
    gains = {repeated: 3, None: 2}  # on all but every so manieth problem

    def text(job: Job) -> str:
        right = job.setting == both or job.problem.line % gains.get(job.setting.baseline, 1)
        return "right" if right else "wrong"

    command.text = text
    options = ("--without", "system") if chats else ()
    assert command(*options, "--preset", preset, without=[*PRESET, "--adapter"]) == 0
    done = [job for job in command.jobs if job.setting == both]
    tried = {job.setting.baseline for job in command.jobs if job.args}
    assert len(done) == COUNT and tried == {None, repeated}
    for job in done:
        lacking = job.problem.lacking.value
        assert job.args == {
            "cold_preset": preset, key: json.dumps(lacking) if chats else lacking
        }  # fmt: skip
        assert job.reads == job.problem.baselines[repeated]
    assert command.headline.startswith(f"Use {preset} with {repeated}, which beats greedy deco")
    assert f", and {repeated} alone by +" in command.headline
    sent = json.dumps({**SENT, "cold_preset": preset})
    assert f"{sent} and a prompt and {', '.join(ROW_KEYS)} as answers.jsonl has" in command.notes
    assert command.report["serve"].endswith("--sampler cold")


def test_presets_with_several_amateurs_are_tried_alone(command: Command) -> None:
    command.write_chats(("tool", "It is."))
    command.text = lambda job: "right" if job.setting.baseline and job.problem.line % 2 else "wrong"
    more = ("--without", "tool", "--without", "system", "--preset", "grounded,cad")
    command(*more, without=[*PRESET, "--adapter"])
    combined = {job.setting.preset for job in command.jobs if job.setting.baseline}
    assert combined == {None, "cad"}
    # What is lacked is told by the one that is alone.
    lacking = next(job.problem.lacking for job in command.jobs if job.problem.line == 1)
    assert lacking.value == [{"role": "user", "content": "0"}]


def test_a_contrast_on_top_of_the_best_passage_or_none(command: Command) -> None:
    """Where no passage is shown, there is nothing to contrast with."""
    command.write(
        {
            "messages": [{"role": "user", "content": f"A{n}\nB{n}\nQ{n}?"}],
            "passages": [{"text": f"A{n}", "score": n % 2}, {"text": f"B{n}", "score": -1}],
            "answers": bool(n % 2),
            "answer": "right",
        }
        for n in range(COUNT)
    )
    name = "the best passage alone, or none below 1.0"
    both = Setting("cad", baseline=name)

    def text(job: Job) -> str:
        n = job.problem.line - 1
        shown = job.reads.value[0]["content"].partition("\nQ")[0]
        right = bool(job.args) or (shown == f"A{n}\n" and n % 8 == 1)
        return "right" if (right if n % 2 else shown == "\n") else "wrong"

    command.text = text
    assert command("--preset", "cad", without=[*PRESET, "--adapter"]) == 0
    assert command.headline.startswith("Use cad with the best passage alone, or none below 1.0,")
    done = [job for job in command.jobs if job.setting == both]
    lacking = [{"role": "user", "content": "\n\nQ1?"}]
    [job] = [job for job in done if job.problem.line == 2]
    assert job.args == {"cold_preset": "cad", "cold_amateur_messages": json.dumps(lacking)}
    assert {job.problem.line % 2 for job in done} == {0}  # the others' answers were there
    sent = json.dumps({**SENT, "cold_preset": "cad"})
    assert f"{sent} and a prompt and " in command.notes


class Advised(NamedTuple):
    """A run and what its report advises."""

    write: Callable[[Command], None]  # the problems
    options: str  # "chat" is the adapter of that name
    left_out: tuple[str, ...]  # of the options that are always there
    right: Callable[[Job], Any]
    status: int
    headline: str  # its beginning
    serve: str  # the end of the line to paste
    note: str = ""  # a part of one of them
    unsaid: str = "???"  # in no note, nor in that line


REPEATED = "the text repeated"
SENT = {"cold": 1, "cold_expert_top_k": MAX_EXPERT_TOP_K}
ADVICE = {
    "another prompt": Advised(
        Command.write_chats, "--without system", ("--adapter",), lambda job: job.setting == BEST,
        0, "Use alpha 0.1, beta 0.5, which beats", "vllm serve org/model --sampler cold "
        "--cold-without system --cold-alpha 0.1 --cold-beta 0.5", unsaid="must also send",
    ),
    "a row's own part": Advised(
        Command.write_texts, "--preset cad", PRESET, lambda job: job.setting == CAD,
        0, "Use cad, which beats", "/sql --sampler cold",
        'Contrastive requests must also send "vllm_xargs": '
        f"{json.dumps({**SENT, 'cold_preset': 'cad'})} and a prompt and {', '.join(ROW_KEYS)} as ",
    ),
    "two amateurs": Advised(
        lambda command: None, "--amateur chat --amateur org/model --weights 0.5 --weights -0.5",
        ("--beta",), lambda job: job.args, 0, "Use alpha 0.1, which beats greedy",
        "--sampler cold", '"cold_amateur": ["chat", "org/model"], "cold_weights": [0.5, -0.5], ',
    ),
    "a weight with a baseline": Advised(
        Command.write_chats, "--without system --amateur chat --weights -0.25", ("--beta",),
        lambda job: job.setting.baseline and (job.args or job.problem.line % 2),
        0, "Use alpha 0.1 with a stronger prompt, which beats", "--sampler cold",
        '"cold_amateur": "chat", "cold_weights": -0.25, ', "cold_without\":",
    ),
    "a gain where texts answer alone": Advised(
        lambda command: command.write_texts(silent=16), "--preset cad", PRESET,
        lambda job: (
            job.setting == Setting("cad", baseline=REPEATED)
            or (job.setting.baseline == REPEATED and job.problem.line % 3 == 0)
            if job.problem.has_answer
            else not job.args
        ),
        1, f"Use cad with {REPEATED} only where the text is known to answer, which", "sql",
        'Where the text is known to answer, requests must also send "vllm_xargs": {"cold": 1, ',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVICE)
def test_what_is_advised(command: Command, name: str) -> None:
    run = ADVICE[name]
    run.write(command)
    command.text = lambda job: "right" if run.right(job) else "wrong"
    chat = str(command.folder / "chat")
    options = [chat if word == "chat" else word for word in run.options.split()]
    assert command(*options, without=run.left_out) == run.status
    assert command.headline.startswith(run.headline)
    serve = command.report["serve"]
    assert serve.endswith(run.serve) and ("--sampler" in serve) is (run.status == 0)
    assert run.note in command.notes and run.unsaid not in command.notes + serve


def test_notes_say_what_a_reader_has_to_know(command: Command) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{n}", "answer": "right"} for n in range(COUNT)]
    again = {"messages": [{"role": "user", "content": "p1"}], "answer": "right"}  # with --chat
    command.write([*rows, again])
    command.finish = "length"
    command.text = lambda job: "no"
    assert command("--stop", "\n", "--chat") == 1
    for note in (
        'had max_tokens 256, stop ["\\n"].',
        "Rows that repeat an earlier prompt and were left out: 1.",
        "100.0 % of the answers of greedy were cut off at 256 tokens",
        "100.0 % of the answers of the picked setting were cut off",
        "Nothing is right, with or without",
    ):
        assert note in command.notes


def test_a_library_that_is_missing_is_named_before_anything_starts(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    # As in a process that has imported none of them.
    for name in ("tune_command", "tune_report", "verdict", "task"):
        monkeypatch.delitem(sys.modules, f"vllm_cold.tools.tune.{name}", raising=False)
        monkeypatch.delattr(tune, name, raising=False)
    assert command() == 2
    assert "this command needs scipy: install vllm-cold with its" in capsys.readouterr().err
    assert not command.started


def test_the_page_shows_problems_and_options_that_exist(tmp_path: Path) -> None:
    (rows,) = (b.text for b in blocks("docs/tuning.md") if b.language == "json")
    (tmp_path / "p.jsonl").write_text(rows)
    problems, _ = load_problems(str(tmp_path / "p.jsonl"))
    assert [p.answer for p in problems] == ["11", ["9", "nine"], 12]
    first, text, chat = problems
    assert first.score == 0.8 and json.loads(first.args["cold_amateur_messages"]) == [
        {"role": "user", "content": "\n\n\nWhen does the shop open?"}
    ]
    assert (text.args, chat.args) == ({"cold_part": [0, 31]}, {"cold_without": "system"})
    assert text.prompt.value[31:] == "Question: How many arches? Answer:"
    (parser,) = (
        action.choices["tune"]
        for action in build_parser()._actions
        if isinstance(action.choices, dict)
    )
    known = set(parser._option_string_actions) | {"--sampler"}
    known |= {"--cold-" + name.replace("_", "-") for name in ENGINE}  # of vllm serve
    page = (ROOT / "docs" / "tuning.md").read_text()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page)) <= known
