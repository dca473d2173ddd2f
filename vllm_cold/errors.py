# SPDX-License-Identifier: Apache-2.0
"""The error that names what is wrong with a setting. Imports no vLLM."""

_SHOWN = 100  # characters of a value: prompts are values too


class ColdError(ValueError):
    """A CoLD setting is wrong; the message names the field, the value and what is allowed."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        shown = repr(value)
        if len(shown) > _SHOWN:
            shown = shown[:_SHOWN] + "..."
        super().__init__(f"{field}={shown}: {problem}")
        self.field = field
        self.value = value
        self.problem = problem
