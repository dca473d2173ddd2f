# SPDX-License-Identifier: Apache-2.0
"""The benchmark on yes/no questions about images: what is asked, what is kept, and its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score

from benchmarks import bench_pope as bench
from benchmarks.bench_pope import GREEDY, MOVED, SAMPLED, SYSTEMS, Engine, Question, Reply, System
from vllm_cold import ColdParams, Noise
from vllm_cold.settings.presets import PRESETS

pytestmark = pytest.mark.unit

COUNT = 24


def label(number: int) -> str:
    return "yes" if number % 3 else "no"


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The options: eight images with three questions each."""
    lines = []
    for number in range(COUNT):
        name = f"{number // 3}.png"
        Image.new("RGB", (9, 6), (number, 0, 0)).save(tmp_path / name)
        asked = {"text": f"Is there a {number}?", "label": label(number), "image": name}
        lines.append(json.dumps({"question_id": number, **asked}))
    (tmp_path / "pope.json").write_text("\n".join(lines) + "\n")
    files = {"questions": tmp_path / "pope.json", "images": tmp_path, "output": tmp_path / "out"}
    return ["--model", "m", *(x for key, path in files.items() for x in (f"--{key}", str(path)))]


class Fake:
    """Right with a contrast; else a yes. It fails once it has answered so many."""

    def __init__(self, fails: int | None = None) -> None:
        self.asked: list[tuple[System, int]] = []
        self.fails = fails

    def __call__(self, system: System, questions: Sequence[Question]) -> list[Reply]:
        if self.fails is not None and len(self.asked) >= self.fails:
            raise KeyboardInterrupt
        self.asked += [(system, int(one.question_id)) for one in questions]
        if system.settings:
            return [Reply(f"{one.label}.") for one in questions]
        return [Reply("Yes", 5.0 - int(one.question_id) % 3) for one in questions]


def test_one_command_goes_on_where_it_was_stopped(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(given[-1])

    def stopped(options: Any) -> Fake:
        head = json.loads(out.read_text())  # settings come before answers
        assert head["systems"]["vcd"]["settings"] == {"alpha": 0.1, "beta": 1.0}
        return Fake(fails=2 * COUNT)

    with pytest.raises(KeyboardInterrupt):
        bench.main(given, stopped)
    whole = out.read_text()
    assert whole.count("\n") == 1 + 2 * COUNT
    out.write_text(whole[:-9])  # as a kill leaves a line
    fake = Fake()
    assert bench.main(given, lambda _: fake) == 0
    assert len(fake.asked) == len(set(map(repr, fake.asked))) == COUNT * (len(SYSTEMS) - 2) + 1
    capsys.readouterr()
    assert bench.main(given, lambda _: pytest.fail("all is there")) == 0
    assert len(out.read_text().splitlines()) == 1 + COUNT * len(SYSTEMS)

    printed = capsys.readouterr().out
    assert f"{COUNT} questions about 8 images" in printed
    rows = {x[1].strip(): x for x in (line.split("|") for line in printed.splitlines()) if x[1:]}
    assert rows.keys() >= {*SYSTEMS, MOVED}
    assert rows[GREEDY][2].strip().startswith("66.7 (") and rows["vcd"][2].strip()[:5] == "100.0"
    assert rows["vcd"][6].strip().startswith("+33.3 (") and rows[GREEDY][6].strip() == ""
    # Against each other, with the same temperature.
    assert rows["sampled, vcd"][6].strip().startswith("+33.3")
    assert rows[SAMPLED][6].strip().startswith("0.0")

    more = ["--engine-args", '{"dtype": "half"}']
    assert bench.main([*given, *more], lambda _: pytest.fail("another engine")) == 2
    assert "holds answers of other settings (engine changed)" in capsys.readouterr().err


def test_the_figures() -> None:
    rng = np.random.default_rng(1)
    questions = [Question(n, f"{n // 6}", "?", label(n)) for n in range(600)]  # type: ignore[arg-type]
    said = [None if n % 50 == 0 else bool(rng.random() < 0.6) for n in range(600)]
    found = bench.figures(said, questions)
    truth = [one.label == "yes" for one in questions]
    assert found.f1[0] == pytest.approx(f1_score(truth, [x is True for x in said]))
    assert found.right[0] == np.mean([a is b for a, b in zip(said, truth, strict=True)])
    assert found.yes[0] == np.mean([x is True for x in said])
    for value, low, high in (found.right, found.f1, found.yes):
        assert 0.02 < value - low < 0.06 and 0.02 < high - value < 0.06
    # Images whose questions are all answered alike are as much as one question each.
    alike = [one.image in map(str, range(50)) for one in questions]
    wide = bench.figures(alike, questions).yes
    assert wide[2] - wide[1] > 1.8 * (found.yes[2] - found.yes[1])


def test_answers() -> None:
    said = ["Yes.", "no", "There is not.", "I see yes-men", "A dog", "yesterday", " NO, yes"]
    assert list(map(bench.is_yes, said)) == [True, False, False, True, None, None, False]
    assert bench.moved([Reply("", x) for x in (1.0, None, -3.0, 2.0)], 0.5) == [
        True, None, False, True,
    ]  # fmt: skip
    entry = SimpleNamespace
    row = {0: entry(logprob=-0.5, decoded_token=" Yes"), 1: entry(logprob=-2.0, decoded_token="No")}
    assert bench._margin(row) == 1.5
    row[1] = entry(logprob=-4.0, decoded_token="Maybe")
    assert bench._margin(row) == 3.5  # no is at most as probable as what is listed last
    row[0] = entry(logprob=-0.5, decoded_token="A")
    assert bench._margin(row) is None


def test_what_is_asked(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's settings, each question with its image, and no contrast where there is none."""
    monkeypatch.setattr(bench, "start_llm", lambda *_, **__: None)
    monkeypatch.setattr(bench, "prepare_environment", lambda: None)
    engine = Engine(bench.parse(given))
    questions = bench.read_questions(Path(given[3]), Path(given[5]), None)
    for key, system in SYSTEMS.items():
        [message] = bench.as_sent(engine._messages(system, questions[4]))
        image, text = message["content"]
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        assert "Is there a 4?" in text["text"] and text["text"].endswith("with one word.")
        params = bench._params(system, questions[4])
        assert isinstance(params, ColdParams) == bool(system.settings)
        assert params.temperature == key.startswith(SAMPLED)
        if params.temperature:
            assert len({bench._params(system, one).seed for one in questions}) == COUNT
        if isinstance(params, ColdParams):
            [amateur] = params.contrast()
            assert amateur.images == (None if system.images == "none" else Noise(500))
            assert amateur.without == ("images" if system.images == "none" else None)
        else:
            assert params.extra_args == {"cold": 0}
    vcd = SYSTEMS["vcd"]
    assert PRESETS["vcd"].settings == vcd.settings and PRESETS["vcd"].images == vcd.images
