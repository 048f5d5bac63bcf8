"""One mask: what is evaluated, what is recommended and what a model chooses from leave out the same items."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_llm.config import Config
from recbole_llm.config.registry import own_models, property_file, props_dir
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.data.mask import EXCLUDED, exclude_from_choice, excluded, remove_history, table_of, without
from recbole_llm.quick_start import run
from recbole_llm.recommend import Recommender
from recbole_llm.run.load import Run
from recbole_llm.trainer.trainer import RunTrainer
from tests.properties import examples
from tests.worlds import WORDS, write_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS, K = 64, 4
NEEDED = {
    "ScoreEnsemble": {"members": ["LLMSeqSim", {"model": "LLMSeqSim", "dim_reduction": "none"}]},
    "LLMSeqSimSequential": {"popular_model": "VSKNN"},
    "LLMSeqSimPopularity": {"candidates": 8, "list_length": K},
    "EmbeddingEnsemble": {"list_length": 8},
    "LlamaRec": {"n_candidates": 5},
    "LLMSeqPrompt": {"variant": "rank", "list_length": K},
}
STOCK = ["SASRec", "GRU4Rec", "FPMC"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten users with 4 to 58 items: some histories are shorter and some longer than any length that is tried."""
    folder = tmp_path_factory.mktemp("mask")
    draw = np.random.default_rng(0)
    histories = {f"u{u}": [f"i{i}" for i in draw.permutation(ITEMS)[: 4 + 6 * u]] for u in range(10)}
    write_dataset(folder / "data", "shop", histories, {f"i{i}": f"{WORDS[i % 12]} {i}" for i in range(ITEMS)})
    return folder


def settings_of(name, folder, **more):
    own = property_file(props_dir() / "model" / f"{name}.yaml") if name not in STOCK else {}
    return {
        **own.get("smoke_settings", {}),
        "llm": own.get("smoke_settings", {}).get("llm", "tiny-random-t5"),
        "rec_llm": own.get("smoke_settings", {}).get("rec_llm", "tiny-random-t5"),
        **NEEDED.get(name, {}),
        "data_path": str(folder / "data"),
        "checkpoint_dir": str(folder / "saved"),
        "embedding_cache_dir": str(folder / "cache"),
        "use_gpu": False,
        "show_progress": False,
        "worker": 0,
        "metrics": ["Recall", "Novelty"],
        "topk": [K],
        "valid_metric": f"Recall@{K}",
        **more,
    }


def untrained(name, folder, **more):
    """A run whose model has been through its stages without learning anything."""
    config = Config(name, "shop", config_dict=settings_of(name, folder, **more))
    dataset = HistoryDataset(config)
    loaders = prepare_data(config, dataset)
    train = loaders[0]
    torch.manual_seed(1)
    model = config.model_class(config, train.dataset).eval()
    for stage in getattr(model, "training_stages", ()):
        model.start_stage(stage)
    trainer = RunTrainer(config, model, None, train.dataset.train_counts, finished=True)
    return Run(config, dataset, train.dataset, model, trainer, lambda: loaders)


def lists_of(recommender, history="test", **how):
    frame = pd.concat(recommender.recommend_users(k=K, history=history, **how))
    return {user: part["item_id"].tolist() for user, part in frame.groupby("user_id", sort=False)}


@pytest.mark.parametrize("length", [1, 5, 50])
@pytest.mark.parametrize("name", own_models() + STOCK)
def test_recommended_lists_are_those_of_the_evaluator(name, length, folder):
    made = untrained(name, folder, MAX_ITEM_LIST_LENGTH=length)
    made.trainer.evaluate(made.test_data, load_best_model=False)
    ranks, dataset = made.trainer.evaluation.ranks, made.dataset
    users = dataset.id2token("user_id", ranks.user)
    for masked, lists in ((True, ranks.masked_lists), (False, ranks.unmasked_lists)):
        expected = {
            user: dataset.id2token("item_id", row[row > 0]).tolist() for user, row in zip(users, lists, strict=True)
        }
        assert lists_of(Recommender(made), mask_history=masked) == expected


@pytest.mark.parametrize("skip", ["never", "valid", "always"])
@pytest.mark.parametrize("history", ["valid", "test"])
def test_users_that_are_not_reranked_are_the_same(skip, history, folder):
    made = untrained("LlamaRec", folder, MAX_ITEM_LIST_LENGTH=5, skip_users_without_target=skip)
    data = made.valid_data if history == "valid" else made.test_data
    made.trainer.evaluate(data, load_best_model=False)
    ranks, dataset = made.trainer.evaluation.ranks, made.dataset
    users = dataset.id2token("user_id", ranks.user)
    found = lists_of(Recommender(made), history)
    assert [found[user] for user in users] == [dataset.id2token("item_id", row).tolist() for row in ranks.masked_lists]


@pytest.mark.parametrize("name", ["LlamaRec", "LLMSeqPrompt", "ScoreEnsemble", "LLMSeqSimPopularity"])
@pytest.mark.parametrize("mask_history", [True, False])
def test_a_model_chooses_by_the_whole_history(name, mask_history, folder):
    made = untrained(name, folder, MAX_ITEM_LIST_LENGTH=5, mask_history=mask_history)
    interaction, (row, item), *_ = next(iter(made.test_data))
    histories = [set(item[row == number].tolist()) if mask_history else set() for number in range(len(interaction))]
    assert [set(items.tolist()) - {0} for items in interaction[EXCLUDED]] == histories
    if name == "LlamaRec":
        chosen = made.model._candidates(made.model.retriever_scores(interaction), interaction)
    elif name == "LLMSeqPrompt":
        chosen = made.model._to_choose_from(None, interaction, 0)
    else:
        chosen = made.model.recommendable(interaction).long() * torch.arange(made.model.n_items)
    for items, history in zip(chosen.tolist(), histories, strict=True):
        assert set(items) - {0} and not history & set(items)
        assert name != "ScoreEnsemble" or len(set(items) | history) == made.model.n_items
    if name == "LLMSeqPrompt":  # a prompt that lists the history does not offer it, masked or not, shown or not
        for number, items in enumerate(chosen.tolist()):
            assert not set(items) & set(item[row == number].tolist())
    if name == "LLMSeqPrompt":  # what it learns to answer obeys the same rule
        batch = next(iter(made.train_data))
        answers = made.model.teacher(batch)
        for items, left_out, target in zip(answers.tolist(), batch[EXCLUDED].tolist(), batch["item_id"], strict=True):
            assert not (set(items) - {int(target), 0}) & set(left_out)


def test_batches_of_sampled_items_have_the_whole_history(folder):
    sampled = {"mode": {"valid": "uni3", "test": "uni3"}}
    made = untrained("ScoreEnsemble", folder, MAX_ITEM_LIST_LENGTH=5, eval_args=sampled)
    interaction, row, number, _ = next(iter(made.test_data))
    whole_row, item = made.test_data.dataset.history(number)
    for place, items in zip(row.tolist(), interaction[EXCLUDED].tolist(), strict=True):
        assert set(items) - {0} == set(item[whole_row == place].tolist())
    made.trainer.evaluate(made.test_data, load_best_model=False)
    assert made.trainer.evaluation.ranks.masked.max() <= 4


def test_a_member_with_ids_of_its_own_leaves_out_the_same_items(folder, tmp_path):
    settings = settings_of("LLMSeqSimPopularity", folder, MAX_ITEM_LIST_LENGTH=5)
    inner = run("LLMSeqSimPopularity", "shop", config_dict=settings)["run_dir"]
    made = untrained("ScoreEnsemble", folder, MAX_ITEM_LIST_LENGTH=5, members=[inner, "LLMSeqSim"])
    member = made.model.members[0]
    interaction, *_ = next(iter(made.test_data))
    expected = member.full_sort_predict(interaction)
    # The same model, its items numbered backwards.
    turned = torch.cat([torch.zeros(1).long(), torch.arange(made.model.n_items - 1, 0, -1)])
    seen = {}
    original = member.model.full_sort_predict
    member._own_id = turned

    def spy(batch):
        seen.update(batch.interaction)
        return original(batch)

    member.model.full_sort_predict = spy
    member.full_sort_predict(interaction)
    assert torch.equal(seen[EXCLUDED], turned[interaction[EXCLUDED]])
    assert expected.shape == (len(interaction), made.model.n_items)


def test_recommending_to_a_long_history_excludes_all_of_it(folder):
    recommender = Recommender(untrained("LlamaRec", folder, MAX_ITEM_LIST_LENGTH=5))
    history = recommender.items[: ITEMS - 6]
    seen = []
    original = recommender.model._candidates
    recommender.model._candidates = lambda *given: seen.append(original(*given)) or seen[-1]
    (found,) = recommender.recommend([history], k=ITEMS)
    assert {each.item for each in found} == set(recommender.items) - set(history)
    assert set(recommender._catalogue.tokens[seen[0][0]]) <= set(recommender.items) - set(history)


# ---- the mask itself


@given(st.lists(st.sets(st.integers(1, 9), max_size=9), max_size=6))
@examples(60)
def test_a_table_holds_each_row_s_items(rows):
    pairs = [(number, item) for number, items in enumerate(rows) for item in sorted(items)]
    row, item = (torch.tensor([pair[i] for pair in pairs], dtype=torch.long) for i in (0, 1))
    table = table_of((row, item), len(rows))
    assert table.shape == (len(rows), max(1, *map(len, rows)) if rows else 1)
    assert [set(items) - {0} for items in table.tolist()] == rows
    if rows:
        scores = torch.rand(len(rows), 10)
        by_pairs = scores.clone()
        by_pairs[:, 0] = -torch.inf
        remove_history(by_pairs, (row, item))
        assert torch.equal(without(scores, table), by_pairs)


def test_a_batch_without_the_field_has_no_history_but_the_one_it_shows():
    shown = torch.tensor([[3, 4, 0], [5, 0, 0]])
    batch = Interaction({"item_id_list": shown})
    assert torch.equal(excluded(batch, "item_id_list", True), shown)
    assert excluded(batch, "item_id_list", False).tolist() == [[0], [0]]
    pairs = torch.tensor([0, 0, 0, 1]), torch.tensor([2, 3, 4, 5])
    said = exclude_from_choice(batch, pairs, True)
    assert excluded(said, "item_id_list", False).tolist() == [[2, 3, 4], [5, 0, 0]]
