# SPDX-License-Identifier: Apache-2.0
"""``vllm-cold tune`` from its options to its exit status, with a function in place of a server."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, block, blocks
from vllm_cold.settings.table import ENGINE, MAX_EXPERT_TOP_K
from vllm_cold.tools import models, tune
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

    def again(self, *more: str, without: Iterable[str] = ()) -> int:
        """The same, and nothing was decoded before."""
        self.jobs.clear()
        (self.folder / "out" / "answers.jsonl").unlink()
        return self(*more, without=without)

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
            {"prompt": f"T{n}. Q{n}?", "answer": "right", "cold_part": [0, len(f"T{n}. ")], **one}
            for n, one in enumerate(more)
        )

    def take(self) -> list[tuple[Setting, str]]:
        """What was decoded since the last time."""
        found = [(job.setting, job.problem.id) for job in self.jobs]
        self.jobs.clear()
        assert len(found) == len(set(found))
        return found

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
    made = Command(tmp_path)
    made.write({"prompt": f"p{n}", "answer": "right", "id": f"p{n}"} for n in range(COUNT))
    for name in ("sql", "chat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"r": 8}')
    monkeypatch.setattr(models, "serving", made.serving)
    monkeypatch.setattr(tune_command, "ask", made.ask)
    return made


MISTAKES = """
--test-fraction 0.9                | with fewer than 6 no difference can be significant. Bring 6
--test-fraction nan                | --test-fraction=nan: must be between 0 and 1, both excluded
--max-tokens 0                     | --max-tokens=0: must be >= 1
--seed -1                          | --seed=-1: must be >= 0
--match number                     | --match='number': line 1: cannot use the answer: 'right' must
--keep exact                       | --keep='exact': no row has a "keep" (what its output must al
--amateur-prompt \udc80            | --amateur-prompt='\\udc80': must be valid Unicode text
--better x                         | --better: every amateur must read another prompt
--weights -1                       | (line 1): --beta=0.5: no amateur uses it, as each has
--alpha 0.1,                       | --alpha='': must be a number
--beta 1,mti                       | --beta='mti': must be a number >= 0, at most 1e6
--rule half                        | --rule='half': must be the name of a rule: acd,
--rule-parameters {"tau":2}        | (line 1): --rule-parameters={'tau': 2}: is for a rule, and
--rule-parameters {"taw":2} --rule mti | (line 1): --rule-parameters['taw']=2
--preset what                      | --preset='what': must be one of cold, cad
--preset cad                       | (line 1): --preset='cad': contrasts with another prompt; say
--preset dexperts                  | (line 1): --preset='dexperts': is for 2 amateurs: list their
--without tool                     | (line 1): --without='tool': is for chat
--url http://127.0.0.1:1 --dtype half | --dtype: is for an engine that is started, and --url
--engine-args [1]                  | --engine-args='[1]': must be a JSON object (Expected `object`
--engine-args {"additional_config":[1]}  | additional_config=[1]: must be a JSON object
--engine-args {"hf_token":"hf_x"}  | set HF_TOKEN
--engine-args {"port":9000}        | port does not belong there; leave it out
"""


@pytest.mark.parametrize("row", MISTAKES.strip().splitlines())
def test_a_mistake_is_one_sentence_and_starts_nothing(
    command: Command, capsys: Capture, row: str
) -> None:
    words, message = (part.strip() for part in row.split(" | "))
    assert command(*words.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("vllm-cold tune: ") and message in said
    assert "hf_x" not in said and not re.search("cold_[a-z]", said)
    assert not command.started and not (command.folder / "out").exists()


def test_nothing_to_contrast_with(command: Command, capsys: Capture) -> None:
    for more in ((), ("--amateur", "org/model")):
        assert command(*more, without=["--adapter"]) == 2
        said = "problem 'p0' (line 1): nothing to contrast with, as the amateur is"
        assert said in capsys.readouterr().err
    assert not command.started


def test_one_engine_one_greedy_pass_and_nothing_held_out_but_the_best(
    command: Command, capsys: Capture
) -> None:
    assert command() == 0
    assert len(command.started) == 1
    done = command.take()
    found = {setting: sum(key[0] == setting for key in done) for setting, _ in done}
    assert found == {GREEDY: COUNT, BEST: COUNT, OTHER: COUNT // 2}
    assert [key[0] for key in done[:3]] == [BEST, OTHER, GREEDY]
    on_dev = {id for setting, id in done if setting == OTHER}
    assert {key[1] for key in done[-COUNT // 2 :]} == {f"p{n}" for n in range(COUNT)} - on_dev
    report = command.report
    assert report["gain"] and report["test"]["score"]["found"]["count"] == COUNT // 2
    assert [row["picked"] for row in report["settings"]] == [True, False]
    assert len(report["changes"]) == COUNT // 2 and report["changes"][0]["cold"] == "right"
    names = {"report.json", "answers.jsonl"}
    assert {path.name for path in (command.folder / "out").iterdir()} == names
    printed = capsys.readouterr()
    assert f"{COUNT} problems (20 dev, 20 held out), 2 settings. 0 answers are" in printed.err
    assert printed.out.splitlines()[-1] == report["headline"]


def test_what_the_answers_depend_on_may_not_change(command: Command, capsys: Capture) -> None:
    assert command() == 0
    for more, said in (
        (["--max-tokens", "9"], "max_tokens was 256 and is 9"),
        (["--stop", "x"], "stop was [] and is ['x']"),
        (["--dtype", "half"], "engine"),
        (["--model", "org/other"], "model was 'org/model' and is 'org/other'"),
        ([], "files changed"),
    ):
        if not more:
            (command.folder / "sql" / "adapter_config.json").write_text('{"r": 4}')
        assert command(*more) == 2
        printed = capsys.readouterr().err
        assert "holds answers of another run (" in printed and said in printed
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


@pytest.mark.parametrize("loses", [False, True])
def test_what_must_be_kept_is_judged_with_what_is_right(
    command: Command, capsys: Capture, loses: bool
) -> None:
    """Nothing is decoded again for it, and what loses it is not served."""

    def text(job: Job) -> str:
        right = job.setting == BEST or (job.setting == OTHER and job.problem.line % 2)
        kept = not loses or job.setting == GREEDY or job.problem.line % 4 == 0
        return " ".join([*["right"] * bool(right), *["kept"] * kept]) or "-"

    command.text = text
    more = ("--match", "contains", "--amateur", str(command.folder / "chat"))
    assert command(*more) == 0
    alone = command.report
    assert alone["test"]["keep"] is None and len(command.take()) == TOTAL
    for keep in ("another", "kept"):
        rows = map(json.loads, (command.folder / "p.jsonl").read_text().splitlines())
        command.write([row | {"keep": keep} for row in rows])
        assert command(*more, "--keep", "regex") == int(loses or keep == "another")
        assert ("Nothing is kept, with or without" in command.notes) is (keep == "another")
        assert "Nothing is right" not in command.notes and not command.jobs
    found = command.report
    assert found["run"]["keep"] == "regex" and found["test"]["match"] == alone["test"]["score"]
    assert found["settings"][1]["test"] is None  # was not decoded there
    assert found["settings"][1]["dev"]["keep"]["found"]["count"] == COUNT // 2
    told = {"keep": "kept", "greedy_keep": 1.0, "greedy_match": 0.0, "cold_match": 1.0}
    assert told.items() <= found["changes"][0].items()
    start = "Use greedy decoding: alpha 0.1, beta 0.5 matches more" if loses else "Use alpha 0.1, b"
    assert found["headline"].startswith(start)
    assert ("--sampler" in found["serve"]) is not loses
    assert ("Contrastive requests must also send" in command.notes) is not loses
    assert "(matched 0.0 %, kept 100.0 %)" in " ".join(capsys.readouterr().out.split())
    said = "0.0 % and 100.0 % are matched (better on 20, worse on 0, p = 1.9e-06), 100.0 % and"
    assert said in command.notes


def test_instructions_as_on_the_page(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contrast makes the model follow; whether the rest is kept decides."""
    pytest.importorskip("if_verifiable", reason="is of the extra ifeval")
    (row,) = (b.text for b in blocks("docs/tuning.md") if "instruction_id_list" in b.text)
    rows = [json.loads(row) for _ in range(COUNT)]
    for number, each in enumerate(rows):
        each["messages"][-1]["content"] += f" {number}"
    command.write(rows)
    monkeypatch.chdir(command.folder)
    Path("p.jsonl").rename("kept.jsonl")
    words = shlex.split(block("docs/tuning.md", "tune-keep").replace("$MODEL", "org/model"))
    texts = {"the instruction repeated": '"Use marks."'}
    for cold, said in (
        ('"Baghdad."', "Use cfg, which beats greedy decoding: +100.0 points of both"),
        ('"Use marks."', "Use greedy decoding: cfg matches more (+100.0 points) but"),
    ):
        command.text = lambda job, cold=cold: (
            cold if job.args else texts.get(job.setting.baseline, "Baghdad.")
        )
        main([*words[1:], "--output", cold])
        report = json.loads(Path(cold, "report.json").read_text())
        assert report["headline"].startswith(said)
        (said,) = [note for note in report["notes"] if "the instruction repeated" in note]
        assert said == (
            "On the held-out problems the instruction repeated matches more (+100.0 points) but "
            "loses what must be kept: -100.0 points (p = 1.9e-06), so it is not advised."
        )


def test_a_callable_that_fails_ends_the_run_at_once(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (command.folder / "tune_failing.py").write_text("def rule(output, answer): return 1 / 0\n")
    monkeypatch.chdir(command.folder)
    assert command("--match", "tune_failing:rule") == 2
    assert "raised ZeroDivisionError" in capsys.readouterr().err
    assert len(command.jobs) == 1
    assert command() == 0 and len(command.take()) == TOTAL  # another rule can use the answer


def test_no_adapter_but_another_prompt(command: Command, capsys: Capture) -> None:
    def tune(*more: str) -> str:
        command("--without", "system", *more, without=["--adapter"])
        return capsys.readouterr().out

    command.write_chats()
    # An instruction has nothing to answer.
    assert "Not tested" not in tune("--preset", "cfg")
    assert command.started[0] == {
        "verbose": False, "additional_config": {"cold": {"enabled": False}}
    }  # fmt: skip
    report = command.report
    assert [row["name"] for row in report["settings"]] == [
        "no instruction", "a stronger prompt", "the instruction repeated",
        "alpha 0.1, beta 0.5", "alpha 0.1, beta 1", "cfg",
    ]  # fmt: skip
    assert report["run"]["adapter"] is None
    assert report["run"]["contrast"] == {"cold_without": "system"}
    assert report["serve"] == (
        "vllm serve org/model --sampler cold --cold-without system --cold-alpha 0.1 --cold-beta 0.5"
    )
    assert "must also send" not in command.notes
    # Documents in it have, which another preset says, or a row that they do not answer.
    printed = tune("--preset", "cad")
    assert "Not tested" in printed and "The text has" in printed
    file = command.folder / "p.jsonl"
    file.write_text(file.read_text().replace('{"mess', '{"answers": false, "mess', 12))
    printed = tune()
    assert "Not tested" not in printed and "The text has" in printed


def test_baselines_come_first_and_are_told(command: Command, capsys: Capture) -> None:
    command.write_texts(silent=16)
    told: list[str] = []

    def text(job: Job) -> str:
        """A text that answers helps, more so by cad; others harm."""
        answers = job.problem.has_answer
        if job.setting == CAD:
            if len(command.jobs) > 1 and not told:
                told.append(" ".join(capsys.readouterr().out.split()))
            right = answers
        elif job.setting.baseline == "no text":
            right = not answers
        else:
            right = answers and job.problem.line % 3 == 0
        return "right" if right else "wrong"

    command.text = text
    more = ("--preset", "cad", "--better", "By the text:")
    assert command(*more, without=PRESET) == 0
    seen = {job.setting.baseline: job.reads.value for job in command.jobs if job.problem.line == 4}
    texts = ("T3. Q3?", "Q3?", "T3. By the text: Q3?", "T3. T3. Q3?")
    assert seen == dict(zip((None, *NAMES), texts, strict=True))
    command.jobs.clear()
    (first,) = told
    assert "The text helps: 33.3 % are right with it, 0.0 % without (24 problems, p = " in first
    assert "Where the text does not answer, it harms: 0.0 % are right with it, 100.0" in first
    report = command.report
    assert [row["name"] for row in report["settings"]] == [*NAMES, "cad"]
    assert report["first"][0] in first and "Not tested" not in first
    assert 'The stronger prompt has "By the text:" before the question' in command.notes
    printed = capsys.readouterr().out
    assert "no answer:" in printed and "8 whose text does not answer; greedy: 0.0 %" in printed
    # Another sentence makes one prompt another one; what is asked twice is decoded once.
    assert command(*more, "--better", "Read!", without=PRESET) == 0
    assert {setting.baseline for setting, _ in command.take()} == {"a stronger prompt"}
    file = command.folder / "p.jsonl"
    file.write_text(re.sub(r"Q\d+\?", "Q?", file.read_text()))
    assert command(*more, without=PRESET) == 0
    assert [setting.baseline for setting, _ in command.take()].count("no text") == 1
    # A baseline that not all rows can have is named.
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    command.write([rows[0] | {"prompt": "x" * 2001 + "?", "cold_part": [0, 2001]}, *rows[1:]])
    command(*more, without=PRESET)
    said = "Baseline not tried: the text repeated. In problem 'line-1' (line 1) the text has more"
    assert said in " ".join(capsys.readouterr().out.split())
    assert any(said in one for one in command.report["first"])


@pytest.mark.parametrize("chats", [True, False])
def test_a_baseline_that_gains_is_tried_with_contrasts(command: Command, chats: bool) -> None:
    (command.write_chats if chats else command.write_texts)()
    lacks, preset = ("instruction", "cfg") if chats else ("text", "cad")
    repeated, key = f"the {lacks} repeated", f"cold_amateur_{'messages' if chats else 'prompt'}"
    both = Setting(preset, baseline=repeated)  # type: ignore[arg-type]

    def tune(text: Callable[[Job], Any]) -> int:
        command.text = lambda job: "right" if text(job) else "wrong"
        options = ("--without", "system") if chats else ()
        left_out = [*PRESET, "--adapter"]
        run = command.again if command.jobs else command
        return run(*options, "--preset", preset, without=left_out)

    gains = {repeated: 3, None: 2}  # on all but each so manieth problem
    assert (
        tune(
            lambda job: job.setting == both or job.problem.line % gains.get(job.setting.baseline, 1)
        )
        == 0
    )
    done = [job for job in command.jobs if job.setting == both]
    # With the one that gains most alone, and not with the other.
    assert len(done) == COUNT and {job.setting.baseline for job in command.jobs if job.args} == {
        None, repeated
    }  # fmt: skip
    for job in done:
        lacking = job.problem.lacking.value
        said = json.dumps(lacking) if chats else lacking
        assert job.args == {"cold_preset": preset, key: said}
        assert job.reads == job.problem.baselines[repeated]
    report = command.report
    assert report["headline"].startswith(f"Use {preset} with {repeated}, which beats greedy deco")
    assert f", and {repeated} alone by +" in report["headline"]
    said = f'"{key}": "<the prompt without the {lacks}>", "cold_preset": "{preset}"}}'
    assert f"{said} and a prompt with {repeated}, as answers.jsonl has it for " in command.notes
    assert "cold_without" not in command.notes + report["serve"]
    assert report["serve"].endswith("--sampler cold")

    # Where the contrast adds little, the baseline alone is advised.
    assert (
        tune(lambda job: job.setting.baseline == repeated and (job.problem.line % 8 or job.args))
        == 1
    )
    assert command.headline.startswith(f"Use {repeated}, without a contrast: ")
    assert "must also send" not in command.notes

    assert tune(lambda job: job.args) == 0  # no baseline gains
    assert {job.setting.baseline for job in command.jobs if job.args} == {None}


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


def test_what_harms_where_texts_do_not_answer_is_no_default(command: Command) -> None:
    """Here a contrast that needs a baseline for it."""
    command.write_texts(silent=16)
    both = Setting("cad", baseline="the text repeated")

    def text(job: Job) -> str:
        gains = job.setting == both or (
            job.setting.baseline == NAMES[2] and job.problem.line % 3 == 0
        )
        return "right" if (gains if job.problem.has_answer else not job.args) else "wrong"

    command.text = text
    assert command("--preset", "cad", without=PRESET) == 1
    report = command.report
    assert report["headline"].startswith(f"Use {both} only where the text is known to answer, whi")
    assert report["test"]["score"]["silent"]["difference"] == -1.0
    assert "--sampler" not in report["serve"]
    said = 'Where the text is known to answer, requests must also send "vllm_xargs": {"cold": 1, '
    assert said in command.notes


def test_rows_say_what_their_amateurs_read(command: Command) -> None:
    command.write_texts()
    command.text = lambda job: "right" if job.setting == CAD else "wrong"
    assert command("--preset", "cad", without=PRESET) == 0
    told = {"cold": 1, "cold_expert_top_k": MAX_EXPERT_TOP_K, "cold_preset": "cad"}
    said = f'"vllm_xargs": {json.dumps(told)} and the cold_* keys of its problem\'s row'
    assert f"Contrastive requests must also send {said}" in command.notes
    serve = command.report["serve"]
    assert serve.endswith(f"--lora-modules sql={command.folder / 'sql'} --sampler cold")
    assert command.headline.endswith("; irrelevant context was not tested.")


def test_two_amateurs_and_their_weights(command: Command) -> None:
    more = ["--amateur", str(command.folder / "chat"), "--amateur", "org/model"]
    command.text = lambda job: "right" if job.args else "wrong"
    assert command(*more, "--weights", "0.5", "--weights", "-0.5", without=["--beta"]) == 0
    assert command.started[0]["max_loras"] == 2
    told = {"cold_amateur": ["chat", "org/model"], "cold_weights": [0.5, -0.5], "cold_alpha": 0.1}
    assert json.dumps(told)[1:] in command.notes
    assert command.report["serve"].endswith("--sampler cold")
    assert command.headline.startswith("Use alpha 0.1, which beats greedy")
    # Also with a baseline.
    command.write_chats()
    command.text = lambda job: (
        "right" if job.setting.baseline and (job.args or job.problem.line % 2) else "wrong"
    )
    more = ["--without", "system", "--amateur", str(command.folder / "chat"), "--weights", "-0.25"]
    assert command.again(*more, without=["--beta"]) == 0
    assert command.headline.startswith("Use alpha 0.1 with a stronger prompt, which beats")
    told = next(job.args for job in command.jobs if job.setting.baseline and job.args)
    assert told.keys() - {"cold_amateur_messages"} == {"cold_amateur", "cold_weights", "cold_alpha"}
    assert '"cold_amateur": "chat", "cold_weights": -0.25, ' in command.notes


def test_notes_say_what_a_reader_has_to_know(command: Command) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{n}", "answer": "right"} for n in range(COUNT)]
    again = {"messages": [{"role": "user", "content": "p1"}], "answer": "right"}  # with --chat
    command.write([*rows, again])
    command.finish = "length"
    more = ("--amateur", str(command.folder / "chat"), "--stop", "\n", "--chat")
    assert command(*more) == 0
    for said in (
        '"cold_amateur": "chat", "cold_alpha": 0.1, "cold_beta": 0.5}.',
        'had max_tokens 256, stop ["\\n"].',
        "Rows that repeat an earlier prompt and were left out: 1.",
        "100.0 % of the answers of greedy were cut off at 256 tokens",
        "100.0 % of the answers of the picked setting were cut off",
    ):
        assert said in command.notes
    command.text = lambda job: "no"
    assert command.again(*more) == 1 and "Nothing is right, with" in command.notes


def test_a_library_that_is_missing_is_named_before_anything_starts(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    # As in a process that has imported none of them.
    for name in ("tune_command", "tune_report", "verdict", "task"):
        monkeypatch.delitem(sys.modules, f"vllm_cold.tools.tune.{name}", raising=False)
        monkeypatch.delattr(tune, name, raising=False)
    assert command() == 2
    said = "this command needs scipy: install vllm-cold with its extra tools, or pip"
    assert said in capsys.readouterr().err
    assert not command.started


def test_the_extra_for_instructions_is_named(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "if_verifiable", None)
    for name in [name for name in sys.modules if name.startswith("if_verifiable.")]:
        monkeypatch.delitem(sys.modules, name)
    assert command("--match", "ifeval") == 2
    said = (
        r"--match='ifeval': needs (if_verifiable|langdetect): pip install 'vllm-cold\[ifeval\]'\n$"
    )
    assert re.search(said, capsys.readouterr().err) and not command.started


def test_the_page_shows_problems_and_options_that_exist(tmp_path: Path) -> None:
    rows, chats, kept = (b.text for b in blocks("docs/tuning.md") if b.language == "json")
    (tmp_path / "p.jsonl").write_text(rows)
    problems, _ = load_problems(str(tmp_path / "p.jsonl"))
    assert [p.answer for p in problems] == ["42", ["2", "3"], 12]
    (tmp_path / "p.jsonl").write_text(chats)
    problems, _ = load_problems(str(tmp_path / "p.jsonl"), args={"cold_without": "system"})
    assert [p.args for p in problems] == [
        {"cold_without": "system"}, {"cold_without": 0}, {"cold_part": [0, 31]},
    ]  # fmt: skip
    assert problems[2].prompt.value[31:] == "Question: How many arches? Answer:"
    (tmp_path / "p.jsonl").write_text(kept)
    ((problem,), _) = load_problems(str(tmp_path / "p.jsonl"))
    assert problem.answer["kwargs"] == [{}] and problem.keep == "Baghdad"
    (parser,) = (
        action.choices["tune"]
        for action in build_parser()._actions
        if isinstance(action.choices, dict)
    )
    known = set(parser._option_string_actions) | {"--sampler"}
    known |= {"--cold-" + name.replace("_", "-") for name in ENGINE}  # of vllm serve
    page = (ROOT / "docs" / "tuning.md").read_text()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page)) <= known
