# SPDX-License-Identifier: Apache-2.0
"""vLLM's own scheduler tests, with its schedulers and with ours: ``python -m tests.upstream``.

Every test that passes with vLLM's must pass with ours (see ``child`` for the three runs), and in
every test ours must schedule the same. Otherwise the tests are listed and the exit code is 1.
"""

import argparse
import sys
from pathlib import Path

from tests.upstream import compare, sdist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=compare.STEPS, help="0: all 20000")
    args = parser.parse_args()
    version = sdist.pinned_version()
    sys.exit(bool(compare.upstream(version, Path(sys.executable), args.steps).failed))


if __name__ == "__main__":
    main()
