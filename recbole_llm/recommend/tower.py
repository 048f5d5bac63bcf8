"""The user tower of a model that scores by products, as an ONNX graph that needs no torch to run."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_llm.errors import UnsupportedError
from recbole_llm.extras import optional
from recbole_llm.files import whole
from recbole_llm.layer.packing import static_shapes
from recbole_llm.recommend.products import Products
from recbole_llm.recommend.recommender import Recommender
from recbole_llm.run.logging import only_errors

INPUTS, OUTPUT = ("item_id_list", "item_length"), "user_vector"
# Batches of these sizes must give the original's vectors.
CHECKED, TOLERANCE = (1, 3, 8), 1e-4


class _Tower(nn.Module):
    """User vectors (B, d) of item ids (B, L) and lengths (B,)."""

    def __init__(self, products: Products, fields: tuple[str, str]) -> None:
        super().__init__()
        self.model, self.products, self.fields = products.model, products, fields

    def forward(self, items: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return self.products.users(Interaction(dict(zip(self.fields, (items, length), strict=True))))


def write_tower(recommender: Recommender, file: Path) -> dict[str, Any]:
    """Write the graph of a recommender's user vectors, and check it against the model.

    Parameters
    ----------
    recommender : Recommender
        On the CPU.
    file : pathlib.Path
        Ends in ``.onnx``.

    Returns
    -------
    dict
        Names, shapes and meaning of inputs and output, for ``export.json``.

    Raises
    ------
    MissingExtraError
        Without the extra ``onnx``.
    UnsupportedError
        If the model cannot be written as a graph, or the graph gives other vectors.
    """
    check_onnx()
    runtime = optional("onnxruntime", "onnx", "a user tower")
    dataset, name = recommender.dataset, recommender.config["model"]
    fields = (dataset.item_id_list_field, dataset.item_list_length_field)
    tower = _Tower(recommender.products, fields).eval()
    width, n_items = int(dataset.max_item_list_len), len(recommender.items)
    try:
        with _quiet(), static_shapes(), torch.no_grad():
            batch = torch.export.Dim("batch", min=1, max=2**20)
            program = torch.onnx.export(
                tower,
                _histories(3, width, n_items),
                dynamo=True,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes=({0: batch}, {0: batch}),
                verbose=False,
            )
            assert program is not None, "dynamo=True gives a program"
            with whole(file) as partial:
                program.save(str(partial))
    except Exception as error:  # what torch raises for a graph that it cannot write is of many kinds
        first = next(iter(str(error).strip().splitlines()), "")
        raise UnsupportedError(
            f"The user tower of {name} cannot be written as an ONNX graph ({type(error).__name__}: {first}). Its "
            "vectors can still be exported without --onnx."
        ) from error
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for size in CHECKED:
        _check(session, tower, _histories(size, width, n_items), name, file)
    return {
        "file": file.name,
        "inputs": {INPUTS[0]: ["batch", width], INPUTS[1]: ["batch"]},
        "output": {OUTPUT: ["batch", len(recommender.item_vectors()[0])]},
        "ids": f"int64: lines of items.txt, counted from 1; the newest {width}, oldest first, then 0",
    }


def check_onnx() -> None:
    """Raise MissingExtraError without the packages that write ONNX graphs."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        optional(package, "onnx", "a user tower")


def _histories(size: int, width: int, n_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw histories of all lengths, (size, width) and (size,)."""
    generator = torch.Generator().manual_seed(size)
    length = torch.linspace(1, width, size + 1).long()[1:]
    items = torch.randint(1, n_items + 1, (size, width), generator=generator)
    return items * (torch.arange(width) < length[:, None]), length


def _check(session: Any, tower: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], name: str, file: Path) -> None:
    """Compare the graph with the model on a batch; remove the file and raise UnsupportedError if they differ."""
    with torch.no_grad():
        expected = tower(*batch).numpy()
    try:
        (found,) = session.run([OUTPUT], {key: part.numpy() for key, part in zip(INPUTS, batch, strict=True)})
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
    except Exception as error:  # onnxruntime's own
        logging.getLogger().debug(error)
        difference = np.inf
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        file.unlink(missing_ok=True)
        raise UnsupportedError(
            f"The ONNX graph of the user tower of {name} gives other vectors than the model for {len(batch[1])} "
            f"histories (largest difference {difference:.2g}); it was removed. The vectors can still be exported "
            "without --onnx."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's notes on its progress and on packages that are not needed."""
    with only_errors(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
