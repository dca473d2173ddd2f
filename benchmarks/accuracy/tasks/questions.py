# SPDX-License-Identifier: Apache-2.0
"""Other people's questions about other people's texts (``sources.toml`` says whose). The amateur
reads the question alone.
"""

from __future__ import annotations

CELLS = ()
