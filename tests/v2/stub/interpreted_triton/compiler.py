# SPDX-License-Identifier: Apache-2.0
"""Triton wants a compiler of each back end; with TRITON_INTERPRET=1 it never asks for one."""

from typing import Any, NoReturn

from triton.backends.compiler import BaseBackend, GPUTarget


class NoCompiler(BaseBackend):
    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return False  # so that it cannot be made

    def hash(self) -> NoReturn:
        raise NotImplementedError

    def parse_options(self, options: dict[str, Any]) -> NoReturn:
        raise NotImplementedError

    def add_stages(self, stages: dict[str, Any], options: object, language: Any) -> NoReturn:
        raise NotImplementedError

    def load_dialects(self, context: Any) -> NoReturn:
        raise NotImplementedError

    def get_module_map(self) -> NoReturn:
        raise NotImplementedError
