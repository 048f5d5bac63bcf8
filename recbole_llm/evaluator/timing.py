"""Inference time as the LiteLLM4Rec paper measures it (arXiv 2402.09543, Sec. 3.2): batches of 32 users.

A batch goes from the model's input, on the device, to its list of items. Loading data, encoding item texts, putting
together prompts and metrics stay outside.
"""

import statistics
import time
from typing import Any

import torch
from tqdm import tqdm

USERS = 32
WARMUP = 2


@torch.inference_mode()
def inference_times(
    model: Any,
    loader: Any,
    device: torch.device,
    k: int,
    batches: int | None = None,
    warmup: int = WARMUP,
    show_progress: bool = False,
) -> dict[str, float]:
    """Time a model on the first rows of a split.

    Parameters
    ----------
    model : recbole SequentialRecommender
        In evaluation mode. One with ``prompts`` and ``scores_of`` gets its prompts ready-made; one whose input is not
        a vector per item of the history says by ``input_length(interaction)`` how long it is.
    loader : FullSortLoader
        Its batch size plays no part.
    device : torch.device
    k : int
        Length of the lists.
    batches : int, optional
        At most so many batches; default: all. Those that are not full are left out, unless there is no other.
    warmup : int
        Batches before the clock starts.
    show_progress : bool

    Returns
    -------
    dict
        ``users`` and ``k`` of a batch, ``batches``, ``input_length`` (positions of the padded input, mean),
        ``median_ms``, ``mean_ms``, ``sd_ms``, and ``median_cpu_ms``: CPU time of the process, of all threads together,
        in which waiting for other programs does not count.
    """
    full = loader.sample_size // USERS
    rows = torch.arange(full * USERS or loader.sample_size).split(USERS)[:batches]
    given = [loader.collate_fn(row)[0].to(device) for row in rows]
    prompted = hasattr(model, "scores_of")
    inputs = [(batch, model.prompts(batch) if prompted else None) for batch in given]

    def recommend(batch: Any, prompts: Any) -> torch.Tensor:
        scores = model.scores_of(prompts, batch) if prompted else model.full_sort_predict(batch)
        scores = scores.view(len(batch), -1)
        scores[:, 0] = -torch.inf
        return torch.topk(scores, min(k, scores.shape[1] - 1)).indices

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for batch, prompts in inputs[:warmup]:
        recommend(batch, prompts)
    wall, cpu = [], []
    for batch, prompts in tqdm(inputs, desc="Inference", ncols=100, leave=False, disable=not show_progress):
        synchronize()
        start = time.perf_counter(), time.process_time()
        recommend(batch, prompts)
        synchronize()
        wall.append(1000 * (time.perf_counter() - start[0]))
        cpu.append(1000 * (time.process_time() - start[1]))
    longest = getattr(model, "input_length", lambda batch: batch[model.ITEM_SEQ_LEN].max())
    lengths = [float(longest(batch)) for batch in given]
    return {
        "users": len(rows[0]),
        "k": k,
        "batches": len(rows),
        "input_length": statistics.mean(lengths),
        "median_ms": statistics.median(wall),
        "mean_ms": statistics.mean(wall),
        "sd_ms": statistics.pstdev(wall),
        "median_cpu_ms": statistics.median(cpu),
    }
