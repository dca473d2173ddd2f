# SPDX-License-Identifier: Apache-2.0
"""Which tests of engines and servers run on V2: those where it matters which runner an engine has.
What is marked ``full`` is for V1 alone.
"""

# In `make test-all` and `make v2`.
FILES = (
    "tests/engine/test_streams.py",
    "tests/engine/test_images.py",
    "tests/engine/test_reference.py",
    "tests/engine/test_requests.py",
    "tests/engine/test_runners.py",
    "tests/engine/test_pressure.py",
    "tests/engine/test_speculation.py",
    "tests/engine/test_sick_requests.py",
    "tests/engine/test_families.py::test_ssm",
    "tests/engine/test_families.py::test_tokens_equal_the_reference[qwen3_moe]",
    "tests/server/test_serve.py",
)

# In every run, by their ids.
IN_EVERY_RUN = (
    "tests/engine/test_reference.py::test_tokens_equal_the_reference[pressure-sync]",
    "tests/engine/test_requests.py::test_features_keep_their_meaning",
    "tests/engine/test_runners.py::test_the_repetition_penalty_of_a_generation_config",
    "tests/engine/test_runners.py::test_products_are_computed_by_the_kernels_for_cpus",
    "tests/engine/test_pressure.py::test_survivors_get_what_they_get_alone[async-0]",
    "tests/engine/test_speculation.py::test_a_group_is_never_verified_apart[in small chunks]",
    "tests/engine/test_reference.py::test_tokens_equal_the_reference[chunks]",
    "tests/server/test_serve.py::test_the_server_default",
)
