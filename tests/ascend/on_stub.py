# SPDX-License-Identifier: Apache-2.0
"""pytest plugin of ``tests.ascend``: vLLM is patched by the vllm-ascend that was asked for, before
any test imports what is patched.
"""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from tests.ascend.__main__ import ASCEND, STUBS, VLLM


def pytest_sessionstart() -> None:
    """After conftest.py, which sets what vLLM reads when it is imported."""
    import torch_npu
    import vllm
    from vllm.platforms import current_platform

    found = [Path(module.__file__ or "") for module in (vllm, sys.modules["torch_npu"])]
    wanted = (Path(sys.prefix), STUBS)
    versions = (vllm.__version__.partition("+")[0], importlib.metadata.version("vllm-ascend"))
    if (
        not all(file.is_relative_to(folder) for file, folder in zip(found, wanted, strict=True))
        or versions != (VLLM, ASCEND)
        or current_platform.device_type != "npu"
        or torch_npu.npu.is_available()
    ):
        pytest.exit(f"not the environment of tests/ascend: {versions}, {found}", returncode=3)

    from vllm.utils import torch_utils
    from vllm_ascend.utils import adapt_patch

    torch_utils.PIN_MEMORY = False  # there is nothing to pin it for
    torch_utils.async_tensor_h2d.__defaults__ = (False,)
    adapt_patch(is_global_patch=True)  # as in every process of an engine
    adapt_patch()  # as in its workers
