# SPDX-License-Identifier: Apache-2.0
"""Stands in for torch_npu where there is no NPU. torch knows the device "npu", of which there is
none; streams and events are there, and wait for nothing.
"""

from typing import Any

import torch
from nothing import Nothing, become_nothing

__version__ = "2.10.0"


class _Waiting:
    """A stream, an event, or what makes a stream the current one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "_Waiting":
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


npu = Nothing("torch.npu")
npu.Stream = npu.Event = npu.ExternalEvent = npu.stream = _Waiting
npu.current_stream = npu.default_stream = lambda *args: _Waiting()
npu.is_available = lambda: False
npu.device_count = lambda: 0
npu.current_device = lambda: 0
npu.get_device_name = lambda *args: "no NPU, a stub"

torch.utils.rename_privateuse1_backend("npu")
torch.npu = npu
torch.version.cann = None
torch.distributed.is_hccl_available = lambda: True

become_nothing(__name__)
