"""How many examples a property test tries: a few in CI, many with ``PROPERTY_TEST_SCALE=100 pytest -k ...``."""

import os
from typing import Any

from hypothesis import settings

SCALE = int(os.environ.get("PROPERTY_TEST_SCALE", "1"))


def examples(count: int, **more: Any) -> settings:
    """Return hypothesis settings of ``count`` examples, times the scale, without a time limit."""
    return settings(max_examples=count * SCALE, deadline=None, **more)
