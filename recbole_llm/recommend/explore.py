"""``recbole-llm explore``: a page that shows the recommendations of a run."""

import logging
from collections.abc import Sequence
from pathlib import Path

from recbole_llm.config.arguments import CommandParser
from recbole_llm.errors import ConfigError
from recbole_llm.extras import optional
from recbole_llm.recommend.command import SETTINGS, parse_with_settings
from recbole_llm.recommend.explorer import Explorer
from recbole_llm.run.logging import log_to_console

HELP = """\
Look at the recommendations of a finished run in a browser: pick a user or put a history together, and see titles,
scores, the history and similar items. Nothing leaves this machine. Needs the extra `explore`. Ctrl-C ends it.

examples:
  recbole-llm explore saved/LRURec-ml-100k-...
  recbole-llm explore saved/LRURec-ml-100k-... --port=8600 --no_browser
"""
PAGE = Path(__file__).with_name("explore_page.py")

# What the page shows. Streamlit runs the page in this process, as a script of its own that imports this module.
_explorer: Explorer | None = None


def shown_explorer() -> Explorer:
    """Return what :func:`show` was given."""
    assert _explorer is not None, "the page is started by `recbole-llm explore`"
    return _explorer


def show(explorer: Explorer) -> Path:
    """Set what the page shows, and return its file."""
    global _explorer
    _explorer = explorer
    return PAGE


def explore_main(argv: Sequence[str]) -> int:
    """Run ``recbole-llm explore`` with the arguments that follow the command; return the exit status."""
    parser = CommandParser("explore", HELP, SETTINGS)
    add = parser.add_argument
    add("run_dir", metavar="RUN_DIR", help="directory of a finished run")
    add("--port", type=int, help="port of the page (default: 8501, or the next that is free)")
    add("--host", default="localhost", help="address to serve at (default: localhost, this machine only)")
    add("--no_browser", action="store_true", help="do not open a browser")
    given, settings = parse_with_settings(parser, argv)
    if given.port is not None and not 0 < given.port < 2**16:
        raise ConfigError(f"port={given.port} must be between 1 and {2**16 - 1}.")
    server = optional("streamlit.web.cli", "explore", "`recbole-llm explore`")
    log_to_console()
    page = show(Explorer.load(given.run_dir, **settings))
    options = {
        "server.address": given.host,
        "browser.serverAddress": given.host,  # otherwise it asks a host outside for the address of this machine
        "server.port": given.port,
        "server.headless": given.no_browser,
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "viewer",
    }
    words = [f"--{key}={str(value).lower()}" for key, value in options.items() if value is not None]
    logging.getLogger().info("Ctrl-C ends the page.")
    server.main(["run", str(page), *words], standalone_mode=False)
    return 0
