# SPDX-License-Identifier: Apache-2.0
"""With speculative decoding greedy tokens are those without, in fewer steps; sampled ones have the
distribution of those without.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine import drafters
from tests.engine.conftest import free_blocks, lora, scheduler
from tests.engine.drafters import counted
from tests.engine.draws import check_distribution
from tests.engine.pressure import Engines, drive, engines, preempted_pairs, scheduled, some
from tests.engine.streams import decode, generate, short_groups
from tests.engine.test_features_under_pressure import BARE, FEATURES, UNCHANGED
from tests.engine.test_reference import CONFIGURATIONS
from tests.naive import NaiveCold, Trace, assert_same_tokens
from vllm_cold.rules import registry
from vllm_cold.scheduler.drafting import DraftController

__all__ = ["engines"]

pytestmark = pytest.mark.engine

PROMPT = list(range(20, 60))


# Rules that keep state are refused; with drafts all takes longer.
CASES = [
    replace(group, max_tokens=24)
    for group in short_groups(120)
    if group.rule is None or not registry.get(group.rule).keeps_state
][:36]


@pytest.fixture(scope="module")
def expected(naive: NaiveCold) -> list[Trace]:
    return naive.generate_many(CASES)


class Drafters:
    """What an engine speculates with, by name."""

    def __init__(self, tiny: Path, folder: Path, runner: str, patch: pytest.MonkeyPatch) -> None:
        self._tiny, self._folder, self._runner, self._patch = tiny, folder, runner, patch

    def __call__(self, name: str, texts: Sequence[list[int]] = ()) -> dict[str, Any]:
        """Its configuration; ``texts`` are what the oracle knows."""
        target, folder = self._tiny / "model", self._folder
        match name:
            case "oracle":
                return drafters.oracle(self._patch, folder, texts, runner=self._runner)
            case "ngram":
                return drafters.ngram(device=self._runner == "v2")
            case "draft_model":
                return drafters.draft_model(target)
            case "eagle":
                return drafters.eagle(target, folder)
            case "probabilistic":  # its drafts are sampled as tokens are
                return {**drafters.draft_model(target), "draft_sample_method": name}
        raise ValueError(name)


@pytest.fixture
def drafter(tiny: Path, tmp_path: Path, runner: str, monkeypatch: pytest.MonkeyPatch) -> Drafters:
    # Whether drafts pay depends on this machine's times; here all that are made are verified.
    monkeypatch.setattr(DraftController, "break_even", lambda *args: 0.0)
    return Drafters(tiny, tmp_path, runner, monkeypatch)


DRAFTS = 3  # of EAGLE here
# A drafter and a configuration; what drafts is another model, a head of its own, or known.
EXACT = [
    ("oracle", "pressure-sync"),
    ("eagle", "chunks"),
    pytest.param("eagle", "long-prefill", marks=pytest.mark.full),
    pytest.param("draft_model", "compiled-pressure", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("name", "configuration"), EXACT)
def test_tokens_equal_the_reference(
    name: str,
    configuration: str,
    drafter: Drafters,
    make_llm: Any,
    tiny: Path,
    expected: list[Trace],
    runner: str,
) -> None:
    """Groups and regular requests, with an adapter and without, all at once; alone they take fewer
    steps where its drafts are mostly right.
    """
    cases, traces = some(CASES, runner), some(expected, runner)
    texts = [[*case.prompt_ids, *trace.tokens] for case, trace in zip(cases, traces, strict=True)]
    speculative = drafter(name, texts)
    llm = make_llm(**CONFIGURATIONS[configuration], speculative_config=speculative)
    before = free_blocks(llm)
    with preempted_pairs(llm) as preempted:
        got = decode(llm, tiny, cases)
    assert_same_tokens(got, traces)
    assert bool(preempted) == ("pressure" in configuration)
    assert free_blocks(llm) == before
    assert not scheduler(llm)._groups and not scheduler(llm).requests
    drafted, accepted = counted(llm)
    assert drafted > 100
    # The tiny model's adapters make another model of it.
    least = 0.3 if name == "oracle" else 0.01
    assert least * drafted <= accepted < drafted
    if name == "oracle":
        alone = [i for i, case in enumerate(cases) if len(case.amateurs) == 1][:8]
        with scheduled(llm) as steps:
            got = [decode(llm, tiny, [cases[i]])[0] for i in alone]
        assert_same_tokens(got, [traces[i] for i in alone])
        assert len(steps) < sum(map(len, got)) / 2


@pytest.mark.full  # numba compiles for half a minute
def test_n_grams(drafter: Drafters, make_llm: Any, tiny: Path, expected: list[Trace]) -> None:
    """On V1 on the host. A random model repeats little."""
    llm = make_llm(**CONFIGURATIONS["no-prefix-cache"], speculative_config=drafter("ngram"))
    assert_same_tokens(decode(llm, tiny, CASES), expected)
    assert counted(llm)[0]


FEATURED = ("json", "repetition", "bad_words", "stop", "logprobs")
OFTEN = ("repetition", "stop")


@pytest.mark.parametrize(
    "feature", [pytest.param(f, marks=() if f in OFTEN else pytest.mark.full) for f in FEATURED]
)
def test_feature(feature: str, drafter: Drafters, engines: Engines, tiny: Path) -> None:
    """As without speculation, under pressure, some requests among them sampled."""
    pressure = {"num_gpu_blocks_override": 14, "async_scheduling": True}
    llm = engines.get(**pressure, speculative_config=drafter("draft_model"))
    jobs = FEATURES[feature](engines)
    with preempted_pairs(llm) as preempted:
        results = drive(llm, tiny, jobs, seed=3)
    assert preempted
    greedy = {i: result for i, result in results.items() if jobs[i].is_greedy}
    engines.check(jobs, greedy)
    changed = sum(engines.alone(jobs[i]).tokens != engines.alone(BARE[i]).tokens for i in greedy)
    assert changed == 0 if feature in UNCHANGED else changed >= 3, changed
    assert counted(llm)[0]


@pytest.mark.parametrize(
    "name",
    [
        "probabilistic",
        pytest.param("oracle", marks=pytest.mark.full),
        pytest.param("draft_model", marks=pytest.mark.full),
    ],
)
def test_sampling_follows_the_scores(
    name: str,
    drafter: Drafters,
    make_llm: Any,
    tiny: Path,
    naive: NaiveCold,
    runner: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second token's distribution, after each of the first tokens that come often: drafts of
    it are right sometimes. V2 is slow in the interpreter: fewer samples, after one of them.
    """
    from vllm_cold import ColdParams

    if runner == "v2":
        drafters.bear_log1p(monkeypatch)
    asked = {"alpha": 0.05, "beta": 0.5}
    first = naive.step_distribution(PROMPT, expert="one", temperature=2.0, **asked)
    draws, behind = (4000, 3) if runner == "v1" else (1000, 1)
    often = first.topk(3).indices.tolist()
    texts = []
    for token in often:
        known = [*PROMPT, token]
        then = naive.step_distribution(known, expert="one", temperature=2.0, **asked)
        texts.append([*known, int(then.argmax()), 7, 7])
    speculative = drafter(name, texts)
    llm = make_llm(
        max_num_seqs=64, speculative_config=speculative, async_scheduling=name != "oracle"
    )
    params = ColdParams(temperature=2.0, max_tokens=2, n=draws, ignore_eos=True, **asked)
    (output,) = llm.generate(
        {"prompt_token_ids": PROMPT}, params, lora_request=lora(tiny, "one"), use_tqdm=False
    )
    drawn = [completion.token_ids for completion in output.outputs]
    check_distribution([tokens[0] for tokens in drawn], first.double())
    for token in often[:behind]:
        then = naive.step_distribution([*PROMPT, token], expert="one", temperature=2.0, **asked)
        check_distribution([seq[1] for seq in drawn if seq[0] == token], then.double())
    drafted, accepted = counted(llm)
    assert 10 < accepted < 0.98 * drafted


@pytest.mark.full
def test_a_seed_reproduces_its_answers(drafter: Drafters, make_llm: Any, tiny: Path) -> None:
    """Each of n, alone and among requests that come and go."""
    from vllm_cold import ColdParams

    llm = make_llm(max_num_seqs=32, speculative_config=drafter("draft_model"))
    asked = {"alpha": 0.05, "beta": 0.5, "temperature": 1.5, "ignore_eos": True}

    def answers(seed: int, beside: int) -> list[list[int]]:
        params = [ColdParams(seed=seed, n=3, max_tokens=24, **asked)]
        params += [ColdParams(max_tokens=5 + i, **asked) for i in range(beside)]
        requests = [lora(tiny, name) for name in ("one", *beside * ["two"])]
        prompts = [{"prompt_token_ids": PROMPT}] * len(params)
        outputs = llm.generate(prompts, params, lora_request=requests, use_tqdm=False)
        return [list(completion.token_ids) for completion in outputs[0].outputs]

    alone = answers(5, beside=0)
    assert len({tuple(tokens) for tokens in alone}) == 3
    assert answers(5, beside=6) == alone
    assert answers(6, beside=0) != alone
    assert counted(llm)[0]


def spoil(what: str, runner: str, patch: pytest.MonkeyPatch) -> None:
    """Take a part away that keeps a group's rows together, or gives them the same drafts."""
    from vllm_cold.worker import runner_hooks
    from vllm_cold.worker.group_rows import GroupRows

    if what == "amateurs have other drafts":
        tell = GroupRows.tell_amateurs

        def spoilt(self: GroupRows, found: torch.Tensor) -> None:
            tell(self, found)
            if found.shape[1:] == (DRAFTS,):  # a step gives one token more
                found[self.amateurs] = 9

        patch.setattr(GroupRows, "tell_amateurs", spoilt)
    elif what == "rows of drafts are not scored" and runner == "v1":
        processor = "vllm_cold.worker.v1.processor_v1.ColdLogitsProcessorV1"
        patch.setattr(processor + ".apply_to_drafts", lambda *args: None)
    elif what == "rows of drafts are not scored":
        spread = GroupRows.spread
        patch.setattr(
            GroupRows, "spread", lambda rows, num_rows: spread(rows, [0 for _ in num_rows])
        )
    else:
        patch.setattr(
            "vllm.v1.worker.gpu.spec_decode.rejection_sampler.get_max_chunk_logits",
            lambda vocab_size: 5,
        )
        if what == "groups are verified apart":
            patch.setattr(
                runner_hooks, "_bounds", lambda num_requests, groups: np.arange(num_requests + 1)
            )


SPOILT = {
    "amateurs have other drafts": "verified different drafts",
    "rows of drafts are not scored": "rows that nobody scored",
    "groups are verified apart": "rows that nobody scored",  # V2
    "in small chunks": "",  # V2: groups are kept together
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_group_is_never_verified_apart(
    what: str,
    drafter: Drafters,
    make_llm: Any,
    tiny: Path,
    runner: str,
    expected: list[Trace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever goes wrong ends in an error before a token leaves that is not the reference's;
    regular requests go on.
    """
    if runner == "v1" and what in ("groups are verified apart", "in small chunks"):
        pytest.skip("V1 verifies all at once")
    spoil(what, runner, monkeypatch)
    speculative = drafter("eagle")
    assert speculative["num_speculative_tokens"] == DRAFTS
    llm = make_llm(async_scheduling=True, speculative_config=speculative)
    regular = next(i for i, case in enumerate(CASES) if not case.amateurs)
    chosen = [*range(5), regular]  # few: V2 is slow in the interpreter
    cases, traces = [CASES[i] for i in chosen], [expected[i] for i in chosen]
    failed = 0
    for case, trace, output in zip(cases, traces, generate(llm, tiny, cases), strict=True):
        (got,) = output.outputs
        count = min(trace.settled(1e-4), len(got.token_ids))
        assert list(got.token_ids[:count]) == trace.tokens[:count]
        if got.finish_reason == "error":
            assert case.amateurs and SPOILT[what] in str(got.stop_reason)
            failed += 1
        else:
            assert len(got.token_ids) == len(trace.tokens)
    assert bool(failed) == bool(SPOILT[what])
    assert not scheduler(llm).requests
