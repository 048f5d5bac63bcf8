"""What a language model that reads prompts will cost, before the work starts: prompts, tokens, memory, minutes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recbole_llm import distributed
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.loader import EvaluationLoader, TrainLoader
from recbole_llm.evaluator.evaluator import Evaluator
from recbole_llm.progress import duration
from recbole_llm.trainer.steps import Steps

# Training prompts that are composed to count their tokens, and rows that are timed, after one that warms up.
COMPOSED, TIMED = 64, 4


def forecast(
    steps: Steps, evaluator: Evaluator, train_data: TrainLoader, valid_data: EvaluationLoader | None
) -> str | None:
    """Return a forecast of a stage in one line; None for a model that reads no prompts.

    A few prompts are composed, four training rows go forwards and backwards, and four users are ranked. Nothing that
    the training depends on changes: weights, random numbers, counts.

    Parameters
    ----------
    steps : Steps
        Of the stage.
    evaluator : Evaluator
    train_data : TrainLoader
    valid_data : FullSortLoader, optional
    """
    model, stage = steps.model, steps.stage
    if not model.reads_prompts:
        return None
    parts: list[str] = []
    with _unchanged(model, steps.device):
        if stage.epochs:
            parts.append(_training(steps, train_data))
        if valid_data is not None:
            parts.append(_validation(model, evaluator, valid_data))
    return f"Forecast: {'; '.join(parts)}" if parts else None


def _training(steps: Steps, train_data: TrainLoader) -> str:
    model, count = steps.model, train_data.sample_size
    rows = train_data.sample(COMPOSED).to(steps.device)
    length, answers = model.training_tokens(rows)
    tokens = length.float()
    usual = (tokens - tokens.mean()).abs().argsort()[: TIMED + 1]
    model.train()
    _seconds(lambda: _backward(steps, rows[usual[:1]]), steps.device)
    timed = usual[1:] if len(usual) > 1 else usual
    per_token = _seconds(lambda: _backward(steps, rows[timed]), steps.device) / float(tokens[timed].sum())
    whole = float(tokens.mean()) * count
    weights = sum(parameter.nbytes for parameter in model.parameters())
    largest = tokens.argsort(descending=True)[: train_data.step]
    activations = model.micro_batches.bytes_of(length[largest], answers[largest])
    minutes = duration(per_token * whole * steps.stage.epochs / distributed.world().size)
    return (
        f"{count:,} training prompts of about {tokens.mean():.0f} tokens (up to {tokens.max():.0f} of "
        f"{len(tokens)}), {whole / 1e6:.2f} million in an epoch, {minutes} of training, "
        f"{(weights + activations) / 2**30:.1f} GiB for weights and activations"
    )


def _validation(model: LLMRecommender, evaluator: Evaluator, valid_data: EvaluationLoader) -> str:
    users = evaluator.ranked_rows(model, valid_data)
    batch = next(iter(valid_data))[0][: TIMED + 1]
    model.eval()
    _seconds(lambda: evaluator.scores(model, batch[:1], valid_data.dataset), evaluator.device)
    timed = batch[1:] if len(batch) > 1 else batch
    seconds = _seconds(lambda: evaluator.scores(model, timed, valid_data.dataset), evaluator.device)
    model.start_evaluation()
    return f"{duration(seconds / len(timed) * users / distributed.world().size)} to rank {users:,} users"


def _backward(steps: Steps, rows: Any) -> None:
    with steps.autocast():
        loss = steps.model.calculate_loss(rows)
    loss.backward()
    steps.optimizer.zero_grad(set_to_none=True)


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextmanager
def _unchanged(model: LLMRecommender, device: torch.device) -> Iterator[None]:
    """Restore random numbers, the mode and the number of tokens at the end."""
    training, tokens = model.training, model.tokens_read
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    model.train(training)
    model.tokens_read = tokens
