"""The page that shows recommendations: what it says, and that a browser shows it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from recbole_llm.cli import main
from recbole_llm.errors import ConfigError, DataError, MissingExtraError
from recbole_llm.quick_start import run
from recbole_llm.recommend import Recommender
from recbole_llm.recommend.explore import explore_main, show
from recbole_llm.recommend.explorer import BY_USERS, BY_VECTORS, Explorer
from recbole_llm.testing import WORDS
from tests.closeness import assert_same_list
from tests.worlds import write_cycle, write_dataset

SETTINGS = {"epochs": 2, "train_batch_size": 64, "learning_rate": 0.01, "show_progress": False, "use_gpu": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore")
    write_cycle(folder / "data")
    write_dataset(folder / "data", "shop", SHOP, {"a": "", "b": "red *ball*"})
    return folder


# b and c share two of three users each, b and d one of (3, 2), and b and a none.
SHOP = {"u1": ["b", "c", "d"], "u2": ["c", "b", "b"], "u3": ["b", "d", "e"], "u4": ["c", "a"], "u5": ["a", "e"]}
NO_FILTERS = {"MAX_ITEM_LIST_LENGTH": 5, "metrics": ["Recall"], "topk": [2], "valid_metric": "Recall@2"}


@pytest.fixture(scope="module")
def trained(folder, one_thread):
    places = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
    return Path(run("LRURec", "cycle", config_dict={**SETTINGS, **places})["run_dir"])


@pytest.fixture(scope="module")
def explorer(trained):
    return Explorer.load(trained)


@pytest.fixture(scope="module")
def popular(folder, one_thread):
    """An explorer of a model without vectors, on data in which only two items have a line and one of them a title."""
    places = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
    return Explorer.load(run("MostPopular", "shop", config_dict={**SETTINGS, **NO_FILTERS, **places})["run_dir"])


@pytest.fixture(autouse=True)
def _isolated(isolated):
    pass


# ---- what it says


def test_items_are_found_by_the_words_of_their_titles_and_by_id(explorer):
    assert explorer.title("i13") == f"{WORDS[1]} volume 13"
    assert explorer.label("i13") == "violin volume 13 [i13]"
    assert sorted(explorer.find_items("VIOLIN")) == ["i1", "i13", "i25"]
    assert explorer.find_items("volume iol 25") == ["i25"]
    assert explorer.find_items("i2")[0] == "i2" and set(explorer.find_items("i2")) == {"i2"} | {
        f"i2{digit}" for digit in range(10)
    }
    assert explorer.find_items("volume", limit=3) == explorer.items[:3]
    assert explorer.find_items("") == explorer.items
    assert explorer.find_items("zeppelin") == []


def test_users_are_found_by_a_part_of_their_id(explorer):
    assert explorer.find_users("u3")[0] == "u3"
    assert set(explorer.find_users(" u3 ")) == {"u3", *(f"u3{digit}" for digit in range(10))}
    assert explorer.find_users("", limit=4) == explorer.users[:4]
    assert len(explorer.users) == 40


def test_an_item_without_a_title_goes_by_its_id(popular):
    assert (popular.title("b"), popular.title("a"), popular.label("e")) == ("red *ball*", "a", "e")
    assert popular.why_no_titles == ""


def test_without_titles_it_says_why(trained, folder, monkeypatch):
    shutil.copytree(folder / "data", "data")
    Path("data/cycle/cycle.item").unlink()
    explorer = Explorer.load(trained, data_path="data")
    assert explorer.why_no_titles == f"{Path('data/cycle/cycle.item')} does not exist"
    assert explorer.label("i3") == explorer.title("i3") == "i3"
    assert explorer.find_items("i13") == ["i13"]


def test_a_user_s_list_is_the_recommender_s_and_its_history_the_file_s(explorer, trained):
    for part, left_out in (("all", 0), ("test", 1), ("valid", 2)):
        lists = explorer.recommend_user("u5", 4, part)
        items = [f"i{(35 + i) % 30}" for i in range(11)]  # as write_cycle says
        assert [row.item for row in lists.history] == items[: 11 - left_out]
        assert (lists.target.item if lists.target else None) == (items[11 - left_out] if left_out else None)
        (frame,) = Recommender.load(trained).recommend_users(["u5"], 4, part)
        assert [row.item for row in lists.items] == frame["item_id"].tolist()
        assert [row.score for row in lists.items] == pytest.approx(frame["score"].tolist())
        assert all(row.title == explorer.title(row.item) for row in (*lists.history, *lists.items))


def test_the_target_s_rank_is_its_place_in_the_list(explorer):
    lists = explorer.recommend_user("u5", 30, "test", mask_history=False)
    assert [row.item for row in lists.items][lists.target_rank - 1] == lists.target.item
    assert explorer.recommend_user("u5", 30, "all").target_rank is None
    assert explorer.recommend_user("u5", 1, "test").target_rank in (None, 1)


def test_a_repeated_item_stands_in_the_history_as_often_as_in_the_file(popular):
    assert [row.item for row in popular.recommend_user("u2", 2).history] == ["c", "b", "b"]
    assert [row.item for row in popular.recommend_user("u2", 2, "test").history] == ["c", "b"]


def test_a_history_of_one_s_own(explorer):
    found = explorer.recommend(["i3", "i4"], 5)
    assert [row[::2] for row in found] == [tuple(row) for row in explorer.recommender.recommend([["i3", "i4"]], 5)[0]]
    assert not {"i3", "i4"} & {row.item for row in found}
    assert {"i3", "i4"} <= {row.item for row in explorer.recommend(["i3", "i4"], 30, mask_history=False)}
    with pytest.raises(DataError, match="'nosuch'"):
        explorer.recommend(["nosuch"])


def test_similar_items_are_those_of_the_model_s_vectors(explorer):
    found, what_by = explorer.similar("i3", 4)
    assert what_by == BY_VECTORS
    assert [row[::2] for row in found] == [tuple(row) for row in explorer.recommender.similar_items("i3", 4)]


def test_without_vectors_similar_items_are_those_with_the_same_users(popular):
    found, what_by = popular.similar("b", 4)
    assert what_by == BY_USERS
    assert [(row.item, row.score) for row in found] == [
        ("d", pytest.approx(2 / (3 * 2) ** 0.5)),
        ("c", pytest.approx(2 / (3 * 3) ** 0.5)),
        ("e", pytest.approx(1 / (3 * 2) ** 0.5)),
    ]
    with pytest.raises(DataError, match="'nosuch'"):
        popular.similar("nosuch")


def test_it_may_be_asked_from_several_threads(trained):
    explorer, found = Explorer.load(trained), []
    threads = [threading.Thread(target=lambda: found.append(explorer.recommend_user("u5", 4))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = explorer.recommend_user("u5", 4)
    assert len(found) == 4
    for lists in found:
        assert lists.history == expected.history
        # A thread of its own may use another number of torch's.
        assert_same_list(*([(row.item, row.score) for row in each.items] for each in (lists, expected)))


# ---- the page, without a browser


def page_of(explorer):
    testing = pytest.importorskip("streamlit.testing.v1", reason="needs the extra explore", exc_type=ImportError)
    page = testing.AppTest.from_file(str(show(explorer)), default_timeout=60).run()
    assert not page.exception
    return page


def titles(table):
    return table.value["title"].tolist()


def test_the_page_shows_a_user_s_list(explorer):
    page = page_of(explorer)
    assert page.subheader[0].value == "LRURec on cycle"
    user = explorer.users[0]
    lists = explorer.recommend_user(user, 10)
    assert titles(page.dataframe[0]) == [row.title for row in lists.items]
    assert titles(page.dataframe[1]) == [row.title for row in lists.history[::-1]]
    assert titles(page.dataframe[2]) == [row.title for row in explorer.similar(lists.items[0].item, 10)[0]]
    page.sidebar.selectbox[0].select("u7").run()
    page.sidebar.selectbox[1].select("test").run()
    page.sidebar.slider[0].set_value(3).run()
    lists = explorer.recommend_user("u7", 3, "test")
    assert titles(page.dataframe[0]) == [row.title for row in lists.items]
    place = f"rank {lists.target_rank}" if lists.target_rank else "not among the first 3"
    assert page.text[0].value == f"The user's next item was {explorer.label(lists.target.item)}: {place}."
    page.sidebar.checkbox[0].uncheck().run()
    assert titles(page.dataframe[0]) == [row.title for row in explorer.recommend_user("u7", 3, "test", False).items]


def test_the_page_takes_a_history(explorer):
    page = page_of(explorer)
    page.sidebar.radio[0].set_value("a history of my own").run()
    assert page.info[0].value.startswith("Choose at least one item") and not page.dataframe
    page.multiselect[0].select("pirate volume 6 [i6]").run()
    page.multiselect[0].select("apple volume 0 [i0]").run()
    assert not page.exception
    assert titles(page.dataframe[0]) == [row.title for row in explorer.recommend(["i6", "i0"], 10)]
    assert titles(page.dataframe[1]) == ["apple volume 0", "pirate volume 6"]


def test_the_page_says_what_a_model_cannot_do(folder):
    places = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
    page = page_of(Explorer.load(run("FPMC", "cycle", config_dict={**SETTINGS, **places})["run_dir"]))
    assert len(page.dataframe) == 3
    page.sidebar.radio[0].set_value("a history of my own").run()
    page.multiselect[0].select("pirate volume 6 [i6]").run()
    assert not page.exception
    assert "FPMC reads 'user_id'" in page.error[0].value


def test_a_large_catalogue_is_searched_before_the_menu(explorer, monkeypatch):
    page = page_of(explorer)
    assert not page.text_input
    monkeypatch.setattr(Explorer, "find_items", lambda self, text, limit: find(self, text, 3))
    monkeypatch.setattr(explorer, "items", LongList(explorer.items))
    page = page_of(explorer)
    page.sidebar.radio[0].set_value("a history of my own").run()
    page.text_input[0].set_value("wizard").run()
    assert page.multiselect[0].options == [explorer.label(item) for item in find(explorer, "wizard", 3)]
    page.multiselect[0].select("wizard volume 8 [i8]").run()
    page.text_input[0].set_value("apple").run()
    assert page.multiselect[0].value == ["i8"]  # what was chosen outlasts the next search
    assert not page.exception


find = Explorer.find_items


class LongList(list):
    def __len__(self):
        return 10**6


# ---- the command


def test_without_the_extra_it_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "streamlit.web.cli", None)
    monkeypatch.setitem(sys.modules, "streamlit", None)
    with pytest.raises(MissingExtraError, match=r"explore` needs streamlit; .*recbole-llm\[explore\]"):
        explore_main([str(trained)])


def test_wrong_arguments_are_errors(trained, capsys):
    with pytest.raises(ConfigError, match="port=0 must be between"):
        explore_main([str(trained), "--port=0"])
    with pytest.raises(ConfigError, match="--prot is not an option"):
        explore_main([str(trained), "--prot=8000"])
    pytest.importorskip("streamlit", reason="needs the extra explore", exc_type=ImportError)
    assert main(["explore", "nosuch"]) == 2
    assert "nosuch" in capsys.readouterr().err


def test_a_browser_shows_the_page_and_nothing_is_asked_of_other_hosts(trained, tmp_path):
    pytest.importorskip("streamlit", reason="needs the extra explore", exc_type=ImportError)
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium, such as `apt-get install chromium`")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # A file, not a pipe: nobody reads while it runs.
    with Path("server.log").open("w") as log:
        command = [sys.executable, "-m", "recbole_llm", "explore", str(trained), f"--port={port}", "--no_browser"]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ})
    try:
        wait_for(f"http://localhost:{port}/_stcore/health", server)
        hosts = set()
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
            page.goto(f"http://localhost:{port}")
            page.get_by_text("LRURec on cycle").wait_for(timeout=60_000)
            page.get_by_text("a history of my own").click()
            page.get_by_label("History, oldest first").fill("pirate volume 6")
            page.get_by_role("option", name="pirate volume 6 [i6]").click()
            page.get_by_text("Similarity:").wait_for(timeout=60_000)
            shown = page.locator("table").first.inner_text()
            browser.close()
    finally:
        server.terminate()  # an interrupt is ignored where the tests run in the background
        try:
            status = server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    log = Path("server.log").read_text()
    assert status == 0, log
    assert hosts == {f"localhost:{port}"}
    best = Explorer.load(trained).recommend(["i6"], 10)[0]
    assert best.title in shown and best.item in shown
    assert not re.search("Traceback|Error", log), log


def wait_for(address, server, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, Path("server.log").read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"no page after {seconds} s: {Path('server.log').read_text()}")
