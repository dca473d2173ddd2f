# SPDX-License-Identifier: Apache-2.0
"""vLLM's own scheduler tests, with its schedulers and with ours: ``python -m tests.upstream``.

Every test that passes with vLLM's must pass with ours (see ``child`` for the three runs), and in
every test ours must schedule the same. Otherwise the tests are listed and the exit code is 1.
"""

import sys
from pathlib import Path

from tests.upstream import compare, sdist


def main() -> None:
    sys.exit(bool(compare.upstream(sdist.pinned_version(), Path(sys.executable)).failed))


if __name__ == "__main__":
    main()
