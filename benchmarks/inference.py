"""Inference time as the LiteLLM4Rec paper measures it (arXiv 2402.09543, Sec. 3.2 and 5.3; Tables 1, 2, 5 and 6).

    python benchmarks/inference.py --dataset=ml-100k
    python benchmarks/inference.py --dataset=ml-100k --t5_vocabulary=FOLDER --batches=3 --cpu_time

Batches of 32 users; item vectors and prompts precomputed; timed from the model's input on the device to the top-20
list (`recbole_llm/evaluator/timing.py`). Loading of data, encoding of items and metrics stay outside; LlamaRec, whose
prompt depends on what it has retrieved, retrieves and puts token ids together inside. All rows in one run on one
machine; medians over the test batches. LiteLLM4Rec, P5 and POD have the shape of T5-small and random weights,
LlamaRec's language model is a Llama of the same depth, width and number of weights: time does not depend on their
values (a beam search goes on to the longest item code, as there are always beams left). The length of a prompt depends
on the vocabulary, so models that read words need T5's own: ``--t5_vocabulary`` names a folder with ``spiece.model``.

"generate() alone" is transformers' beam search on the same model, prompts, beams and lengths without what ours adds
(the encoder's keys and values once per user, not per beam): what a baseline would cost that is slow by our fault.
"""

import argparse
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.evaluator.timing import USERS, inference_times
from recbole_llm.prompt.decoding import item_scores
from recbole_llm.run.provenance import environment

# Causal attention packs short histories into the rows of one pass.
ONE_PASS = {"rec_llm_attention": "causal", "seq_pool": "last"}
# label, model, settings
ROWS = [
    ("LiteLLM4Rec (T5-small shape)", "LiteLLM4Rec", {"MAX_ITEM_LIST_LENGTH": 20}),
    ("LiteLLM4Rec, causal", "LiteLLM4Rec", {"MAX_ITEM_LIST_LENGTH": 20, **ONE_PASS}),
    ("LiteLLM4Rec, length 50", "LiteLLM4Rec", {"MAX_ITEM_LIST_LENGTH": 50}),
    ("LiteLLM4Rec, causal, length 50", "LiteLLM4Rec", {"MAX_ITEM_LIST_LENGTH": 50, **ONE_PASS}),
    ("SASRec", "SASRec", {"MAX_ITEM_LIST_LENGTH": 20}),
    ("SASRec, length 50", "SASRec", {"MAX_ITEM_LIST_LENGTH": 50}),
    ("BERT4Rec", "BERT4Rec", {"MAX_ITEM_LIST_LENGTH": 20}),
    ("GRU4Rec", "GRU4Rec", {"MAX_ITEM_LIST_LENGTH": 20}),
]
# P5 here is POD with a sentence in place of soft prompts, as in the paper (its Sec. 5.1.3).
P5 = {"soft_prompts": 0, "test_template": 0}
W_O_D = {"head": "projection"}
W_O_D_TID = {**W_O_D, "item_repr": "title"}
# The same with a language model of T5-small's shape; "alone" is measured a second time, see above.
GENERATIVE = [
    ("P5, 20 beams", "POD", P5),
    ("P5 w/o_d", "POD", {**P5, **W_O_D}),
    ("P5 w/o_d_TID", "POD", {**P5, **W_O_D_TID}),
    ("POD, 20 beams", "POD", {}),
    ("POD, 20 beams on the trie", "POD", {"decoding": "trie"}),
    ("POD w/o_d", "POD", W_O_D),
    ("POD w/o_d_TID", "POD", W_O_D_TID),
    ("LightLM, 20 beams on the trie", "LightLM", {"templates": ["{user} {history}"], "item_index": "random"}),
]
ALONE = ("POD, 20 beams",)
# The same with a causal language model. Random weights never end an answer: LLMSeqPrompt writes all max_new_tokens.
SEQ_PROMPT = {
    "rec_llm_init": "scratch",
    "tuning": "none",
    "gradient_checkpointing": False,
    "generate_batch_size": USERS,
}
SEQ_PROMPT |= {"llm": "tiny-random-bert", "unknown_names": "drop", "fill": "random", "max_new_tokens": 16}
CAUSAL = [
    ("LlamaRec, 20 candidates", "LlamaRec", {"tuning": "none"}),
    ("LLMSeqPrompt genitem, 20 answers of 16 tokens", "LLMSeqPrompt", {"n_samples": 20, **SEQ_PROMPT}),
]


def write_t5_small(folder: Path, vocabulary: Path | None) -> None:
    """Make a model folder of the shape of t5-small: 6 layers, 8 heads, d = 512, random weights."""
    torch.manual_seed(0)
    shape = T5Config(
        d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(shape).save_pretrained(folder)
    if vocabulary is None:
        ByT5Tokenizer().save_pretrained(folder)
    else:
        shutil.copy(vocabulary / "spiece.model", folder)


def write_llama(folder: Path, tokenizer: Path) -> None:
    """Make a Llama with as many weights per layer as t5-small's encoder and its vocabulary; random weights."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=512,
        intermediate_size=1368,  # three matrices, where T5 has two of 2048
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=4096,
        vocab_size=32128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


class GenerateAlone:
    """P5 or POD, decoding by transformers' ``generate`` as it is."""

    def __init__(self, model: Any) -> None:
        self.model, self.prompts, self.input_length = model, model.prompts, model.input_length

    def scores_of(self, prompts: Any, interaction: Any) -> torch.Tensor:
        """See GenerativeRecommender."""
        model = self.model
        hidden, mask = model.forward(prompts)
        output = model.t5.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            num_beams=model.settings.beams,
            num_return_sequences=model.settings.beams,
            max_new_tokens=model.trie.max_length,
            length_penalty=model.settings.length_penalty,
            early_stopping=model.settings.early_stopping,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        item = model.trie.item_of[model.trie.walk(output.sequences[:, 1:])].view(-1, model.settings.beams)
        score = output.sequences_scores.view(-1, model.settings.beams)
        return item_scores(item, score, model.fill, torch.zeros(len(item), dtype=torch.long, device=item.device))


def build(name: str, dataset: str, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Model in evaluation mode, past its last stage; test loader and device."""
    config = Config(name, dataset, config_dict={"show_progress": False, **settings})
    train, _, test = prepare_data(config, HistoryDataset(config))
    model = config.model_class(config, train.dataset).to(config["device"])
    for stage in getattr(model, "training_stages", [])[1:]:
        model.start_stage(stage)  # LiteLLM4Rec: item vectors as one table; LlamaRec: the ranker
    return model.eval(), test, config["device"]


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2, help="batches before the clock starts")
    parser.add_argument("--batches", type=int, help="at most so many; default: all of the test set")
    parser.add_argument("--t5_vocabulary", type=Path, help="folder with T5's spiece.model, for models that read words")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU; more than are idle make every row slower")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--cpu_time", action="store_true", help="ratios of CPU time: for a machine that is busy")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    clock = "median_cpu_ms" if options.cpu_time else "median_ms"

    table: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small, llama = folder / "t5-small-shape", folder / "llama-t5-small-shape"
        write_t5_small(small, options.t5_vocabulary)
        common = {"data_path": options.data_path, "use_gpu": not options.cpu, "embedding_cache_dir": temporary}
        rows = [
            (label, name, {"llm": "tiny-random-t5", "rec_llm": str(small), **settings} if "LLM4" in name else settings)
            for label, name, settings in ROWS
        ]
        if options.t5_vocabulary:
            write_llama(llama, small)
            words = {"MAX_ITEM_LIST_LENGTH": 20}
            rows += [(label, name, {"llm": str(small), **words, **more}) for label, name, more in GENERATIVE]
            causal = {"llm": str(llama), "rec_llm": str(llama), **words}
            rows += [(label, name, {**causal, **more}) for label, name, more in CAUSAL]

        def measure(label: str, model: Any, test: Any, device: torch.device) -> None:
            times = inference_times(model, test, device, options.k, options.batches, options.warmup)
            ratio = times[clock] / (table[0][-2] if options.cpu_time else table[0][2]) if table else 1.0
            keys = ("input_length", "median_ms", "mean_ms", "sd_ms", "median_cpu_ms")
            table.append([label, *(times[key] for key in keys), ratio])
            print(f"{label}: {times[clock]:.1f} ms", flush=True)

        for label, name, settings in rows:
            built = build(name, options.dataset, {**common, **settings})
            measure(label, *built)
            if label in ALONE:
                measure(f"{label}, generate() alone", GenerateAlone(built[0]), *built[1:])
    machine = environment(torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu"))
    print(
        f"{options.dataset}, batches of {USERS} users, top-{options.k}, float32, "
        f"{machine['gpu'] or machine['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    heads = ["model", "input length", "median ms", "mean ms", "sd ms", "median CPU ms", "times LiteLLM4Rec"]
    print(tabulate(table, heads, floatfmt=".2f"))


if __name__ == "__main__":
    main()
