"""Every command of README and docs runs, small, or says beside it what it needs.

The commands of a page run one after the other, in this process and in a folder that all pages share: smoke runs on
the ml-100k that comes with RecBole or on a made-up data set. A block or a line that cannot run so is marked in the
page: ``<!-- needs ... -->`` before a block, ``# needs ...`` behind a line.
"""

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_llm.cli import main
from recbole_llm.compare import execution
from recbole_llm.compare.worker import run_task

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (.*?) -->\n+)?^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN = ("run_recbole_llm.py", "recbole-llm")
SMALL = ["--smoke", "--show_progress=False", "--use_gpu=False"]
# What makes a command small; everything else of it runs as it stands.
SMALLER = {
    "--llm=bundled": "--llm=tiny-random-bert",
    "--llm=smollm2": "--llm=tiny-random-llama",
    "--rec_llm=smollm2": "--rec_llm=tiny-random-llama",
    "--seeds=1,2,3": "--seeds=1",
    "--max_evals=20": "--max_evals=2",
    "--max_evals=30": "--max_evals=2",
}
# Commands that another test runs.
ELSEWHERE = {
    "--check": "tests/compare/test_leaderboard.py",
    "--rebuild": "tests/compare/test_leaderboard.py",
    "--onnx": "tests/recommend/test_tower.py",
    "--faiss": "tests/recommend/test_index.py",
    "explore": "tests/recommend/test_explore.py",
    "serve_onnx.py": "tests/recommend/test_tower.py",
    "ray_recommend.py": "tests/test_examples.py",
}


def lines_of(page):
    """Command lines of a page's blocks, and whether each is marked."""
    for mark, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield line, words, "needs " in mark or re.search(r"#.*\bneeds ", line) is not None


def arguments_of(words):
    """Arguments of our own command in a line, or None."""
    names = [place for place, word in enumerate(words) if Path(word).name in RUN]
    return words[names[0] + 1 :] if len(names) == 1 and names[0] < 2 and "&&" not in words else None


def test_every_line_is_a_command_that_runs_or_is_marked():
    loose = [
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for line, words, marked in lines_of(page)
        if not marked
        and arguments_of(words) is None
        and not set(words) & set(ELSEWHERE)
        and not {Path(word).name for word in words} & set(ELSEWHERE)
    ]
    assert loose == []
    assert all((ROOT / file).is_file() for file in ELSEWHERE.values())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, one_thread):
    """Folder with the files that commands name."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("XDG_CACHE_HOME", "HF_HOME"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr(execution, "in_own_process", run_task)
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "argv", ["recbole-llm"])
        write_files()
        yield folder
        sys.modules.pop("my_model", None)


def write_files():
    draw = np.random.default_rng(0)
    target = Path("dataset/mine")
    target.mkdir(parents=True)
    events = [
        (f"u{user}", f"i{item}", time) for user in range(40) for time, item in enumerate(draw.permutation(30)[:8])
    ]
    items = [(f"i{item}", f"thing number {item}", "maker", item) for item in range(30)]
    write(target / "mine.inter", ["user_id:token", "item_id:token", "timestamp:float"], events)
    write(target / "mine.item", ["item_id:token", "title:token_seq", "brand:token", "price:float"], items)
    pd.DataFrame(events, columns=["customer", "sku", "at"]).to_parquet("log.parquet")
    lines = [json.dumps({"sku": item, "name": title, "price": price}) for item, title, _, price in items]
    Path("items.jsonl").write_text("\n".join(lines))
    Path("users.txt").write_text("196\n186\n")
    Path("in_stock.txt").write_text("50\n181\n222\n")
    Path("adult.txt").write_text("222\n")
    Path("new_users.jsonl").write_text(json.dumps({"user_id": "ann", "item_id": ["50", "n1"]}))
    write(Path("new.item"), ["item_id:token", "movie_title:token_seq"], [("n1", "Toy Story 3")])
    page = (ROOT / "docs" / "add-a-model.md").read_text(encoding="utf-8")
    Path("my_model.py").write_text(re.search(r"```python\n(# my_model.py\n.*?)```", page, re.S)[1])
    Path("space.test").write_text(re.search(r"```text\n(width .*?)```", page, re.S)[1])
    shutil.copytree(ROOT / "props" / "hyper", "props/hyper")


def write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([header, *rows])


def finished(place):
    """The newest run directory or study that ``saved/LRURec-ml-100k-...`` stands for, made if there is none."""
    prefix = place.removeprefix("saved/").removesuffix("...").removesuffix("-") or "LLMSeqSim-ml-100k"
    prefix = "LRURec-ml-100k" if place == "RUN_DIR" else prefix
    if not existing(prefix):
        model, _, dataset = prefix.partition("-")
        assert main([f"--model={model}", f"--dataset={dataset}", *SMALL]) == 0
    return str(max(existing(prefix), key=lambda path: path.stat().st_mtime))


def existing(prefix):
    return [path for path in Path("saved").glob(f"{prefix}-*") if "-refit-" not in path.name]


def small(arguments):
    """Arguments of a command with its placeholders filled in, on small models."""
    place = re.compile(r"saved/[\w.-]*\.\.\.|RUN_DIR")
    arguments = [place.sub(lambda match: finished(match[0]), word) for word in arguments if word != "..."]
    arguments = [SMALLER.get(word, word) for word in arguments]
    trains = arguments[0].startswith("-") or arguments[0] in ("compare", "tune")
    if trains and "--model=" in " ".join(arguments) or "--config_files=" in " ".join(arguments):
        arguments += [word for word in SMALL if word not in arguments]
    if arguments[0] == "tune" and not re.search("--max_evals|--resume", " ".join(arguments)):
        arguments.append("--max_evals=2")
    return arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page, workplace, capsys):
    shutil.rmtree("lrurec", ignore_errors=True)  # what `card` writes must be new
    for line, words, marked in lines_of(page):
        arguments = arguments_of(words)
        if marked or arguments is None or set(words) & set(ELSEWHERE):
            continue
        status = main(small(arguments))
        said = capsys.readouterr()
        assert status == 0, f"{line}\n{said.err[-3000:]}"
