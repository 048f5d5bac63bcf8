"""What LlamaRec's ranker makes of the candidates: metrics, scores, letters, options of ranking."""

import string
from dataclasses import replace

import pytest
import torch

from recbole_llm.evaluator.topk import top_items
from recbole_llm.llm.left_padded import last_logits
from tests.llamarec import K, batch_of, evaluated, prepare
from tests.worlds import write_cycle


@pytest.mark.parametrize("mask_history", [True, False])
def test_an_oracle_reaches_the_recall_of_the_retriever(settings, llama, mask_history):
    def oracle(model):
        original = model.full_sort_predict

        def remember(interaction):
            model.target = interaction["item_id"]
            return original(interaction)

        model.full_sort_predict = remember
        model.rank = lambda history, length, candidates, retrieved: (candidates == model.target[:, None]).float()

    masked, unmasked, rows = evaluated(settings, oracle, llm=llama, mask_history=mask_history)
    result = masked
    found = rows[f"retriever_recall@{K}"]
    assert 0 < found < 1
    assert result["recall@1"] == result[f"mrr@{K}"] == found
    assert rows["retrieved_users"]["recall@1"] == 1.0
    assert rows["users_retrieved"] == round(found * rows["users"])
    kind = "retriever_masked" if mask_history else "retriever_unmasked"
    assert result["recall@20"] == rows[kind]["recall@20"]  # what stands behind the candidates stays there


def test_the_order_of_the_retriever_gives_its_metrics_to_the_last_digit(settings, llama):
    def identity(model):
        model._letter_logits = lambda history, length, orders: -torch.arange(K).float().expand(1, len(history), K)

    masked, unmasked, rows = evaluated(settings, identity, llm=llama)
    assert masked == rows["retriever_masked"]
    assert unmasked == rows["retriever_unmasked"]
    assert rows["retrieved_users"] == rows["retrieved_users_retriever"]


def test_overall_is_the_subset_weighted_by_its_size(settings, llama):
    masked, _, rows = evaluated(settings, llm=llama)
    assert masked != rows["retriever_masked"]
    share = rows["users_retrieved"] / rows["users"]
    for metric in ("recall@1", f"ndcg@{K}", f"mrr@{K}"):
        assert masked[metric] == pytest.approx(share * rows["retrieved_users"][metric], abs=1e-12)
    assert rows["users_reranked"] == rows["users"]


def test_scores_do_not_depend_on_the_batch(settings, llama):
    model, _, _, test = prepare(settings, llm=llama, rank_batch_size=7, permutations=2)
    batch = batch_of(test)
    with torch.no_grad():
        together = model.full_sort_predict(batch)
        alone = torch.cat([model.full_sort_predict(batch[[i]]) for i in range(len(batch))])
        backwards = model.full_sort_predict(batch[list(range(len(batch)))[::-1]]).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, backwards, rtol=1e-5, atol=1e-6)
    candidates = model._candidates(model.retriever_scores(batch), batch)
    arguments = batch["item_id_list"], batch["item_length"], [candidates]
    (logits,) = model._letter_logits(*arguments)
    model.settings = replace(model.settings, rank_batch_size=1)
    torch.testing.assert_close(model._letter_logits(*arguments)[0], logits, rtol=1e-4, atol=1e-5)


def test_the_side_of_the_padding_does_not_matter(settings, llama):
    model, _, _, test = prepare(settings, llm=llama)
    batch = batch_of(test)
    candidates = model._candidates(model.retriever_scores(batch), batch)
    prompts = model.composer(batch["item_id_list"], batch["item_length"], candidates)
    assert prompts.length.min() < prompts.length.max()
    width = prompts.ids.shape[1]
    where = (torch.arange(width) + (width - prompts.length)[:, None]) % width
    right, mask = prompts.ids.gather(1, where), prompts.mask.gather(1, where)
    with torch.no_grad():
        left = last_logits(model.ranker, prompts.ids, prompts.mask, 1)[:, -1]
        padded = model.ranker(input_ids=right, attention_mask=mask).logits
    last = padded[torch.arange(len(batch)), prompts.length - 1]
    torch.testing.assert_close(left, last, rtol=1e-4, atol=1e-4)


def test_permutations_average_over_orders_of_the_same_candidates(settings, llama):
    model, _, _, test = prepare(settings, llm=llama, permutations=3)
    batch = batch_of(test)
    scores = model.retriever_scores(batch)
    candidates = model._candidates(scores, batch)
    candidates[0, 4:] = 0
    arguments = batch["item_id_list"], batch["item_length"]
    orders = [model._order(number, arguments[0], candidates) for number in range(3)]
    assert orders[0].tolist() == [list(range(K))] * len(batch)
    assert len({tuple(row) for row in orders[1].tolist()}) > 5  # every row has its own
    assert not torch.equal(orders[1], orders[2])
    assert (orders[1][0, 4:] >= 4).all()  # what is no candidate stays behind
    single = []
    for order in orders:
        logits = model._letter_logits(*arguments, [candidates.gather(1, order)])[0].log_softmax(1)
        single.append(logits.gather(1, order.argsort(1)))
    average = model.rank(*arguments, candidates, scores.gather(1, candidates))
    torch.testing.assert_close(average, sum(single) / 3)
    model.settings = replace(model.settings, permutations=1, shuffle_candidates=True)
    assert not torch.equal(model._order(0, arguments[0], candidates), orders[0])


def test_the_weight_of_the_retriever(settings, llama):
    masked, unmasked, rows = evaluated(settings, llm=llama, retriever_weight=1.0)
    assert masked == rows["retriever_masked"] and unmasked == rows["retriever_unmasked"]
    model, _, _, test = prepare(settings, llm=llama, retriever_weight=0.3)
    batch = batch_of(test)
    candidates = model._candidates(model.retriever_scores(batch), batch)
    retrieved = torch.randn(candidates.shape)
    arguments = batch["item_id_list"], batch["item_length"]
    mixed = model.rank(*arguments, candidates, retrieved)
    expected = 0.7 * model._letter_logits(*arguments, [candidates])[0].log_softmax(1) + 0.3 * retrieved.log_softmax(1)
    torch.testing.assert_close(mixed, expected)


def test_users_whose_target_was_missed_can_be_left_out(settings, llama):
    every, _, all_rows = evaluated(settings, llm=llama)
    found, _, rows = evaluated(settings, llm=llama, skip_users_without_target="always")
    assert rows["users_reranked"] == rows["users_retrieved"] < all_rows["users_reranked"]
    assert {k: v for k, v in found.items() if k.endswith((f"@{K}", "@1"))} == {
        k: v for k, v in every.items() if k.endswith((f"@{K}", "@1"))
    }
    _, _, rows = evaluated(settings, llm=llama, skip_users_without_target="valid")
    assert rows["users_reranked"] == rows["users"]


def test_both_readings_of_the_letters(settings, llama):
    model, *_ = prepare(settings, "retriever", llm=llama)
    other, *_ = prepare(settings, "retriever", llm=llama, verbalizer="original")
    assert torch.equal(model.reader.answer_ids, other.reader.answer_ids)
    # Llama 2 has others for them.
    assert torch.equal(model.reader.letter_ids, other.reader.letter_ids) == ("llama3" in llama)


def test_more_candidates_than_letters(settings, llama, tmp_path):
    write_cycle(tmp_path / "many", users=16, items=50)
    words = [*string.ascii_uppercase, *string.ascii_lowercase][:30]
    more = {"llm": llama, "n_candidates": 30, "label_words": words, "data_path": str(tmp_path / "many")}
    more["mask_history"] = False
    model, train, _, test = prepare(settings, **more)
    assert len(set(model.reader.letter_ids.tolist())) == 30
    batch = batch_of(test)
    candidates = model._candidates(model.retriever_scores(batch), batch)
    assert "\n (c) " in model.composer.text([1], candidates[0].tolist())
    ranking = model.rank(batch["item_id_list"], batch["item_length"], candidates, torch.zeros(candidates.shape))
    ordered = candidates.gather(1, ranking.argsort(1, descending=True))
    scores = model.full_sort_predict(batch)
    scores[:, 0] = -torch.inf
    assert torch.equal(top_items(scores, 30), ordered)
    assert torch.isfinite(model.calculate_loss(batch_of(train)))
