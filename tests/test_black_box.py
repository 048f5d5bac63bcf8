"""What the command line promises, seen from outside: files in, files and exit status out.

Nothing of the package but its ``main`` is imported, so that the same file runs on any commit; on d0eece4 most of it
fails.
"""

import csv
import json
import random
from pathlib import Path

import pytest
import torch

from recbole_llm.cli import main

TINY = ["--train_batch_size=64", "--show_progress=False", "--use_gpu=False", "--topk=[5]", "--valid_metric=NDCG@5"]
HEAD = "user_id:token\titem_id:token\ttimestamp:float\n"
ODD_ITEMS = ["01", "1", "1.0", "1e5", "100000", "007", "7", "00", "0", "10"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def write(rows, name="shop", items=()):
    """``dataset/<name>/<name>.inter`` of (user, item, time) texts, and ``.item`` of (item, title)."""
    target = Path("dataset") / name
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.inter").write_text(HEAD + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    if items:
        lines = ["item_id:token\ttitle:token_seq", *("\t".join(item) for item in items)]
        (target / f"{name}.item").write_text("\n".join(lines) + "\n")


def histories(users=20, items=30, length=10, seed=1):
    """Rows of users with distinct items, and items with a title each."""
    draw = random.Random(seed)
    rows = [
        (f"u{user}", f"i{item}", 100 * step + user)
        for user in range(users)
        for step, item in enumerate(draw.sample(range(items), length))
    ]
    return rows, [(f"i{item}", f"thing number {item}") for item in range(items)]


def status(*arguments):
    """Exit status of a command; an exception is a traceback to whoever typed it, and fails the test."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as error:
        return error.code


def train(model, *more, dataset="shop"):
    """Run directory and results of a run that must succeed."""
    before = set(Path("saved").glob("*"))
    given = {setting.partition("=")[0] for setting in more}
    tiny = [setting for setting in TINY if setting.partition("=")[0] not in given]
    assert status(f"--model={model}", f"--dataset={dataset}", *tiny, *more) == 0
    (run_dir,) = set(Path("saved").glob("*")) - before
    return run_dir, json.loads((run_dir / "results.json").read_text(encoding="utf-8"))


def lists(run_dir, *more):
    """``{user: [item, ...]}`` as ``recommend`` writes them."""
    assert status("recommend", run_dir, "--k=5", "--out=top.csv", "--use_gpu=False", *more) == 0
    found = {}
    for row in csv.DictReader(Path("top.csv").read_text(encoding="utf-8").splitlines()):
        found.setdefault(row["user_id"], []).append(row["item_id"])
    return found


# ---- A: what goes in comes out


def test_ids_are_the_texts_of_the_file():
    users = ["007", "7", "7.0", "1e1", "10"]
    rows = [(user, item, step) for user in users for step, item in enumerate(random.Random(user).sample(ODD_ITEMS, 6))]
    write(rows)
    run_dir, results = train("MostPopular")
    assert (results["dataset"]["items"], results["dataset"]["users"]) == (10, 5)
    found = lists(run_dir, "--history=test")
    assert set(found) == set(users)
    assert {item for items in found.values() for item in items} <= set(ODD_ITEMS)
    assert set(lists(run_dir, "--users=007,7.0", "--allow=01,1", "--mask_history=False")) == {"007", "7.0"}


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", "True", "0x10", "1_000"])
def test_a_time_is_a_finite_number(value):
    rows, _ = histories()
    rows[37] = (*rows[37][:2], value)
    write(rows)
    assert status("--model=MostPopular", "--dataset=shop", *TINY) == 2
    assert status("check", "shop") == 1


def test_nothing_to_evaluate_is_an_error():
    write(histories(length=2)[0])
    assert status("--model=MostPopular", "--dataset=shop", *TINY) == 2


def test_no_validation_is_said():
    write(histories(length=3)[0])
    _, results = train("SASRec", "--epochs=1")
    assert any("validation" in notice and "20" in notice for notice in results["notices"]) or any(
        "early stopping" in notice for notice in results["notices"]
    )


# ---- B: a number means what its label says


def test_the_label_of_sampled_ranking_says_what_each_phase_did():
    write(histories()[0])
    _, results = train("MostPopular", "--eval_args={'mode': {'valid': 'uni5', 'test': 'full'}}")
    assert "validation: ranked among 5" in results["protocol"]["text"]
    assert status("--model=MostPopular", "--dataset=shop", *TINY, "--eval_args={'mode': 'uni500'}") == 2


@pytest.mark.parametrize("model", ["LlamaRec", "SASRec", "LLMSeqSim"])
def test_the_evaluator_and_recommend_give_the_same_lists(model):
    rows, items = histories(users=30, length=14)
    write(rows, items=items)
    length = "--MAX_ITEM_LIST_LENGTH=2"  # most of a history is not in the batch, and may still not be recommended
    run_dir, results = train(model, "--smoke", length, *["--llm=tiny-random-llama"] * (model == "LlamaRec"))
    found = lists(run_dir, "--history=test")
    last = {user: item for user, item, _ in sorted(rows, key=lambda row: row[2])}
    hits = [last[user] in items for user, items in found.items()]
    assert len(hits) == 30
    assert sum(hits) / 30 == pytest.approx(results["test_masked"]["recall@5"], abs=1e-4)
    seen = {(user, item) for user, item, _ in rows if last[user] != item}
    assert not seen & {(user, item) for user, items in found.items() for item in items}


def test_scores_of_a_mixed_precision_run_do_not_tie():
    write(histories(users=200, items=400, length=8)[0])
    _, results = train("SASRec", "--epochs=1", "--amp=bf16")
    tied = results["tied_targets"]
    assert max(tied.values() if isinstance(tied, dict) else [tied]) < 10  # of 200; in 16 bits, most of them


def test_patience_ends_after_as_many_misses():
    write(histories()[0])
    _, results = train("SASRec", "--epochs=12", "--stopping_step=2", "--learning_rate=1e-20")
    assert results["epochs"] == 3  # an equal score is no progress


def test_list_metrics_beyond_the_catalogue():
    write(histories(items=12)[0])
    more = ["--topk=[50]", "--valid_metric=Recall@50", "--metrics=['Recall','AveragePopularity']"]
    _, results = train("SASRec", "--epochs=1", *more)
    assert results["test_result"]["averagepopularity@50"] > 0


# ---- C: a run directory is evidence


def test_reordered_grown_and_shrunk_files():
    rows, items = histories()
    write(rows, items=items)
    run_dir, _ = train("SASRec", "--epochs=2")
    expected = lists(run_dir)
    shuffled = random.Random(3).sample(rows, len(rows))
    write(shuffled, items=items[::-1])
    assert lists(run_dir) == expected
    # New users, new items, and new interactions of known users, at the top of the file.
    grown = [("new", "i3", 5), ("u0", "fresh", 10**6), *shuffled]
    write(grown, items=items)
    now = lists(run_dir, "--history=test")
    write(rows, items=items)
    assert {user: now[user] for user in expected} == lists(run_dir, "--history=test")
    write([row for row in rows if row[0] != "u3"], items=items)
    assert status("recommend", run_dir) == 2  # interactions of the run are gone


def test_a_stored_file_runs_no_code():
    write(*histories()[:1], items=histories()[1])
    code = Path("evil")
    code.mkdir()
    (code / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "code.Evil"}}))
    (code / "code.py").write_text(
        "from transformers import PretrainedConfig\nopen('ran', 'w').close()\nclass Evil(PretrainedConfig): pass\n"
    )
    Path("settings.yaml").write_text("llm_trust_remote_code: true\n")
    more = [f"--llm={code.resolve()}", "--config_files=settings.yaml"]
    assert status("--model=LLMSeqSim", "--dataset=shop", *TINY, *more) == 2
    assert not Path("ran").exists()


@pytest.mark.parametrize("what", ["weights", "setting", "figure"])
def test_what_was_changed_in_a_run_directory_stops_loading(what):
    write(histories()[0])
    run_dir, _ = train("SASRec", "--epochs=1")
    if what == "weights":
        file = run_dir / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(bytes(content))
    else:
        name, old, new = {
            "setting": ("config.yaml", "MAX_ITEM_LIST_LENGTH: 50", "MAX_ITEM_LIST_LENGTH: 49"),
            "figure": ("results.json", '"updates": ', '"updates": 9'),
        }[what]
        text = (run_dir / name).read_text(encoding="utf-8")
        assert old in text
        (run_dir / name).write_text(text.replace(old, new), encoding="utf-8")
    assert status("recommend", run_dir, "--users=u1") == 2


# ---- D: settings


@pytest.mark.parametrize(
    "setting",
    [
        *("--train_neg_sample_args={'popularity': 1}", "--clip_grad_norm={'norm_typ': 2}", "--clip_grad_norm=-1"),
        *("--eval_args={'split': {'RS': [0,0,0]}}", "--seed=", "--seed=4294967296", "--learning_rate=.nan"),
        *("--hidden_size=-4", "--hidden_size=0", "--warmup_ratio=5", "--warmup_updates=-5", "--eval_step=-2"),
        *("--load_col={'inter': ['user_id', 'item_id', 'timestmp']}", "--val_interval={'rating': '[3,1]'}"),
        *("--normalize_field=['nosuch']", "--threshold={'nosuch': 3}", "--learning_rate=0", "--rm_dup_inter=middle"),
    ],
)
def test_wrong_settings_end_with_status_2(setting, capsys):
    write(histories()[0])
    assert status("--model=SASRec", "--dataset=shop", *TINY, "--epochs=1", setting) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_model_without_training_has_its_row_whatever_the_epochs():
    write(histories()[0])
    _, results = train("MostPopular", "--epochs=5")
    assert results["test_result"] and any("nothing to train" in notice for notice in results["notices"])


def test_files_that_were_split_beforehand():
    rows, _ = histories()
    for part, chosen in (("train", lambda n: n < 8), ("valid", lambda n: n == 8), ("test", lambda n: n == 9)):
        write([row for n, row in enumerate(rows) if chosen(n % 10)])
        Path("dataset/shop/shop.inter").rename(f"dataset/shop/shop.{part}.inter")
    run_dir, results = train("SASRec", "--epochs=1", "--benchmark_filename=['train','valid','test']")
    assert "split by the files train, valid, test" in results["protocol"]["text"]
    found = lists(run_dir, "--history=test")
    last = {user: item for user, item, _ in sorted(rows, key=lambda row: row[2])}
    hits = [last[user] in items for user, items in found.items()]
    assert sum(hits) / 20 == pytest.approx(results["test_masked"]["recall@5"], abs=1e-4)
