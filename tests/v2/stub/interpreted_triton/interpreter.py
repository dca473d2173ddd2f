# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, made to run all of vLLM's kernels, and in half the time.

A plugin of vLLM's, so that every process of an engine has it.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any


def install() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    if getattr(interpreter, "_is_mended", False):
        return
    interpreter._is_mended = True
    _take_any_mask(interpreter)
    _do_once(interpreter, tl)
    _count_in_tensors(interpreter, tl)


def _take_any_mask(interpreter: Any) -> None:
    """The compiler takes integers for masks (bad words, n-grams), the interpreter does not."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def boolean(mask: Any) -> Any:
        return interpreter.TensorHandle(mask.data.astype(bool), interpreter.tl.int1)

    def masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        return load(self, ptrs, boolean(mask), *rest, **named)

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return store(self, ptrs, value, boolean(mask), *rest)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store


def _do_once(interpreter: Any, tl: Any) -> None:
    """What takes half of its time and changes no result."""
    # It replaces the operations of triton.language at every launch and every device function, until
    # the launch ends. Nothing is compiled in this process, so they may stay replaced.
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    kept = interpreter._LangPatchScope()
    interpreter._patch_lang = lambda fn: kept

    # It makes a table of all dtypes at every load and cast.
    look_up = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def np_dtype(dtype: Any) -> Any:
        scalar = dtype.scalar
        name = "pointer" if scalar.is_ptr() else scalar.name
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    interpreter._get_np_dtype = np_dtype


def _count_in_tensors(interpreter: Any, tl: Any) -> None:
    """In a compiled kernel the variable of ``tl.range`` is a tensor; top-k and top-p cast it."""
    numbers = tl.range

    def tensors(*args: Any, **named: Any) -> Iterator[Any]:
        for number in numbers(*args, **named):
            yield interpreter.interpreter_semantic.to_tensor(number, False)

    tl.range = tl.core.range = tensors
