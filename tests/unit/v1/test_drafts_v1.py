# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding on the V1 runner: around vLLM's own rejection sampler, on CPU tensors.

What a position is given must not depend on how many are verified at once: the sampler without
drafts, asked for each in turn with the tokens before it, says what it is.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample import logits_processor, rejection_sampler
from vllm.v1.sample.logits_processor import LogitsProcessors, MinTokensLogitsProcessor
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from tests import engine_config
from tests.contrast import Contrast
from vllm_cold.compat import patching, places, versions
from vllm_cold.compat.patching import bind, original_of
from vllm_cold.compat.runner import Runner
from vllm_cold.wire import worker_output
from vllm_cold.worker.v1 import cpu_sampling, drafts_v1, step_outputs
from vllm_cold.worker.v1.processor_v1 import ColdLogitsProcessorV1

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(versions.is_before("0.32"), reason="vllm-cold speculates since vLLM 0.32"),
]

VOCAB = 13
CPU = torch.device("cpu")
REGULAR = SamplingParams()


@pytest.fixture(autouse=True)
def _wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's classes as an engine with speculation has them, for one test; no figures are left."""
    for owner, name, make in (
        (Sampler, "forward", step_outputs.wrap_sampler_forward),
        (RejectionSampler, "forward", drafts_v1.wrap_rejection_forward),
        (RejectionSampler, "apply_logits_processors", drafts_v1.wrap_apply_logits_processors),
        (rejection_sampler, "expand_batch_to_tokens", cpu_sampling.wrap_expand_batch_to_tokens),
    ):
        monkeypatch.setattr(owner, name, bind(make, original_of(getattr(owner, name))))
    for name in ("greedy_sample", "random_sample"):
        _use_cpu_kernel(monkeypatch, f"_rejection_{name}")
    _use_cpu_kernel(monkeypatch, "_sample_recovered_tokens")
    Output()


def _use_cpu_kernel(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What an engine on CPU does with a Triton kernel, for one test."""
    import vllm._custom_ops  # noqa: F401 (loads what is called)
    from vllm.triton_utils.dispatcher import KernelOverride
    from vllm.utils import cpu_triton_utils

    owner = getattr(rejection_sampler, name)
    implementation = getattr(cpu_triton_utils, f"{name}_kernel_impl")
    kernel = KernelOverride(getattr(owner.kernel, "func", owner.kernel), implementation)
    monkeypatch.setattr(owner, "kernel", kernel)
    monkeypatch.setitem(vars(owner), "_kernel_arg_names", kernel.arg_names)


class Output:
    """As vLLM makes it, with what this thread carries."""

    __init__ = bind(step_outputs.wrap_output_init, lambda self: None)


@dataclass
class Request:
    """A row of the batch.

    Attributes:
        params: Whose stream it is.
        drafts: What is verified.
        known: Its output tokens.
    """

    params: SamplingParams
    drafts: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)


@dataclass
class Options:
    """Of all requests of a batch, by row where that is said."""

    temperature: Sequence[float] | float = 0.0
    presence: Sequence[float] | float = 0.0
    repetition: float = 1.0
    bad_words: dict[int, list[list[int]]] = field(default_factory=dict)
    allowed: Tensor | None = None  # [rows, V], True for what is not


def processor_of(requests: Sequence[Request]) -> ColdLogitsProcessorV1:
    processor = ColdLogitsProcessorV1(engine_config.config(), CPU, False)
    added = [(row, request.params, None, []) for row, request in enumerate(requests)]
    processor.update_state(BatchUpdate(len(requests), [], added, []))
    return processor


def metadata_of(
    requests: Sequence[Request], options: Options, processors: Sequence[Any]
) -> SamplingMetadata:
    def column(value: Sequence[float] | float) -> Tensor:
        values = value if isinstance(value, Sequence) else [value] * len(requests)
        return torch.tensor(values, dtype=torch.float32)

    temperature, presence = column(options.temperature), column(options.presence)
    greedy = bool((temperature == 0).all())
    repetition = column(options.repetition)
    return SamplingMetadata(
        temperature=None if greedy else temperature,
        all_greedy=greedy,
        all_random=bool((temperature > 0).all()),
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=not bool(presence.any()) and options.repetition == 1,
        prompt_token_ids=torch.full((len(requests), 2), VOCAB, dtype=torch.int64),  # all padding
        frequency_penalties=torch.zeros_like(presence),
        presence_penalties=presence,
        repetition_penalties=repetition,
        output_token_ids=[list(request.known) for request in requests],
        allowed_token_ids_mask=options.allowed,
        bad_words_token_ids=options.bad_words,
        logitsprocs=LogitsProcessors(processors),
        spec_token_ids=[list(request.drafts) for request in requests],
    )


def verify(
    requests: Sequence[Request], logits: Tensor, options: Options, others: Sequence[Any] = ()
) -> Tensor:
    """vLLM's rejection sampler: [requests, most drafts + 1] tokens, -1 for none."""
    drafts = [request.drafts for request in requests]
    described = SpecDecodeMetadata.make_dummy(drafts, CPU)
    ends = described.cu_num_sampled_tokens.long()
    described.bonus_logits_indices = ends - 1
    is_target = torch.ones(len(logits), dtype=torch.bool)
    is_target[ends - 1] = False
    described.target_logits_indices = is_target.nonzero().flatten()
    metadata = metadata_of(requests, options, (*others, processor_of(requests)))
    sampler = RejectionSampler(Sampler())
    return sampler(described, None, logits.clone(), metadata).sampled_token_ids


def one_by_one(
    requests: Sequence[Request], logits: Tensor, options: Options
) -> tuple[list[list[int]], dict[str, list[Any]]]:
    """Without drafts: tokens up to the first that is no draft, and figures of each group."""
    starts, row = [], 0
    for request in requests:
        starts.append(row)
        row += 1 + len(request.drafts)
    tokens: list[list[int]] = [[] for _ in requests]
    figures: dict[str, list[Any]] = {}
    for place in range(1 + max(len(request.drafts) for request in requests)):
        # Requests that verify fewer take part with their last row, and are not looked at.
        at = [min(place, len(request.drafts)) for request in requests]
        rows = [start + i for start, i in zip(starts, at, strict=True)]
        known = [
            replace(request, known=request.known + request.drafts[:i], drafts=[])
            for request, i in zip(requests, at, strict=True)
        ]
        metadata = metadata_of(known, options, [processor_of(requests)])
        sampled = Sampler()(logits[rows].clone(), metadata).sampled_token_ids.flatten().tolist()
        for group, (found,) in worker_output.from_worker(Output()).items():
            expert = next(r for r in requests if r.params is EXPERTS[group])
            if place <= len(expert.drafts):
                figures.setdefault(group, []).append(found)
        for i, request in enumerate(requests):
            if place <= len(request.drafts) and tokens[i] == request.drafts[:place]:
                tokens[i].append(sampled[i])
    return tokens, figures


def tokens_of(sampled: Tensor) -> list[list[int]]:
    return [[token for token in row if token != -1] for row in sampled.tolist()]


ONE, TWO = Contrast((-0.9,), alpha=0.05), Contrast((1.5, -2.0), alpha=0.2)
X, Y = (
    [c.params(name, i) for i in range(1 + len(c.weights))] for name, c in (("x", ONE), ("y", TWO))
)
EXPERTS = {"x": X[0], "y": Y[0]}


def batch(drafts: dict[str, list[int]], known: dict[str, list[int]]) -> list[Request]:
    """Streams of two groups and a regular request, "p", in no order."""
    order = [(X[1], "x"), (Y[0], "y"), (REGULAR, "p"), (Y[2], "y"), (X[0], "x"), (Y[1], "y")]
    return [Request(params, drafts[name], known[name]) for params, name in order]


EXPERT = {"x": 4, "y": 1, "p": 2}


def draw(requests: Sequence[Request], seed: int) -> Tensor:
    rows = sum(1 + len(request.drafts) for request in requests)
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def right(
    counts: dict[str, int], seed: int, options: Options, wrong: dict[str, int]
) -> tuple[list[Request], Tensor]:
    """A batch whose drafts are what will be sampled, but for one of some requests: ``wrong``."""
    known = {"x": [3, 4], "y": [5], "p": [6, 6, 7]}
    drafts: dict[str, list[int]] = {name: [0] * n for name, n in counts.items()}
    logits = draw(batch(drafts, known), seed)
    for place in range(max(counts.values())):
        tokens, _ = one_by_one(batch(drafts, known), logits, options)
        for name, n in counts.items():
            if place < n:
                token = tokens[EXPERT[name]][place] if len(tokens[EXPERT[name]]) > place else 0
                drafts[name][place] = token
                if wrong.get(name) == place:
                    drafts[name][place] = (token + 1) % VOCAB
    return batch(drafts, known), logits


OPTIONS = {
    "nothing": Options(),
    "penalties of one": Options(presence=[0, 1.9, 0, 0, 0, 0]),
    "all": Options(
        presence=1.7,
        repetition=1.4,
        bad_words={4: [[3]], 1: [[5, 2], [7]]},
        allowed=torch.arange(6 * VOCAB).view(6, VOCAB) % 5 == 2,
    ),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    ("counts", "wrong"),
    [
        ({"x": 3, "y": 3, "p": 3}, {}),
        ({"x": 3, "y": 1, "p": 2}, {"x": 1}),
        ({"x": 0, "y": 4, "p": 1}, {"y": 3}),
        ({"x": 2, "y": 0, "p": 3}, {"x": 0, "p": 0}),
        ({"x": 0, "y": 0, "p": 2}, {}),
    ],
)
def test_greedy_verifies_what_the_sampler_gives(
    counts: dict[str, int], wrong: dict[str, int], options: Options
) -> None:
    """Scores stand after masks and before penalties, in the rows of drafts as in the last."""
    for seed in range(3):
        requests, logits = right(counts, seed, options, wrong)
        expected, figures = one_by_one(requests, logits, options)
        sampled = tokens_of(verify(requests, logits, options))
        carried = worker_output.from_worker(Output())
        for name, row in EXPERT.items():
            assert sampled[row] == expected[row]
            assert len(sampled[row]) == 1 + wrong.get(name, counts[name])
        # Amateurs have what their experts have.
        assert sampled[0] == sampled[4] and sampled[3] == sampled[5] == sampled[1]
        assert carried == figures
        assert {name: len(found) for name, found in carried.items()} == {
            name: 1 + counts[name] for name in "xy"
        }


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_requests_without_a_group_are_vllms(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch without a group, and with half of one."""
    requests = [
        Request(REGULAR, [1, 2, 3]),
        Request(X[0], [4]),
        Request(REGULAR),
        Request(Y[1], [5, 6]),
    ]
    logits = draw(requests, 3)
    options = Options(temperature=temperature, presence=0.7, bad_words={0: [[1]]})
    torch.manual_seed(1)
    ours = verify(requests, logits, options)
    for name in ("forward", "apply_logits_processors"):
        stock = original_of(getattr(RejectionSampler, name))
        monkeypatch.setattr(RejectionSampler, name, stock)
    torch.manual_seed(1)
    assert torch.equal(ours, verify(requests, logits, options))
    assert worker_output.from_worker(Output()) == {}


def test_vllms_processors_for_drafts_are_applied_once() -> None:
    """Before the scores, with the masks: min_tokens is the one that vLLM has under speculation."""
    calls = []

    class MinTokens(MinTokensLogitsProcessor):
        def apply_with_spec_decode(self, logits: Tensor, num_draft_tokens: list[int]) -> Tensor:
            calls.append((logits.clone(), num_draft_tokens))
            logits[:, 2] = -torch.inf
            return logits

    requests = [Request(X[i], [2, 2], [2]) for i in range(2)]
    logits = draw(requests, 0)
    logits[:, 2] = 90
    options = Options(presence=0.5)
    min_tokens = MinTokens(SimpleNamespace(), CPU, False)
    sampled = tokens_of(verify(requests, logits, options, [min_tokens]))
    ((seen, counts),) = calls
    assert counts == [2, 2]
    assert torch.equal(seen, logits[[0, 1, 3, 4]]), "neither scored nor penalized yet"
    masked = logits.clone()
    masked[:, 2] = -torch.inf
    assert sampled[0] == sampled[1] == [int(ONE.scores(masked[[0, 3]]).argmax())]


def test_drafts_of_either_kind_are_told() -> None:
    """vLLM has lists of drafters on the host, and a tensor of others."""
    processor = processor_of(batch({"x": [], "y": [], "p": []}, {"x": [], "y": [], "p": []}))
    lists = [[row] * row for row in range(6)]
    propose = bind(drafts_v1.wrap_propose_draft_token_ids, lambda self, drafts: drafts)
    runner = SimpleNamespace(input_batch=SimpleNamespace(logitsprocs=LogitsProcessors([processor])))
    told = [[4] * 4, [1], [2, 2], [1], [4] * 4, [1]]
    assert propose(runner, lists) is lists
    assert lists == told and lists[0] is not lists[4]
    tensor = torch.arange(12).view(6, 2)
    propose(runner, tensor)
    assert tensor[:, 0].tolist() == [8, 2, 4, 2, 8, 2]


# ---- how the processor gets there ----------------------------------------------------------------


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[Any]]]:
    """vllm-cold's ``build_logitsprocs``, and what is installed by it; nothing is."""
    installed: list[Any] = []
    monkeypatch.setattr(patching, "install", installed.extend)
    original = original_of(logits_processor.build_logitsprocs)
    yield bind(drafts_v1.wrap_build_logitsprocs, original), installed


def test_it_is_loaded_beside_min_tokens(build: tuple[Any, list[Any]]) -> None:
    make, installed = build
    config = engine_config.config()
    config.speculative_config = object()
    for custom in ([Runner.V1.processor], (Runner.V1.processor,)):
        found = make(config, CPU, False, False, custom)
        assert isinstance(found, LogitsProcessors)
        assert [type(p) for p in found.all] == [MinTokensLogitsProcessor, ColdLogitsProcessorV1]
        assert found.argmax_invariant == []
    wanted = places.rows(places.V1_DRAFTS, places.V1)
    assert set(wanted) <= set(installed)


def test_other_processors_end_with_vllms_sentence(build: tuple[Any, list[Any]]) -> None:
    """Under speculation; theirs know nothing of the rows of drafts."""
    make, _ = build
    config = SimpleNamespace(speculative_config=object(), additional_config={})
    for custom in (["other:Processor"], ["other:Processor", Runner.V1.processor]):
        with pytest.raises(ValueError, match=logits_processor.STR_SPEC_DEC_REJECTS_LOGITSPROCS):
            make(config, CPU, False, False, custom)


def test_it_is_wrapped_wherever_a_runner_has_it_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner's module that was loaded before the plugin has vLLM's under a name of its own."""
    runner = "vllm.v1.worker.gpu_model_runner"
    monkeypatch.delitem(sys.modules, runner, raising=False)
    (hook,) = places.rows(places.V1_LOADED)
    assert hook.wraps[0].problem() is None
    assert [place.is_used for place in hook.wraps] == [True, False]
    own = SimpleNamespace(build_logitsprocs=hook.wraps[0].find()[2])
    monkeypatch.setitem(sys.modules, runner, own)  # type: ignore[arg-type]
    assert [place.is_used for place in hook.wraps] == [True, True]
