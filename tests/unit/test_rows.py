# SPDX-License-Identifier: Apache-2.0
"""From the streams of a batch to the tensors that rules and the scoring op take, and to scores."""

import math
import pickle
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import naive_rules
from tests.contrast import Contrast, assert_scored
from tests.formula import group_scores
from vllm_cold.ops.interface import Groups
from vllm_cold.rules import Choice, Parameter, Rule, registry
from vllm_cold.scheduler import output_checks
from vllm_cold.scheduler.explain_steps import StepExplainer
from vllm_cold.settings.table import ColdSettings
from vllm_cold.wire.step_stats import RULE_FAILED, Explained, RowStats
from vllm_cold.wire.stream import AmateurStream, Stream
from vllm_cold.worker import explain_step, rule_weights
from vllm_cold.worker.group_rows import GroupRows
from vllm_cold.worker.rule_weights import RuleStates

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
ONE = Contrast(alpha=0.5)
TWO = Contrast((1.5, -1.5), alpha=0.0)
THREE = Contrast((-1.0, 0.25, -3.0), alpha=1.0, expert_top_k=4)
ASKED = {"one": ONE, "two": TWO, "three": THREE}


def of(streams: Sequence[tuple[int, str, int]], num_rows: Sequence[int] | None = None) -> GroupRows:
    """Of positions, with a group's name and an index each."""
    described = [(position, ASKED[name].stream(name, index)) for position, name, index in streams]
    return spread(GroupRows.match(described, CPU), num_rows)


def spread(rows: GroupRows | None, num_rows: Sequence[int] | None = None) -> GroupRows:
    assert rows is not None
    return rows if num_rows is None else rows.spread(num_rows)


def rows_of(found: GroupRows) -> list[list[int]]:
    return [] if found.groups is None else found.groups.rows.tolist()


# Positions in no order, the groups between each other.
MIXED = [
    (7, "three", 2), (3, "one", 1), (0, "three", 0), (9, "two", 1), (4, "three", 1),
    (5, "two", 0), (1, "one", 0), (8, "two", 2), (2, "three", 3),
]  # fmt: skip


def test_groups_of_different_sizes() -> None:
    found = of(MIXED)
    assert found.ids == ("three", "two", "one")  # as their experts come
    assert found.members == ([0, 4, 7, 2], [5, 9, 8], [1, 3])
    groups = found.groups
    assert groups is not None
    assert groups.rows.tolist() == [[0, 4, 7, 2], [5, 9, 8, -1], [1, 3, -1, -1]]
    assert groups.weights.tolist() == [[-1, 0.25, -3], [1.5, -1.5, 0], [-0.5, 0, 0]]
    assert groups.log_alpha.tolist() == [0.0, -math.inf, pytest.approx(math.log(0.5))]
    assert groups.expert_top_k is not None
    assert groups.expert_top_k.tolist() == [4, 0, 0] and groups.max_expert_top_k == 4
    assert found.present == (0b111, 0b11, 0b1) and found.rules == ()
    groups.check(torch.empty(10, 5))


# Rows of each position of MIXED; position 6 is a regular request's.
NUM_ROWS = [2, 3, 2, 3, 2, 1, 4, 2, 1, 1]


@pytest.mark.parametrize("num_rows", [None, NUM_ROWS], ids=["one each", "drafts"])
def test_the_experts_rows_are_scored(num_rows: Sequence[int] | None) -> None:
    found = of(MIXED, num_rows)
    before = 3 * torch.randn(21, 11, generator=torch.Generator().manual_seed(0))
    logits = before.clone()
    tally = found.score(logits)
    assert tally is not None
    figures = list(tally.figures())
    assert [name for name, _ in figures] == list(found.ids)
    left = set(range(21))
    for (expert, *amateurs), (name, figure) in zip(rows_of(found), figures, strict=True):
        rows = [expert, *(row for row in amateurs if row >= 0)]
        want = ASKED[name].scores(before[rows])
        torch.testing.assert_close(logits[expert].double(), want, rtol=1e-5, atol=1e-4)
        changed = int(logits[expert].argmax() != before[expert].argmax())
        assert figure[:5] == (int((want > -torch.inf).sum()), changed, 0, 0, 0)
        assert figure.present == 2 ** (len(rows) - 1) - 1
        left.remove(expert)
    assert torch.equal(logits[sorted(left)], before[sorted(left)])


# ---- weights that rules choose -------------------------------------------------------------------

VOCAB = 40
RULED = {
    "regular": Contrast((-0.5,)),
    "one": Contrast((None,), rule="adaptive", parameters={"beta_max": 2.5}),
    "fixed": Contrast((None, 0.5), alpha=0.02, expert_top_k=6, rule="adaptive"),
    "three": Contrast((None, -0.75, None), alpha=0.0, rule="acd"),
    "gate": Contrast((None, None), rule="mti", parameters={"beta": 2.0, "tau": 1.5}),
    "lone": Contrast((None,), rule="mti", parameters={"beta": 3.0, "tau": 1.0}),
    "decides": Contrast((None, None), alpha=0.0, rule="grd", slot=0),
    "too": Contrast((None, -0.5), alpha=0.0, rule="grd", parameters={"lam": 0.5}, slot=3),
    "grows": Contrast((None,), rule="m3id", parameters={"gamma": 0.3, "threshold": 0.9}),
}


class Batch:
    """Groups by name, with their streams anywhere among the rows.

    Attributes:
        rows: Of each group, those of its streams.
    """

    def __init__(self, groups: Mapping[str, Contrast], num_rows: int | None = None) -> None:
        self.groups = groups
        streams = [(name, i) for name, one in groups.items() for i in range(1 + len(one.weights))]
        self.num_rows = num_rows or len(streams)
        places = random.Random(1).sample(range(self.num_rows), len(streams))
        at = dict(zip(streams, places, strict=True))
        self.rows = {
            name: [at[name, i] for i in range(1 + len(one.weights))] for name, one in groups.items()
        }

    def match(self, *absent: tuple[str, int]) -> GroupRows:
        """The batch without some of its streams."""
        streams = [
            (row, self.groups[name].stream(name, index))
            for name, rows in self.rows.items()
            for index, row in enumerate(rows)
            if (name, index) not in absent
        ]
        return spread(GroupRows.match(streams, CPU))

    def draw(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return 3 * torch.randn(self.num_rows, VOCAB, generator=generator)


def asked(
    found: GroupRows | None, logits: Tensor, steps: Mapping[int, int], states: RuleStates
) -> dict[str, list[RowStats]]:
    """Figures by group; ``logits`` become scores, ``steps`` are of experts' rows."""
    assert found is not None
    by_row = torch.full((len(logits),), 10**6)
    for row, step in steps.items():
        by_row[row] = step
    tally = found.score(logits, steps=by_row, states=states)
    assert tally is not None
    figures: dict[str, list[RowStats]] = {}
    for name, each in tally.figures():
        figures.setdefault(name, []).append(each)
    return figures


def test_what_rules_choose_arrives_at_the_scores() -> None:
    """Of different rules and of none in one batch; some amateurs' weights are fixed."""
    batch, states = Batch(RULED), RuleStates(CPU)
    found = batch.match()
    memories: dict[str, dict[str, Any]] = {name: {} for name in RULED}
    acted, idle, done = set(), set(), set()
    for step in range(6):
        before = batch.draw(10 + step)
        logits = before.clone()
        steps = {name: step + 4 * (name == "grows") for name in RULED}
        by_row = {rows[0]: steps[name] for name, rows in batch.rows.items()}
        figures = asked(found, logits, by_row, states)
        assert figures.keys() == RULED.keys()
        assert found.groups is not None
        assert not found.groups.weights[found.groups.rows[:, 1:] < 0].any()  # as the op wants
        for name, (expert, *amateurs) in batch.rows.items():
            contrast, memory = RULED[name], memories[name]
            want = contrast.scores(before[[expert, *amateurs]], steps[name], memory)
            torch.testing.assert_close(logits[expert].double(), want, rtol=1e-4, atol=1e-3)
            alone = replace(contrast, weights=(), rule=None).scores(before[[expert]])
            (figure,) = figures[name]
            changed = int(logits[expert].argmax() != before[expert].argmax())
            assert figure[:3] == (int((want > -math.inf).sum()), changed, 0)
            assert figure.present == 2 ** len(amateurs) - 1
            assert figure.idle == (contrast.rule is not None and torch.equal(want, alone))
            kept = [bool(own.get("done")) for own in memory.get("amateurs", [])]
            assert figure.done == sum(
                1 << i for i, over in enumerate(kept) if over and contrast.weights[i] is None
            )
            (idle if figure.idle else acted).add(name)
            done.update([name] if figure.done else [])
        rest = sorted(set(range(len(before))) - {rows[0] for rows in batch.rows.values()})
        assert torch.equal(logits[rest], before[rest])
    assert acted == RULED.keys() and "gate" in idle and done == {"decides", "too"}


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize(
    "absent", [(), [("decides", 1), ("decides", 2), ("too", 1)]], ids=["all", "some"]
)
def test_a_client_that_asks_is_told_what_scores_follow_from(num: int, absent: Any) -> None:
    """The best by score and the expert's best, where they were scored; others nothing."""
    asking = {"three": 3, "too": 64, "two": 2, "one": 5, "decides": 4}
    groups = {**ASKED, **RULED}
    groups = {name: replace(one, explain=asking.get(name, 0)) for name, one in groups.items()}
    batch, states = Batch(groups), RuleStates(CPU)
    found = spread(batch.match(*absent), [num] * batch.num_rows if num > 1 else None)
    before = 3 * torch.randn(
        num * batch.num_rows, VOCAB, generator=torch.Generator().manual_seed(5)
    )
    before[:, 7] = -math.inf  # a mask, of all streams
    logits = before.clone()
    figures = asked(found, logits, dict.fromkeys(range(len(before)), 3), states)
    for name, rows in batch.rows.items():
        for nth, figure in enumerate(figures[name]):
            if name not in asking:
                assert figure.explained is None
                continue
            (step,) = StepExplainer(len(rows) - 1, asking[name]).explain([figure])
            here = [num * r + nth for i, r in enumerate(rows) if (name, i) not in absent]
            scores = logits[here[0]]
            assert step["candidates"] == int((scores > -math.inf).sum())
            k = min(asking[name], VOCAB - 1)
            best = scores.topk(min(k, step["candidates"])).indices.tolist()
            mine = before[here[0]].topk(k).indices.tolist()
            assert step["tokens"] == list(dict.fromkeys([*best, *mine]))
            assert step["scores"] == [
                None if s == -math.inf else s for s in scores[step["tokens"]].tolist()
            ]
            streams = [i for i in range(len(rows)) if (name, i) not in absent]
            assert [step["logits"][i] for i in streams] == before[here][:, step["tokens"]].tolist()
            sums = torch.tensor([step["log_sums"][i] for i in streams])
            torch.testing.assert_close(sums, before[here].logsumexp(1))
            weights = [step["weights"][i - 1] for i in streams[1:]]
            e, *others = (row.double() for row in before[here])
            again = e + sum(
                (w * (a - e) for w, a in zip(weights, others, strict=True)), torch.zeros(())
            )
            kept = [t for t, s in zip(step["tokens"], step["scores"], strict=True) if s is not None]
            torch.testing.assert_close(scores[kept].double(), again[kept], rtol=1e-4, atol=1e-3)
            assert all(0 <= step["divergences"][i - 1] <= 1 for i in streams[1:])


def test_of_an_amateur_that_has_ended_nothing_is_told() -> None:
    """Whether or not a step was under way that still had a row of it."""

    def row(weights: list[float], present: int, done: int = 0) -> RowStats:
        told = Explained(
            [4, 4], [1.0, 1.0], [[2.0, 2.0]] * (1 + len(weights)), [3.0] * (1 + len(weights)),
            weights, weights,
        )  # fmt: skip
        return RowStats(1, 0, 0, done, 0, present, told)

    explainer = StepExplainer(2, 1)
    steps = (
        [row([-0.5, 0.0, 0.0], 0b11)],  # a wider group is in the batch
        [row([-0.25, 0.0], 0b11, done=0b1)],
        [row([0.0, 0.5], 0b11, done=0b1), row([-1.0, 0.0], 0b10)],
        [row([-1.0, 0.0], 0b10, done=0b10), row([0.0, 0.0], 0b0)],  # all have ended
    )
    given = [each for figures in steps for each in explainer.explain(figures)]
    assert [each["weights"] for each in given] == [
        [-0.5, 0.0], [-0.25, 0.0], [None, 0.5], [None, -1], [None, -1], [None, None]
    ]  # fmt: skip
    for each in given:
        lives = [[2.0], *(None if w is None else [2.0] for w in each["weights"])]
        assert (each["tokens"], each["scores"], each["logits"]) == ([4], [1.0], lives)


class Counts(Rule):
    """-n at the n-th step, which its state alone says."""

    name = "counts"
    state = 1
    retires = True

    def weights(self, s: Any, p: Any) -> Choice:
        return Choice(-s.state[..., 0], s.state + 1)


def counted(batch: Batch, steps: Mapping[str, int], states: RuleStates) -> None:
    """Each group's weights at its step are those of ``Counts``."""
    before = batch.draw(0)
    logits = before.clone()
    asked(batch.match(), logits, {batch.rows[n][0]: step for n, step in steps.items()}, states)
    for name, step in steps.items():
        rows = batch.rows[name]
        contrast = Contrast((-float(step),) * (len(rows) - 1))
        assert_scored(before[rows], logits[rows], [range(len(rows))], contrast)


def test_a_rule_finds_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """By slot and step: a step that is computed again gives the same, and a group that gets the
    slot of another one that has ended begins anew.
    """
    monkeypatch.setitem(registry._added, "counts", Counts())
    states = RuleStates(CPU)

    def of(**slots: int) -> Batch:
        return Batch({n: Contrast((None,) * 2, rule="counts", slot=s) for n, s in slots.items()})

    two = of(a=0, b=5)
    for step in (0, 1, 2, 3, 3, 2, 3, 4):
        counted(two, {"a": step, "b": step}, states)
    for step in range(5, 40):  # more than are kept
        counted(two, {"a": step, "b": step}, states)
    # b has ended, and c has its slot; d has one that nobody has had.
    for step in range(20):
        counted(of(a=0, c=5, d=31), {"a": step + 40, "c": step, "d": step}, states)
    counted(of(a=0), {"a": 60}, states)
    counted(of(a=0, d=31), {"a": 61, "d": 20}, states)  # d was out of the batch for a step


class Writes(Rule):
    """-beta * (1 + n) at the n-th step; spoils what it was given, as no trial would let it."""

    name = "writes"
    parameters = {"beta": Parameter(0.5, 0.0, 9.0), "other": Parameter(1.0, 0.0, 1.0)}
    state = 1

    def weights(self, s: Any, p: Any) -> Choice:
        choice = Choice(-p.beta * (1 + s.state[..., 0]), s.state + 1)
        for given in (p.beta, p.other, s.step, s.state, s.logits(0)):
            given.fill_(7)
        p.beta = p.other
        return choice


def test_a_rule_that_writes_does_not_reach_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the same requests at their next step."""
    monkeypatch.setitem(registry._added, "writes", Writes())
    betas = {"a": 0.5, "b": 2.0}
    batch = Batch(
        {
            name: Contrast((None,) * 2, rule="writes", parameters={"beta": beta}, slot=slot)
            for slot, (name, beta) in enumerate(betas.items())
        }
    )
    found, states = batch.match(), RuleStates(CPU)
    for step in range(3):
        before = batch.draw(step)
        logits = before.clone()
        asked(found, logits, {rows[0]: step for rows in batch.rows.values()}, states)
        for name, rows in batch.rows.items():
            contrast = Contrast((-betas[name] * (1 + step),) * 2)
            assert_scored(before[rows], logits[rows], [range(3)], contrast)


def test_who_has_ended_has_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its rule still says of it."""
    monkeypatch.setitem(registry._added, "counts", Counts())
    batch = Batch({"x": Contrast((None,) * 2, rule="counts", slot=0)})
    states, step = RuleStates(CPU), {batch.rows["x"][0]: 1}
    asked(batch.match(), batch.draw(0), {batch.rows["x"][0]: 0}, states)
    for absent, idle in ((["x", 1],), 0), ((["x", 1], ["x", 2]), 1):
        found = batch.match(*((name, index) for name, index in absent))
        figures = asked(found, batch.draw(1), step, states)
        assert found.groups is not None
        assert figures["x"][0].idle == idle
        assert (found.groups.weights != 0).sum() == 1 - idle


# Of three tokens: the expert's, and what amateurs say of them.
EXPERT, AGREES = (0.5, 0.3, 0.2), (0.9, 0.05, 0.05)
SURE, UNSURE = (0.1, 0.8, 0.1), (0.3, 0.45, 0.25)


def decided(
    found: GroupRows | None, rows: Sequence[Sequence[float]], step: int, states: RuleStates
) -> tuple[Tensor, RowStats]:
    """The expert's scores, and figures; its row is the first one."""
    logits = torch.tensor(rows).log()
    (figure,) = asked(found, logits, {0: step}, states)["x"]
    return logits[0].double(), figure


def test_amateurs_that_have_ended() -> None:
    """Those that are left are scored, each with its own state, the candidates alone without any."""
    asks = Contrast((None,) * 3, alpha=0.0, rule="grd", slot=2)
    states, streams = RuleStates(CPU), [(i, asks.stream("x", i)) for i in range(4)]
    first = [EXPERT, UNSURE, AGREES, SURE]
    _, figure = decided(GroupRows.match(streams, CPU), first, 0, states)
    assert (figure.done, figure.idle, figure.present) == (0b001, 0, 0b111)
    # The middle one is gone, the others say the contrary of what they said.
    second = [EXPERT, SURE, AGREES, UNSURE]
    without = GroupRows.match([streams[0], streams[1], streams[3]], CPU)
    got, figure = decided(without, second, 1, states)
    assert (figure.done, figure.idle, figure.present) == (0b001, 0, 0b101)
    rows = torch.tensor([EXPERT, SURE, UNSURE]).double().log()
    kept = {"amateurs": [{"trusted": "expert", "done": True}, {"trusted": "amateur"}]}
    weights = naive_rules.weights("grd", {}, [*rows], torch.ones(3, dtype=torch.bool), 1, kept)
    assert weights[0] == 0 and weights[1] > 0.5
    want = group_scores(rows[0], [*rows[1:]], -math.inf, weights)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    # Only the last one is left: what it chose is its own.
    got, figure = decided(GroupRows.match([streams[0], streams[3]], CPU), second, 1, states)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (figure.done, figure.present) == (0, 0b100)
    for other, num in ((replace(asks, alpha=0.5), 2), (replace(asks, expert_top_k=1), 1)):
        alone = GroupRows.match([(0, other.stream("x", 0))], CPU)
        got, figure = decided(alone, [EXPERT], 5, states)
        kept_tokens = rows[0].clone()
        kept_tokens[num:] = -math.inf
        torch.testing.assert_close(got, kept_tokens, rtol=1e-6, atol=1e-6)
        assert figure == (num, 0, 0, 0, 1, 0, None, None)
        assert alone is not None and alone.members == ([0],)
        assert alone.rules == ()  # nobody is asked any more
        # Where drafts are verified, too.
        spread = alone.spread([3])
        assert spread.ids == ("x",) * 3 and spread.present == (0,) * 3
        assert spread.groups is not None
        assert spread.groups.rows.tolist() == [[i, i, *[-1] * 2] for i in range(3)]


@pytest.mark.parametrize("rule", sorted(registry.BUILT_IN))
def test_a_group_that_prefills_is_not_scored(rule: str) -> None:
    """Its amateurs are missing; of a rule that ends amateurs the scheduler has to tell."""
    asks = Contrast((None,), rule=rule, slot=0)
    found = GroupRows.match([(0, asks.stream("x", 0))], CPU)
    assert (found is None) is not registry.get(rule).retires
    assert GroupRows.match([(0, asks.stream("x", 1))], CPU) is None


class Fails(Rule):
    """At run time alone, for those groups that want it."""

    name = "fails"
    parameters = {"how": Parameter(0.0, 0.0, 9.0)}

    def weights(self, s: Any, p: Any) -> Any:
        if (p.how == 3).any():
            raise KeyError("nothing there")
        weights = torch.where(p.how == 1, math.nan, torch.where(p.how == 2, -math.inf, -0.5))
        weights = weights.double() if (p.how == 5).any() else weights
        return weights.expand(-1, s.num_streams - 1)[:, : 1 if (p.how == 4).any() else None]


@pytest.mark.parametrize(
    "how",
    [1, 2, 3, 4, 5],
    ids=["not a number", "infinite", "an error", "a wrong shape", "a wrong dtype"],
)
def test_a_rule_that_fails_ends_its_own_groups(how: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' scores are the same bits as without them."""
    monkeypatch.setitem(registry._added, "fails", Fails())
    good = {name: RULED[name] for name in ("regular", "one", "gate", "decides")}
    bad = {
        "bad": Contrast((None, None), rule="fails", parameters={"how": how}),
        "worse": Contrast((None, -1.0), alpha=0.0, rule="fails", parameters={"how": how}),
    }
    by_itself = Contrast((None, None), rule="fails")
    with_them = Batch({**good, **bad, **({"well": by_itself} if how < 3 else {})})
    without = Batch(good, with_them.num_rows)
    without.rows = {name: with_them.rows[name] for name in good}
    before = with_them.draw(7)
    one, other = before.clone(), before.clone()
    steps = {rows[0]: 0 for rows in with_them.rows.values()}
    figures = asked(with_them.match(), one, steps, RuleStates(CPU))
    expected = asked(without.match(), other, steps, RuleStates(CPU))
    failed = {name for name, (figure,) in figures.items() if figure.nonfinite == RULE_FAILED}
    assert failed == set(bad)
    for name in good:
        assert figures[name] == expected[name]
        expert = with_them.rows[name][0]
        assert torch.equal(one[expert], other[expert])
    if "well" in figures:
        rows = with_them.rows["well"]
        want = Contrast((-0.5, -0.5)).scores(before[rows])
        torch.testing.assert_close(one[rows[0]].double(), want, rtol=1e-5, atol=1e-4)
    for name in bad:  # something can be sampled, and is not given to anybody
        row = one[with_them.rows[name][0]]
        assert (row < math.inf).all() and (row > -math.inf).any()
        assert output_checks.problem(figures[name], 1, 0, 0b11) == output_checks.RULE_HAS_NO_WEIGHTS
    for name, (figure,) in expected.items():
        amateurs = 2 ** len(good[name].weights) - 1
        assert output_checks.problem([figure], 1, 0, amateurs) is None
        assert output_checks.problem([figure], 1, 0, amateurs - 1) == output_checks.NOT_SCORED


def test_a_rule_that_admission_knew_and_this_process_does_not() -> None:
    settings = ColdSettings(0.1, rule="elsewhere", rule_parameters={"strength": 1.0})
    streams = [Stream(settings, (AmateurStream(None),), "x", index) for index in range(2)]
    found = GroupRows.match(enumerate(streams), CPU)
    assert found is not None
    figures = asked(found, torch.randn(2, 9), {0: 0}, RuleStates(CPU))
    assert figures["x"][0].nonfinite == RULE_FAILED


class Sums(Rule):
    """Notices nothing where its state has no numbers."""

    name, state = "sums", 1

    def weights(self, s: Any, p: Any) -> Choice:
        return Choice(-s.state.sum(-1), s.state.new_ones(*s.state.shape[:2], 1))


@pytest.mark.parametrize("rule", ["grd", "sums"])
def test_a_rule_with_state_whose_group_has_no_slot(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would find another group's, or none."""
    monkeypatch.setitem(registry._added, "sums", Sums())
    batch = Batch({"x": Contrast((None, None), rule=rule), "gate": RULED["gate"]})
    first = {rows[0]: 0 for rows in batch.rows.values()}
    figures = asked(batch.match(), batch.draw(0), first, RuleStates(CPU))
    assert (figures["x"][0].nonfinite, figures["gate"][0].nonfinite) == (RULE_FAILED, 0)


@pytest.mark.parametrize("stream", [0, 1])
def test_logits_that_are_no_numbers_are_not_the_rule_s_fault(stream: int) -> None:
    groups = {name: RULED[name] for name in ("one", "fixed", "three", "gate", "grows", "decides")}
    for sick in groups:
        batch = Batch(groups)
        before = batch.draw(2)
        before[batch.rows[sick][stream], 5] = math.nan
        figures = asked(
            batch.match(), before, {rows[0]: 0 for rows in batch.rows.values()}, RuleStates(CPU)
        )
        assert {name for name, (figure,) in figures.items() if figure.nonfinite == 1} == {sick}
        assert all(figure.nonfinite in (0, 1) for (figure,) in figures.values())


def test_of_many_groups_is_told_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its memory is bounded; nothing else changes."""
    logits = torch.randn(21, 50, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(21).view(7, 3)
    groups = Groups(rows, torch.full((7, 2), -0.5), torch.full((7,), -2.0))
    of_rules = {5: torch.arange(50.0)}
    whole = explain_step.explain(logits, groups, [0, 2, 3, 5, 6], 4, of_rules)
    monkeypatch.setattr(explain_step, "_AT_ONCE", 2)
    told = explain_step.explain(logits, groups, [0, 2, 3, 5, 6], 4, of_rules)
    assert all(torch.equal(one, other) for one, other in zip(told, whole, strict=True))


@pytest.mark.parametrize("name", ["grd", "bound"])
def test_rules_are_asked_of_a_few_groups_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs; nothing else changes, neither what is kept nor what tokens cost."""
    logits = torch.randn(10, 50, generator=torch.Generator().manual_seed(0)) * 3
    limits = {"bits": 1.0} if name == "bound" else {}
    asks = [
        Contrast((None,), alpha=0.0, rule=name, parameters=limits, slot=i).stream(str(i), j)
        for i in range(5)
        for j in range(2)
    ]
    runs = []
    for at_once in (10_000, 120, 1):
        monkeypatch.setattr(rule_weights, "_NUMBERS_AT_ONCE", at_once)
        states, outputs = RuleStates(CPU), []
        for step in range(3):
            rows, scored = GroupRows.match(list(enumerate(asks)), CPU), logits.roll(step, 1)
            assert rows is not None
            stats = rows.score(scored, steps=torch.full((10,), step), states=states)
            assert stats is not None
            states.settle(scored.argmax(-1))
            outputs += [scored, *map(str, stats.figures())]
        runs.append(outputs)
    for other in runs[1:]:
        for one, same in zip(runs[0], other, strict=True):
            if isinstance(one, str):
                assert one == same
            else:
                torch.testing.assert_close(one, same)


def test_who_is_charged_in_a_mixed_batch() -> None:
    """Whose rule charges, with as many amateurs as it has; nobody else."""
    one = Contrast((None,), alpha=0.0, rule="bound", parameters={"bits": 1.0}, slot=0)
    three, rule = Contrast((-0.5,) * 3), Contrast((None,) * 2, alpha=0.0, rule="adaptive")
    sizes = {"a": (three, 3), "b": (one, 1), "c": (rule, 2)}
    streams = [asks.stream(name, i) for name, (asks, n) in sizes.items() for i in range(1 + n)]
    logits = torch.randn(len(streams), 50, generator=torch.Generator().manual_seed(0))
    rows, states = GroupRows.match(list(enumerate(streams)), CPU), RuleStates(CPU)
    assert rows is not None
    stats = rows.score(logits, steps=torch.zeros(len(streams), dtype=torch.int64), states=states)
    states.settle(logits.argmax(-1))
    assert stats is not None
    for figures in (stats, pickle.loads(pickle.dumps(stats))):
        charges = {name: row_stats.charges for name, row_stats in figures.figures()}
        assert charges["a"] is charges["c"] is None
        assert charges["b"] is not None and len(charges["b"]) == 1
        assert charges["b"][0][1] == 1.0  # what was left
    assert rows.score(logits, steps=torch.ones(len(streams), dtype=torch.int64), states=states)
    assert states.unsettled is not None
    [(_, later)] = states.unsettled[1]
    assert later.left.item() == pytest.approx(1.0 - charges["b"][0][0]) != 1.0
