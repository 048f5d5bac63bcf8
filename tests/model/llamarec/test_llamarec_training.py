"""How LlamaRec's ranker is trained: losses, prompts, what changes and what is learned."""

import json
import random

import pytest
import torch

from recbole_llm.data.candidates import CANDIDATES
from recbole_llm.data.train_candidates import RetrievedLists
from recbole_llm.errors import DataError
from recbole_llm.prompt import verbalizer
from recbole_llm.quick_start import run
from recbole_llm.trainer.batches import batches_of
from recbole_llm.trainer.trainer import RunTrainer
from tests.llamarec import K, batch_of, prepare
from tests.toy_llms import save_llama
from tests.worlds import write_dataset


def test_one_step_changes_adapters_only(settings, llama):
    model, train, *_ = prepare(settings, llm=llama, warmup_updates=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = RunTrainer(model.config, model, None, train.dataset.train_counts)
    assert trainer.stages == ["retriever", "ranker"]
    trainer.start_stage(1)
    trainer.steps.total = 100
    model.train()
    assert not model.retriever.training
    trainer.model.calculate_loss(batch_of(train)).backward()
    trainer.steps.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_B" in name for name in changed)  # A has no gradient while B is 0
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name for name in before if "lora_" in name
    }


def test_the_head_sees_the_answer_only_and_gives_letters_only_where_no_other_word_counts(settings, llama, monkeypatch):
    model, train, _, test = prepare(settings, llm=llama)
    whole, letters = [], []
    head = model.ranker.get_base_model().lm_head
    head.register_forward_hook(lambda module, inputs, output: whole.append(inputs[0].shape[1]))
    few = verbalizer._Rows.forward

    def spy(self, hidden):
        letters.append((hidden.shape[1], len(self.tokens)))
        return few(self, hidden)

    monkeypatch.setattr(verbalizer._Rows, "forward", spy)
    batch = batch_of(train)
    model.calculate_loss(batch)
    model.reader.loss = "letter"
    model.calculate_loss(batch)
    assert whole == [2, 1] and not letters
    model.reader.loss = "candidates"
    model.calculate_loss(batch)
    model.full_sort_predict(batch_of(test))
    assert whole == [2, 1] and set(letters) == {(1, model.n_candidates)}
    assert model.ranker.get_base_model().lm_head is head


def test_losses(settings, llama):
    model, train, *_ = prepare(settings, llm=llama, lora_dropout=0.0)
    batch = batch_of(train)
    candidates, target = batch[CANDIDATES], batch["item_id"]
    label = (candidates == target[:, None]).long().argmax(1)
    assert (candidates.gather(1, label[:, None])[:, 0] == target).all()
    prompts = model.composer(batch["item_id_list"], batch["item_length"], candidates)
    answer = model.reader.answer_ids[label]
    whole = torch.cat([prompts.ids, answer[:, None]], 1)
    mask = torch.cat([prompts.mask, torch.ones_like(answer)[:, None]], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model.ranker(input_ids=whole, attention_mask=mask, position_ids=places).logits.log_softmax(-1)
        letter = -logits[:, -2].gather(1, answer[:, None]).mean()
        end = -logits[:, -1, model.reader.eos].mean()
        among = -logits[:, -2, model.reader.letter_ids].log_softmax(-1).gather(1, label[:, None]).mean()
        expected = {"letter_eos": (letter + end) / 2, "letter": letter, "candidates": among}
        for model.reader.loss, value in expected.items():
            torch.testing.assert_close(model.calculate_loss(batch), value, rtol=1e-5, atol=1e-5)


def test_candidates_of_training_prompts(settings):
    def draws(**more):
        model, train, *_ = prepare(settings, max_train_rows_per_user=None, **more)
        trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
        loader = batches_of(trainer.stage, trainer.model, train, trainer.evaluator)
        loader.set_epoch(0)
        return model, train.dataset, list(loader)

    model, dataset, batches = draws()
    for batch in batches:
        for i in range(len(batch)):
            items, history = batch[CANDIDATES][i].tolist(), batch["item_id_list"][i].tolist()
            assert batch["item_id"][i] in items and len(set(items)) == K and 0 not in items
            assert not set(items) & set(history)
    places = torch.cat([(batch[CANDIDATES] == batch["item_id"][:, None]).long().argmax(1) for batch in batches])
    assert (places.bincount(minlength=K) > len(places) / K / 4).all()  # the answer is any letter

    model, dataset, batches = draws(train_negatives="retriever", negative_pool=8)
    for batch in batches:
        first = model._candidates(model.retriever_scores(batch), batch)  # the history is shown whole here
        scores = model.retriever_scores(batch).scatter(1, batch["item_id_list"], -torch.inf)
        pool = scores.topk(8).indices
        for i in range(len(batch)):
            negatives = set(batch[CANDIDATES][i].tolist()) - {int(batch["item_id"][i])}
            assert len(negatives) == K - 1 and negatives <= set(pool[i].tolist()), first[i]

    for shuffled in (False, True):
        model, dataset, batches = draws(train_negatives="retrieved", shuffle_candidates=shuffled)
        shown = best_first = 0
        for batch in batches:
            first = model._candidates(model.retriever_scores(batch), batch)
            assert ((batch[CANDIDATES] == batch["item_id"][:, None]).sum(1) == 1).all()
            assert torch.equal(batch[CANDIDATES].sort(1).values, first.sort(1).values)
            best_first += int((batch[CANDIDATES] == first).all(1).sum())
            shown += len(batch)
        rows = dataset.inter_feat["history_position"]
        assert 0 < shown < len(rows)  # some targets were not among them
        assert (best_first == shown) is not shuffled


def test_no_list_to_learn_from(settings, monkeypatch):
    model, train, *_ = prepare(settings, train_negatives="retrieved")
    trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
    monkeypatch.setattr(RetrievedLists, "has_target", lambda self, position: torch.zeros(len(position), dtype=bool))
    with pytest.raises(DataError, match="named none of the targets"):
        batches_of(trainer.stage, trainer.model, train, trainer.evaluator)


def test_batches_of_similar_length_are_the_same_rows_in_the_same_order_each_time(settings):
    def lengths(bucket):
        model, train, *_ = prepare(settings, max_train_rows_per_user=None, length_bucketing=bucket, train_batch_size=8)
        trainer = RunTrainer(model.config, model, None, train.dataset.train_counts, finished=True)
        loader = batches_of(trainer.stage, trainer.model, train, trainer.evaluator)
        rows = []
        for _ in range(2):
            loader.set_epoch(3)
            rows.append([(batch["user_id"].tolist(), batch["item_length"].tolist()) for batch in loader])
        assert rows[0] == rows[1]
        loader.set_epoch(3)
        padding = 0
        for batch in loader:
            size = model.composer(batch["item_id_list"], batch["item_length"], batch[CANDIDATES]).length
            padding += int((size.max() - size).sum())
        pairs = [pair for batch in rows[0] for pair in zip(*batch, strict=True)]
        return padding, sorted(pairs), pairs

    padding, rows, order = lengths(True)
    plain, same, other = lengths(False)
    assert rows == same and order != other
    assert padding < 0.6 * plain


def text_decides(folder, shuffled):
    """The next item of a user is always one of the five that are called good."""
    draw = random.Random(0)
    good, bad = [f"g{i}" for i in range(5)], [f"b{i}" for i in range(30)]
    texts = dict.fromkeys(good, "good") | dict.fromkeys(bad, "bad")
    histories = {f"u{u}": draw.sample(good, 5) for u in range(150)}
    histories |= {f"v{i}": [*bad[i : i + 3], "g0"] for i in range(0, 30, 3)}
    if shuffled:
        words = list(texts.values())
        draw.shuffle(words)
        texts = dict(zip(texts, words, strict=True))
    return write_dataset(folder, "world", histories, texts)


def test_learns_what_the_text_decides_and_nothing_where_it_is_shuffled(settings, tmp_path):
    (tmp_path / "short.txt").write_text("{history};\n{candidates}\n", encoding="utf-8")
    text = " (1) good \n (2) bad;\n (A) good \n (B) bad \n (C) good\n"
    right = {}
    for shuffled in (False, True):
        more = {
            "data_path": str(text_decides(tmp_path / f"world-{shuffled}", shuffled)),
            "llm": save_llama(tmp_path / "llm", "llama3", [text] * 50, seed=1),
            "llm_init": "scratch",
            "tuning": "full",
            "prompt": str(tmp_path / "short.txt"),
            "retriever_epochs": 4,
            "retriever_learning_rate": 0.01,
            "n_candidates": 3,
            "shuffle_candidates": True,
            "max_history": 1,
            "max_train_rows_per_user": None,
            "ranker_loss": "candidates",
            "epochs": 8,
            "eval_step": 8,
            "eval_updates": None,
            "learning_rate": 5e-3,
            "lr_schedule": "constant",
            "warmup_updates": 20,
            "topk": [1, 3],
            "valid_metric": "Recall@1",
        }
        result = run("LlamaRec", "world", config_dict={**settings, **more})
        rows = json.loads((tmp_path / "saved" / result["run_dir"] / "results.json").read_text())["retrieval"]
        assert rows["users_retrieved"] > 100
        right[shuffled] = rows["retrieved_users"]["recall@1"]
    assert right[False] > 0.85
    assert right[True] < 0.6  # three candidates


def test_sixteen_bits(settings, llama):
    """The base model's weights in bfloat16, adapters and loss in float32: nearly the same scores and loss."""
    results = []
    for dtype in ("float32", "bfloat16"):
        model, train, _, test = prepare(settings, llm=llama, llm_dtype=dtype, lora_dropout=0.0)
        batch = batch_of(test)
        candidates = model._candidates(model.retriever_scores(batch), batch)
        (logits,) = model._letter_logits(batch["item_id_list"], batch["item_length"], [candidates])
        loss = model.calculate_loss(batch_of(train))
        loss.backward()
        assert {p.dtype for p in model.ranker.parameters() if p.requires_grad} == {torch.float32} == {loss.dtype}
        assert {p.dtype for n, p in model.ranker.named_parameters() if "lora_" not in n} == {getattr(torch, dtype)}
        results.append((logits, loss.detach()))
    (exact, loss), (rounded, rounded_loss) = results
    assert not torch.equal(exact, rounded)
    # How products of 16 bits are added differs between processors.
    assert torch.corrcoef(torch.stack([exact.flatten(), rounded.flatten()]))[0, 1] > 0.99
    torch.testing.assert_close(rounded_loss, loss, rtol=0.02, atol=0.02)


def test_gradient_checkpointing_changes_nothing_but_memory(settings, llama):
    losses = []
    for checkpointing in (False, True):
        model, train, *_ = prepare(settings, llm=llama, gradient_checkpointing=checkpointing, lora_dropout=0.0)
        model.train()
        assert model.ranker.get_base_model().model.gradient_checkpointing is checkpointing
        loss = model.calculate_loss(batch_of(train))
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        losses.append((loss.detach(), gradients))
    torch.testing.assert_close(losses[0], losses[1])
