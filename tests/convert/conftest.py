"""Where real data is, if it is there at all."""

from importlib.util import find_spec
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture
def shared_raw():
    """Folder of real downloads next to the checkout; they are never part of the repository."""
    folder = SHARED / "raw"
    if not folder.is_dir():
        pytest.skip("no ../shared/raw next to the checkout: the real downloads may not be redistributed")
    return folder


@pytest.fixture
def shared_datasets():
    folder = SHARED / "datasets"
    if not folder.is_dir():
        pytest.skip("no ../shared/datasets next to the checkout: these sets may not be redistributed")
    return folder


@pytest.fixture(scope="session")
def bundled_ml100k():
    return Path(find_spec("recbole").submodule_search_locations[0]) / "dataset_example" / "ml-100k"
