# SPDX-License-Identifier: Apache-2.0
"""What several unit tests share."""

from collections.abc import Iterator

import pytest

from tests.made_up_server import MadeUp, serving


@pytest.fixture
def upstream() -> Iterator[tuple[str, MadeUp]]:
    """The address of a made-up server, and the server."""
    with serving() as found:
        yield found
