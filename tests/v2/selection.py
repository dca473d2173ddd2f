# SPDX-License-Identifier: Apache-2.0
"""Which tests of engines and servers ``--runner v2`` does not run, and why; and which ten of them
every test run has. All others are in ``make v2``; those marked ``full`` are for V1 alone.
"""

import pytest

# What a test's id begins with -> why.
LEFT_OUT = {
    "tests/engine/test_changed_vllm.py": "it changes what front ends and the V1 runner use",
    "tests/engine/test_accuracy.py": "it is about the benchmark's bookkeeping and methods",
    "tests/examples/": "the demo times V1, and takes minutes in an interpreter",
    "tests/recipes/": "they are about other programs that talk to a server",
    "tests/docs/": "the pages' blocks are about options, and load the demo's model",
}

# By their ids.
IN_EVERY_RUN = (
    "tests/engine/test_reference.py::test_tokens_equal_the_reference[chunks]",
    "tests/engine/test_reference.py::test_tokens_equal_the_reference[pressure-sync]",
    "tests/engine/test_requests.py::test_sampling_follows_the_scores",
    "tests/engine/test_requests.py::test_features_keep_their_meaning",  # a grammar, among others
    "tests/engine/test_runners.py::test_the_repetition_penalty_of_a_generation_config",
    "tests/engine/test_pressure.py::test_survivors_get_what_they_get_alone[async-0]",
    "tests/engine/test_speculation.py::test_tokens_equal_the_reference[oracle-pressure-sync]",
    "tests/engine/test_speculation.py::test_a_group_is_never_verified_apart[in small chunks]",
    "tests/engine/test_streams.py::test_tokens_equal_the_reference[chunks]",
    "tests/server/test_serve.py::test_a_request_asks_for_it",
)


def apply(items: list[pytest.Item]) -> None:
    """Skip tests."""
    for item in items:
        for start in [name for name in LEFT_OUT if item.nodeid.startswith(name)]:
            item.add_marker(pytest.mark.skip(reason=f"V2: {LEFT_OUT[start]}"))
