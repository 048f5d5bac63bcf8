"""Inference time as the LiteLLM4Rec paper measures it (arXiv 2402.09543, Sec. 3.2 and 5.3).

    python benchmarks/inference.py --dataset=ml-100k
    python benchmarks/inference.py --dataset=ml-100k --t5_vocabulary=FOLDER --batches=3

Batches of 32 users; item vectors and prompts precomputed; timed from the model's input on the device to the top-20
list. Loading of data, encoding of items and metrics stay outside. All rows in one run on one machine; medians over the
test batches. LiteLLM4Rec, P5 and POD have the T5-small shape with random weights: time does not depend on their values
(a beam search goes on to the longest item code, as there are always beams left). The length of a prompt depends on the
vocabulary, so P5 and POD need T5's own: ``--t5_vocabulary`` names a folder with its ``spiece.model``.
"""

import argparse
import logging
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate
from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data

# label, model, settings
ROWS = [
    ("LiteLLM4Rec (T5-small shape)", "LiteLLM4Rec", {"MAX_ITEM_LIST_LENGTH": 20}),
    ("SASRec", "SASRec", {"MAX_ITEM_LIST_LENGTH": 20}),
    ("SASRec, length 50", "SASRec", {"MAX_ITEM_LIST_LENGTH": 50}),
    ("BERT4Rec", "BERT4Rec", {"MAX_ITEM_LIST_LENGTH": 20}),
    ("GRU4Rec", "GRU4Rec", {"MAX_ITEM_LIST_LENGTH": 20}),
]
# P5 here is POD without soft prompts, as in the paper, on P5's sentences (its Sec. 5.1.3).
W_O_D = {"head": "projection"}
W_O_D_TID = {**W_O_D, "item_repr": "title"}
GENERATIVE = [
    ("P5, 20 beams", "P5", {}),
    ("P5 w/o_d", "P5", W_O_D),
    ("P5 w/o_d_TID", "P5", W_O_D_TID),
    ("POD, 20 beams", "POD", {}),
    ("POD, 20 beams on the trie", "POD", {"decoding": "trie"}),
    ("POD w/o_d", "POD", W_O_D),
    ("POD w/o_d_TID", "POD", W_O_D_TID),
    ("LightLM, 20 beams on the trie", "LightLM", {"templates": ["{user} {history}"], "item_index": "random"}),
]


def write_t5_small(folder: Path, vocabulary: Path | None) -> None:
    """A model folder of the shape of t5-small: 6 layers, 8 heads, d = 512, random weights."""
    torch.manual_seed(0)
    shape = T5Config(
        d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(shape).save_pretrained(folder)
    if vocabulary is None:
        ByT5Tokenizer().save_pretrained(folder)
    else:
        shutil.copy(vocabulary / "spiece.model", folder)


def measure(
    model: torch.nn.Module, loader, device: torch.device, k: int, warmup: int, limit: int | None
) -> tuple[list[float], float]:
    """Milliseconds of each test batch, and the mean padded input length."""

    def recommend(given) -> torch.Tensor:
        interaction, prompts = given
        scores = model.full_sort_predict(interaction) if prompts is None else model.scores_of(prompts, interaction)
        scores = scores.view(len(interaction), -1)
        scores[:, 0] = -torch.inf
        return torch.topk(scores, k).indices

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    users = [batch[0].to(device) for batch in loader if len(batch[0]) == 32][:limit]
    batches = [(batch, model.prompts(batch) if hasattr(model, "prompts") else None) for batch in users]
    milliseconds = []
    with torch.inference_mode():
        for given in batches[:warmup]:
            recommend(given)
        for given in batches:
            synchronize()
            start = time.perf_counter()
            recommend(given)
            synchronize()
            milliseconds.append(1000 * (time.perf_counter() - start))
    lengths = [
        float(batch["item_length"].max()) if prompts is None else float(prompts.input_ids.shape[1])
        for batch, prompts in batches
    ]
    return milliseconds, statistics.mean(lengths)


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5, help="batches before the clock starts")
    parser.add_argument("--batches", type=int, help="at most so many; default: all of the test set")
    parser.add_argument(
        "--t5_vocabulary", type=Path, help="folder with T5's spiece.model; without it no P5 and no POD"
    )
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; more than are idle make every row slower")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)

    table = []
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "t5-small-shape"
        write_t5_small(small, options.t5_vocabulary)
        rows = ROWS + (GENERATIVE if options.t5_vocabulary else [])
        for label, name, settings in rows:
            if name == "LiteLLM4Rec":
                settings = {**settings, "llm": "tiny-random-t5", "rec_llm": str(small)}
            elif (label, name, settings) in GENERATIVE:
                settings = {**settings, "llm": str(small), "MAX_ITEM_LIST_LENGTH": 20}
            config = Config(
                name,
                options.dataset,
                config_dict={
                    "data_path": options.data_path,
                    "eval_batch_size": 32,
                    "use_gpu": not options.cpu,
                    "show_progress": False,
                    "embedding_cache_dir": folder,
                    **settings,
                },
            )
            train, _, test = prepare_data(config, HistoryDataset(config))
            model = config.model_class(config, train.dataset).to(config["device"])
            for stage in getattr(model, "training_stages", [])[1:]:
                model.start_stage(stage)  # item vectors as one table
            model.eval()
            times, length = measure(model, test, config["device"], options.k, options.warmup, options.batches)
            table.append([label, length, statistics.median(times), statistics.mean(times), statistics.pstdev(times)])
    first = table[0][2]
    for row in table:
        row.append(row[2] / first)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() and not options.cpu else None
    print(
        f"{options.dataset}, batches of 32 users, top-{options.k}, float32, {gpu or platform.processor() or 'CPU'}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    heads = ["model", "input length", "median ms", "mean ms", "sd ms", "to LiteLLM4Rec"]
    print(tabulate(table, heads, floatfmt=".2f"))


if __name__ == "__main__":
    main()
