from tests.llm_fixtures import _no_network_no_home, hub_down, logger, saved_folder

__all__ = ["_no_network_no_home", "hub_down", "logger", "saved_folder"]
