"""The promises of the contract, one function each."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction

from recbole_llm.model.base import LLMRecommender, Reranker
from recbole_llm.recommend import Recommender
from recbole_llm.run.experiment import experiment
from recbole_llm.run.folder import create_run_dir
from recbole_llm.run.load import load_run
from recbole_llm.testing.case import Case, NotApplicable
from recbole_llm.trainer.checkpoint import load_weights, save_weights

# Scores of the same rows in different batches differ in their last digits.
RTOL, ATOL = 1e-4, 1e-5


class ContractError(AssertionError):
    """Raised for a broken promise; the message names the check and the finding."""


def scores_of(model: LLMRecommender, batch: Interaction) -> torch.Tensor:
    """Return ``full_sort_predict`` in evaluation mode, (B, n_items)."""
    model.eval()
    with torch.no_grad():
        return model.full_sort_predict(batch).view(len(batch), -1)


def names(case: Case) -> None:
    """Check that no parameter, buffer or module has the name of a hook, which would hide it."""
    model, *_ = case.build()
    own = {*model._parameters, *model._buffers, *model._modules}
    hooks = {hook for cls in (LLMRecommender, Reranker) for hook in vars(cls) if not hook.startswith("_")}
    _require(not own & hooks, f"{sorted(own & hooks)} are names of the contract: call them something else")


def scores(case: Case) -> None:
    """Check that ``full_sort_predict`` scores the whole catalogue, finitely, and never recommends padding."""
    model, _, batch = case.build()
    found = scores_of(model, batch)
    wanted = (len(batch), model.n_items)
    _require(found.shape == wanted, f"full_sort_predict has the shape {tuple(found.shape)}, not (B, n_items) {wanted}")
    _require(bool((found.argmax(1) != 0).all()), "item 0, padding, has the highest score of a row")
    _require(bool(torch.isfinite(found[:, 1:]).all()), "some scores are not finite")


def predict(case: Case) -> None:
    """Check that ``predict`` equals a column of ``full_sort_predict``."""
    model, _, batch = case.build()
    found = scores_of(model, batch).gather(1, batch[model.ITEM_ID][:, None])[:, 0]
    with torch.no_grad():
        _close(model.predict(batch), found, "predict differs from full_sort_predict")


def batching(case: Case) -> None:
    """Check that a row's scores do not depend on the other rows of its batch."""
    model, _, batch = case.build()
    together = scores_of(model, batch)
    alone = torch.cat([scores_of(model, batch[[row]]) for row in range(len(batch))])
    _close(alone, together, "rows score otherwise alone than in a batch")


def padding(case: Case) -> None:
    """Check that scores do not depend on the amount of padding."""
    model, _, batch = case.build()
    before = scores_of(model, batch)
    batch[model.ITEM_SEQ] = torch.nn.functional.pad(batch[model.ITEM_SEQ], (0, 3))
    _close(scores_of(model, batch), before, "three more columns of padding change the scores")


def target(case: Case) -> None:
    """Check that the target of an evaluation row is not read."""
    model, _, batch = case.build()
    before = scores_of(model, batch)
    batch[model.ITEM_ID] = torch.ones_like(batch[model.ITEM_ID])
    _close(scores_of(model, batch), before, "the scores depend on ITEM_ID, the item to be found")


def loss(case: Case) -> None:
    """Check that the loss is a finite scalar and that steps on a batch lower it."""
    case.require_training()
    model, train, _ = case.build()
    batch = next(iter(train)).to(model.device)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(15):
        value = _total(model.calculate_loss(batch))
        _require(value.numel() == 1, f"calculate_loss gave the shape {tuple(value.shape)}, not a scalar")
        _require(bool(torch.isfinite(value).all()), f"calculate_loss gave {value.item()}")
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        losses.append(value.item())
    _require(losses[-1] < losses[0], f"15 steps on one batch took the loss from {losses[0]:.4g} to {losses[-1]:.4g}")


def loss_weight(case: Case) -> None:
    """Check that losses of two half batches, weighted by ``loss_weight``, average to the loss of the batch."""
    case.require_training()
    model, train, _ = case.build()
    batch = next(iter(train)).to(model.device)
    model.eval()

    def weighted(rows: slice) -> tuple[float, float]:
        part = batch[torch.arange(len(batch))[rows]]
        with torch.no_grad():
            value = _total(model.calculate_loss(part))
            return float(value), float(torch.as_tensor(model.loss_weight(part)))

    whole, again = weighted(slice(None)), weighted(slice(None))
    if whole != again:
        raise NotApplicable("its loss draws random numbers")
    halves = [weighted(slice(0, len(batch) // 3)), weighted(slice(len(batch) // 3, None))]
    _require(all(weight > 0 for _, weight in halves), "loss_weight gave 0 for rows that have targets")
    mean = sum(value * weight for value, weight in halves) / sum(weight for _, weight in halves)
    _require(
        abs(mean - whole[0]) <= 1e-4 * max(1.0, abs(whole[0])),
        f"the loss of a batch is {whole[0]:.6g}, that of its parts weighted by loss_weight {mean:.6g}: loss_weight "
        "must count the targets that calculate_loss averages over",
    )


def weights(case: Case) -> None:
    """Check that saved weights give the same scores after loading."""
    model, _, batch = case.build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    expected = scores_of(model, batch)
    save_weights(model, case.folder / "w.safetensors")
    other, *_ = case.build()
    load_weights(other, case.folder / "w.safetensors")
    _require(torch.equal(scores_of(other, batch), expected), "loaded weights score otherwise than saved ones")


def vectors(case: Case) -> None:
    """Check that, with ``scores_are_products``, the scores are products of user and item vectors."""
    model, _, batch = case.build()
    if not model.scores_are_products:
        raise NotApplicable("it does not score by vectors")
    found = scores_of(model, batch)
    with torch.no_grad():
        products = model.user_vectors(batch) @ model.catalogue_vectors().T
        bias = model.catalogue_bias()
    products = products if bias is None else products + bias
    _close(products[:, 1:], found[:, 1:], "user_vectors @ catalogue_vectors.T + catalogue_bias are not the scores")


def new_items(case: Case) -> None:
    """Check that, with ``accepts_new_items``, new items are scored, change no other score and may be in histories."""
    model, _, batch = case.build()
    if not model.accepts_new_items:
        raise NotApplicable("it knows items by their ids only")
    known, before = model.n_items, scores_of(model, batch)
    model.append_items(["apple volume 0", "an unheard-of thing"])
    after = scores_of(model, batch)
    _require(after.shape == (len(batch), known + 2), f"scores have the shape {tuple(after.shape)} with two items more")
    _close(after[:, :known], before, "new items change the scores of the others")
    _require(bool(torch.isfinite(after[:, known:]).all()), "scores of new items are not finite")
    batch[model.ITEM_SEQ][:, 0] = known + 1
    _require(not torch.equal(scores_of(model, batch), after), "a new item in the history changes nothing")


def provenance(case: Case) -> None:
    """Check that what a result says about the model can be written as JSON."""
    try:
        json.dumps(case.build()[0].provenance())
    except (TypeError, ValueError) as error:
        raise ContractError(f"provenance() cannot be written as JSON ({error})") from error


def loading(case: Case) -> None:
    """Check that a run loaded from its directory repeats its test result."""
    result = case.run()
    again = load_run(result["run_dir"], model=case.model if isinstance(case.model, type) else None)
    found = again.trainer.evaluate(again.test_data, load_best_model=False)
    _require(found == result["test_result"], f"the loaded run gives {found}, the run itself {result['test_result']}")


def recommending(case: Case) -> None:
    """Check that ``recommend`` gives the evaluator's lists for histories of any length."""
    for length in (1, 5, 50):
        result = case.run(MAX_ITEM_LIST_LENGTH=length, metrics=["Recall"], topk=[10], valid_metric="Recall@10")
        recommender = Recommender.load(result["run_dir"], model=case.model if isinstance(case.model, type) else None)
        lists = pd.concat(recommender.recommend_users(history="test", k=10))
        ranks = np.load(Path(result["run_dir"]) / "test_ranks.npz")
        targets = dict(zip(ranks["user"].tolist(), ranks["target"].tolist(), strict=True))
        named = lists.groupby("user_id")["item_id"].agg(set)
        hits = sum(targets[str(user)] in items for user, items in named.items()) / len(targets)
        wanted = result["test_result"]["recall@10"]
        _require(
            abs(hits - wanted) < 1e-9, f"length {length}: recommend finds {hits:.4f} of the targets, not {wanted}"
        )


def resuming(case: Case) -> None:
    """Check that an interrupted and resumed run ends with the result of an uninterrupted one."""
    case.require_training()
    whole = case.run()

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    config = case.config()
    run_dir = create_run_dir(config)
    with suppress(KeyboardInterrupt):
        experiment(config, run_dir, on_validation=stop)
    resumed = experiment(case.config(), run_dir, resume=True)
    _require(
        resumed["test_result"] == whole["test_result"],
        f"a resumed run gives {resumed['test_result']}, an uninterrupted one {whole['test_result']}",
    )


def seeds(case: Case) -> None:
    """Check that the same seed repeats a run and that another seed does not."""
    first, second = (case.run(saved=False)["test_result"] for _ in range(2))
    _require(first == second, f"two runs with one seed give {first} and {second}")
    case.require_training()
    ranks = [np.load(Path(case.run(seed=seed)["run_dir"]) / "test_ranks.npz")["rank_unmasked"] for seed in (1, 2)]
    _require(not np.array_equal(*ranks), "the seed changes nothing")


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        *(names, scores, predict, batching, padding, target, loss, loss_weight, weights, vectors, new_items),
        *(provenance, loading, recommending, resuming, seeds),
    )
}


def _total(loss: Any) -> torch.Tensor:
    """Return a loss, or the sum of its parts."""
    return torch.stack([part.reshape(()) for part in loss]).sum() if isinstance(loss, tuple) else loss


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)


def _close(found: torch.Tensor, expected: torch.Tensor, otherwise: str) -> None:
    try:
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=ATOL)
    except AssertionError as error:
        raise ContractError(f"{otherwise} ({' '.join(str(error).split())})") from error
