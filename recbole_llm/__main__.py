"""``python -m recbole_llm``: the command line."""

import sys

from recbole_llm.cli import main

sys.exit(main())
