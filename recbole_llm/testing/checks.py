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
from safetensors.torch import load_file

from recbole_llm.config.adapter import AdaptedRecommender
from recbole_llm.contract import LLMRecommender
from recbole_llm.evaluator.checked import checked_scores
from recbole_llm.recommend import Recommender
from recbole_llm.run.experiment import experiment
from recbole_llm.run.folder import create_run_dir
from recbole_llm.run.load import load_run
from recbole_llm.testing.case import Case, NotApplicable
from recbole_llm.trainer.checkpoint import WEIGHTS, load_weights, save_weights
from recbole_llm.trainer.steps import loss_parts

# Scores of the same rows in different batches differ in their last digits.
RTOL, ATOL = 1e-4, 1e-5
# Largest difference, of equal numbers computed in float32, as a share of the largest of them.
ROUNDING = 1e-5


class ContractError(AssertionError):
    """Raised for a broken promise; the message names the check and the finding."""


def scores_of(model: LLMRecommender, batch: Interaction, n_items: int | None = None) -> torch.Tensor:
    """Return ``full_sort_predict`` in evaluation mode, (B, n_items)."""
    model.eval()
    with torch.no_grad():
        found = model.full_sort_predict(batch)
    return checked_scores(found, model, len(batch), n_items or model.n_items, "full_sort_predict")


def names(case: Case) -> None:
    """Check that no parameter, buffer or module has the name of a hook, which would hide it."""
    case.build()  # building one, for a run as well, requires it


def scores(case: Case) -> None:
    """Check that ``full_sort_predict`` scores the whole catalogue, finitely, and padding with ``-inf``."""
    model, _, batch = case.build()
    found = scores_of(model, batch)
    # The evaluator masks the padding of RecBole's models.
    masked = isinstance(model, AdaptedRecommender) or bool(torch.isneginf(found[:, 0]).all())
    _require(masked, "the score of item 0, padding, is not -inf: return self.mask_padding(scores)")
    _require(bool(torch.isfinite(found[:, 1:]).all()), "some scores are not finite")


def histories(case: Case) -> None:
    """Check that users with different histories get different scores, unless ``reads_history`` is False."""
    model, train, batch = case.build()
    differ = _rows_differ(scores_of(model, batch))
    if not differ and model.reads_history:
        case.require_training()  # a last layer that starts at 0 gives equal scores before the first step
        _losses(model, next(iter(train)).to(model.device))
        differ = _rows_differ(scores_of(model, batch))
    if not model.reads_history:
        _require(not differ, "reads_history is False, yet scores differ between users: leave it out")
        raise NotApplicable("its scores do not depend on the history")
    _require(
        differ,
        "users with different histories get the same scores. Histories are padded on the right: the newest item is at "
        "ITEM_SEQ_LEN - 1, not at -1. A class whose scores depend on no history sets reads_history = False",
    )


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
    before, given = scores_of(model, batch), batch[model.ITEM_SEQ]
    advice = "Histories are padded on the right: the newest item is at ITEM_SEQ_LEN - 1, not at -1"
    batch[model.ITEM_SEQ] = torch.nn.functional.pad(given, (0, 3))
    _close(scores_of(model, batch), before, f"three more columns of padding change the scores. {advice}")
    batch[model.ITEM_SEQ] = given[:, : int(batch[model.ITEM_SEQ_LEN].max())]
    _close(scores_of(model, batch), before, f"batches without columns of padding only change the scores. {advice}")


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
    losses = _losses(model, next(iter(train)).to(model.device))
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
            value = loss_parts(model.calculate_loss(part), model).sum()
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


def stored(case: Case) -> None:
    """Check that a run stores no table of numbers for the catalogue that a new model computes by itself.

    Whole numbers are not looked at: codes and digests are often stored on purpose, to stay what they were when the
    data change. Numbers such as text vectors make the checkpoint large, and stale where the texts change.
    """
    run_dir = Path(case.run()["run_dir"])
    weights = load_file(run_dir / WEIGHTS)
    models = [case.build(seed)[0] for seed in (1, 2)]
    fresh, other = (dict(model.named_buffers()) for model in models)
    computed = sorted(
        name
        for name, buffer in fresh.items()
        if name in weights and buffer.is_floating_point() and buffer.numel() >= models[0].n_items
        if torch.equal(buffer, other[name]) and torch.equal(buffer.cpu(), weights[name])
    )
    _require(
        not computed,
        f"the buffers {computed} are stored and equal those of a new model: register what can be computed again with "
        "persistent=False",
    )


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
        raise NotApplicable(
            "it knows items by their ids only; a model that can score an item by its text sets accepts_new_items and "
            "defines append_items"
        )
    known, before = model.n_items, scores_of(model, batch)
    model.append_items(["apple volume 0", "an unheard-of thing"])
    after = scores_of(model, batch, known + 2)
    _close(after[:, :known], before, "new items change the scores of the others")
    _require(bool(torch.isfinite(after[:, known:]).all()), "scores of new items are not finite")
    batch[model.ITEM_SEQ][:, 0] = known + 1
    _require(not torch.equal(scores_of(model, batch, known + 2), after), "a new item in the history changes nothing")


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
        *(names, scores, predict, histories, batching, padding, target, loss, loss_weight, weights, stored, vectors),
        new_items,
        *(provenance, loading, recommending, resuming, seeds),
    )
}


def _losses(model: LLMRecommender, batch: Interaction) -> list[float]:
    """Take 15 steps on a batch; return the loss before each."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(15):
        value = loss_parts(model.calculate_loss(batch), model).sum()
        _require(bool(torch.isfinite(value)), f"calculate_loss gave {value.item()}")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def _rows_differ(scores: torch.Tensor) -> bool:
    """Whether rows of scores differ by more than rounding, or in which items they score at all."""
    finite = torch.isfinite(scores[:, 1:])
    if bool((finite != finite[0]).any()):
        return True
    values = scores[:, 1:][:, finite[0]].double()
    return values.numel() > 0 and float((values - values[0]).abs().max()) > ROUNDING * float(values.abs().max())


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)


def _close(found: torch.Tensor, expected: torch.Tensor, otherwise: str) -> None:
    try:
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=ATOL)
    except AssertionError as error:
        raise ContractError(f"{otherwise} ({' '.join(str(error).split())})") from error
