# SPDX-License-Identifier: Apache-2.0
"""Which tests of engines and servers ``--runner v2`` does not run, and why; and which of them every
test run has (``-m v2``). All others are in ``make v2``; those marked ``full`` are for V1 alone.
"""

import pytest

# What a test's id begins with -> why.
LEFT_OUT = {
    "tests/engine/test_changed_vllm.py": "it changes what front ends and the V1 runner use",
    "tests/engine/test_accuracy.py": "it is about the benchmark's bookkeeping",
    "tests/engine/test_accuracy_prompts.py": "it is about the benchmark's methods",
    "tests/examples/": "the demo times V1, and takes minutes in an interpreter",
    "tests/recipes/": "they are about other programs that talk to a server",
    "tests/docs/": "the pages' blocks are about options, and load the demo's model",
}

# What a test's id begins with.
IN_EVERY_RUN = (
    *(
        f"tests/engine/test_reference.py::test_tokens_equal_the_reference[{name}]"
        for name in ("async", "chunks-sync", "pressure", "compiled")
    ),
    "tests/engine/test_reference.py::test_another_adapter_as_amateur",
    "tests/engine/test_reference.py::test_adaptive_beta_against_another_adapter",
    "tests/engine/test_requests.py::test_identities",
    "tests/engine/test_requests.py::test_sampling_follows_the_scores[16]",
    "tests/engine/test_requests.py::test_a_seed_reproduces",
    "tests/engine/test_requests.py::test_features_keep_their_meaning",  # a grammar, among others
    "tests/engine/test_requests.py::test_prompt_logprobs_are_the_experts",
    "tests/engine/test_requests.py::test_abort_frees_both_streams",
    "tests/engine/test_requests.py::test_pause_reset_and_resume",
    "tests/engine/test_runners.py",
    "tests/engine/test_pressure.py::test_survivors_get_what_they_get_alone[async-0]",
    "tests/engine/test_speculation.py::test_tokens_equal_the_reference[oracle-sync]",
    "tests/engine/test_speculation.py::test_a_group_is_never_verified_apart",
    "tests/engine/test_streams.py::test_tokens_equal_the_reference[chunks]",
    "tests/engine/test_streams.py::test_a_seed_reproduces",
    "tests/engine/test_sick_requests.py::test_blocks_that_held_nan",
    "tests/engine/test_doctor.py::test_nothing_is_wrong_here",
    "tests/engine/test_doctor.py::test_kernel_that_gives_wrong_tokens",  # it is our Triton kernel
    "tests/engine/test_cures.py",
    "tests/server/test_serve.py::test_a_request_asks_for_it",
    "tests/server/test_serve.py::test_chat_streaming_and_n",
    "tests/server/test_serve.py::test_disconnecting_clients_leave_nothing",
    "tests/server/test_metrics.py::test_every_figure[one API server]",
)


def apply(items: list[pytest.Item], *, whole: bool) -> None:
    """Skip and mark tests.

    Args:
        whole: Whether these are all tests; then each name above must be of one.
    """
    unknown = {*LEFT_OUT, *IN_EVERY_RUN}
    for item in items:
        for start in [name for name in LEFT_OUT if item.nodeid.startswith(name)]:
            item.add_marker(pytest.mark.skip(reason=f"V2: {LEFT_OUT[start]}"))
            unknown.discard(start)
        for start in [name for name in IN_EVERY_RUN if item.nodeid.startswith(name)]:
            item.add_marker(pytest.mark.v2)
            unknown.discard(start)
    if whole and unknown:
        raise pytest.UsageError(f"no test begins like this: {', '.join(sorted(unknown))}")
