# SPDX-License-Identifier: Apache-2.0
"""What a decode step should cost, with CoLD and without: a model, of which nothing ran on a GPU.

``python -m benchmarks.cost_model [--json]``: see ``__main__``. ``model`` has the formulas,
``machines`` the constants and where they come from, ``measured`` what the formulas are held
against, ``tables`` what is printed. Shown in README.md, and in short in
docs/expect-on-gpus.md.
"""
