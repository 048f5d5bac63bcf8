"""Inference time as the LiteLLM4Rec paper measures it (arXiv 2402.09543, Sec. 3.2): batches of 32 users.

A batch goes from the model's input, on the device, to its list of items. Loading data, encoding item texts, building
prompts and metrics are not included.
"""

import statistics
import time
from typing import Any

import torch

from recbole_llm.contract import LLMRecommender
from recbole_llm.progress import progress

USERS = 32
WARMUP = 2


@torch.inference_mode()
def inference_times(
    model: LLMRecommender,
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
    model : LLMRecommender
        In evaluation mode.
    loader : FullSortLoader
        Its batch size is ignored.
    device : torch.device
    k : int
        Length of the lists.
    batches : int, optional
        Maximum number of batches; default: all. Incomplete batches are skipped unless there are no others.
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
    inputs = [(batch, model.prepare(batch)) for batch in given]

    def recommend(batch: Any, prepared: Any) -> torch.Tensor:
        scores = model.scores_of(prepared, batch).view(len(batch), -1)
        scores[:, 0] = -torch.inf
        return torch.topk(scores, min(k, scores.shape[1] - 1)).indices

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for batch, prepared in inputs[:warmup]:
        recommend(batch, prepared)
    wall, cpu = [], []
    for batch, prepared in progress(inputs, "Time inference", show_progress):
        synchronize()
        start = time.perf_counter(), time.process_time()
        recommend(batch, prepared)
        synchronize()
        wall.append(1000 * (time.perf_counter() - start[0]))
        cpu.append(1000 * (time.process_time() - start[1]))
    lengths = [float(model.input_length(batch)) for batch in given]
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
