# SPDX-License-Identifier: Apache-2.0
"""What Triton and vLLM ask a back end's driver; Triton loads it by the entry point."""

from typing import Any, NoReturn

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class InterpretedDriver(DriverBase):
    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> NoReturn:
        raise NotImplementedError("nothing is compiled: set TRITON_INTERPRET=1")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("an interpreter's times say nothing")
