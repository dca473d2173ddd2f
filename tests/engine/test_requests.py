# SPDX-License-Identifier: Apache-2.0
"""What a request may carry and what is refused, offline."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import lora, scheduler
from tests.naive import NaiveCold

pytestmark = pytest.mark.engine

PROMPT = list(range(20, 60))


@pytest.fixture
def llm(shared_llm: Any) -> Any:
    return shared_llm()


def test_features_keep_their_meaning(llm: Any, tiny: Path, naive: NaiveCold) -> None:
    """Stop strings and tokens, bad words, allowed tokens, bias, min_tokens. (``test_streams`` has
    log probabilities and grammars.)
    """
    from vllm_cold import ColdParams

    def run(**options: Any) -> Any:
        params = ColdParams(
            **{"alpha": 0.05, "beta": 0.5, "temperature": 0.0, "max_tokens": 16, **options}
        )
        (output,) = llm.generate(
            {"prompt_token_ids": PROMPT}, params, lora_request=lora(tiny, "one"), use_tqdm=False
        )
        return output.outputs[0]

    trace = naive.generate(PROMPT, expert="one", alpha=0.05, beta=0.5, max_tokens=16)
    plain = list(run().token_ids)
    assert plain == trace.tokens
    stop = plain[5]
    cut = plain.index(stop) + 1
    assert list(run(stop_token_ids=[stop]).token_ids) == plain[:cut]
    assert list(run(stop_token_ids=[stop], min_tokens=16).token_ids) != plain[:cut]
    banned = run(logit_bias={plain[0]: -100.0})
    assert plain[0] not in banned.token_ids
    allowed = run(allowed_token_ids=[100, 200, 300], alpha=1e-6)
    assert set(allowed.token_ids) <= {100, 200, 300}
    biased = run(logit_bias={77: 100.0})
    assert set(biased.token_ids) == {77}
    word = run(bad_words=[llm.get_tokenizer().decode([plain[0]])])
    assert word.token_ids[0] != plain[0]
    detok = run(stop=[llm.get_tokenizer().decode([plain[3]]).strip()])
    assert list(detok.token_ids) == plain[:4]
    assert not scheduler(llm).requests


def test_beam_search(make_llm: Any, tiny: Path) -> None:
    """Refused where a default would contrast. (Defaults themselves: unit tests and servers.)"""
    from vllm.sampling_params import BeamSearchParams

    llm = make_llm(additional_config={"cold": True})

    def search(adapter: Any) -> Any:
        beams: Any = BeamSearchParams(beam_width=2, max_tokens=4)
        return llm.beam_search([{"prompt_token_ids": PROMPT}], beams, lora_request=adapter)

    with pytest.raises(ValueError, match="beam search"):
        search(lora(tiny, "one"))
    assert len(search(None)[0].sequences) == 2
