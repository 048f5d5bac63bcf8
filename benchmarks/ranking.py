"""Time and memory of ranking 20 candidates by their letters, and of training for it, at prompts of several lengths.

    python benchmarks/ranking.py                       # on a CPU: --shape=small, float32
    python benchmarks/ranking.py                       # on a GPU: --shape=1b (Llama 3.2 1B), bfloat16 and 4 bits

Three tables from one run, each through LlamaRec's own code, with random weights: time does not depend on their values.

1. Letters against a list: one pass that reads 20 logits, and greedy decoding of the 20 titles in order, one a line,
   from the same prompt with a key-value cache. The list is as long as the titles are, and generated to its end.
2. The head where it is read (20 letters; 2 positions to train) against logits of all positions, as transformers
   computes them (and its loss) when it is not told otherwise: time and added memory of a batch.
3. Forward pass and LoRA step (forward, backward, AdamW on the adapters): tokens a second, memory, and the share of
   what one large matrix product reaches on the same device, and of the card's data sheet where it is known or given.

Prompts have 20 items of history and 20 candidates; titles of as many tokens as the length asks for, so that the length
printed may be a few tokens off the one asked for. Operations are counted as 2 per weight of the layers and token, and
per computed logit for the head, attention below the diagonal; a LoRA step as one forward pass and one backward pass
without gradients of the frozen weights.
"""

import argparse
import ctypes
import gc
import json
import logging
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import MissingExtraError
from recbole_llm.prompt.letters import PromptComposer, PromptTemplate
from recbole_llm.prompt.pieces import Prompts
from recbole_llm.prompt.verbalizer import ids_in_context
from recbole_llm.run.provenance import environment
from recbole_llm.run.submodel import build

SHAPES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8},
    "1b": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
        "rope_theta": 500000.0,
    },
}
# Dense bfloat16 products, 1e12 operations a second, by the makers' data sheets.
DATA_SHEET = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121}
CANDIDATES = HISTORY = 20
WORDS = [a + b for a in "bcdfghjklm" for b in "aeiou"]  # each of them a token


@dataclass
class Measured:
    """Median seconds of a call, the memory that it added and the highest there was meanwhile, in MB."""

    seconds: float
    added: float
    peak: float


class Device:
    """Clock and memory of the GPU, or of this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.torch = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
        self.gpu = self.torch.type == "cuda"
        self.clock = time.process_time if options.cpu_time else time.perf_counter

    def synchronize(self) -> None:
        """Wait until everything asked for is done."""
        if self.gpu:
            torch.cuda.synchronize(self.torch)

    @contextmanager
    def watched(self, result: dict[str, float]) -> Iterator[None]:
        """Write ``seconds``, ``added`` and ``peak`` of the body into ``result``."""
        gc.collect()
        self.synchronize()
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.torch)
            before = torch.cuda.memory_allocated(self.torch) / 2**20
        else:
            with suppress(OSError, AttributeError):  # Linux: give free memory back, forget the highest use so far
                ctypes.CDLL(None).malloc_trim(0)
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        start = self.clock()
        yield
        self.synchronize()
        result["seconds"] = self.clock() - start
        if self.gpu:
            result["peak"] = torch.cuda.max_memory_allocated(self.torch) / 2**20
        else:
            result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        result["added"] = result["peak"] - before

    def measure(self, call: Callable[[], Any], repeats: int, warm: bool = True) -> Measured:
        """Median seconds and highest memory of ``repeats`` calls, after one that does not count."""
        if warm:
            call()
        results: list[dict[str, float]] = []
        for _ in range(repeats):
            results.append({})
            with self.watched(results[-1]):
                call()
        seconds = statistics.median(result["seconds"] for result in results)
        return Measured(seconds, max(r["added"] for r in results), max(r["peak"] for r in results))

    def product(self, dtype: torch.dtype) -> float:
        """Operations a second of one large matrix product, the best of several."""
        size, tries = (8192, 10) if self.gpu else (1024, 5)
        a, b = (torch.randn(size, size, device=self.torch).to(dtype) for _ in range(2))
        return 2 * size**3 / min(self.measure(lambda: a @ b, 1, warm=i == 0).seconds for i in range(tries))


# ---- a model, its data, prompts of a length


def write_tokenizer(folder: Path, size: int) -> None:
    """Bytes merged into the words of the prompt and of the made-up titles, split as Llama 3 splits text."""
    tokenizer = Tokenizer(models.BPE())
    split = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = "".join(f" {word}" for word in WORDS)
    text = PromptTemplate.read("llamarec").text([words] * HISTORY, [words] * CANDIDATES, "ABCDEFGHIJKLMNOPQRST")
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 2, trainer)
    # As many tokens as the model has; nothing is ever made of the others.
    whole = json.loads(tokenizer.to_str())
    vocabulary = whole["model"]["vocab"]
    vocabulary.update({f"<unused {number}>": number for number in range(len(vocabulary), size)})
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1]).save_pretrained(
        folder
    )


def write_llm(folder: Path, shape: dict[str, Any], dtype: torch.dtype) -> None:
    """Make a model folder with random weights for ``--llm``."""
    config = LlamaConfig(
        **{"vocab_size": 32000, **shape}, max_position_embeddings=4096, bos_token_id=0, eos_token_id=1
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    write_tokenizer(folder, config.vocab_size)


def write_data(folder: Path, users: int) -> None:
    """Atomic files with as many users as a batch has, and one more."""
    (folder / "made-up").mkdir(parents=True)
    lines = [f"u{u}\ti{(7 * u + i) % 100}\t{i}" for u in range(users + 1) for i in range(HISTORY + 5)]
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (folder / "made-up" / "made-up.inter").write_text(header + "\n".join(lines), encoding="utf-8")
    items = "\n".join(f"i{i}\t{WORDS[i % 50]}" for i in range(100))
    (folder / "made-up" / "made-up.item").write_text(f"item_id:token\ttitle:token_seq\n{items}", encoding="utf-8")


class Ranker:
    """LlamaRec with random weights, and batches of prompts for it."""

    def __init__(self, folder: Path, options: argparse.Namespace, dtype: str, in_4bit: bool) -> None:
        settings = {
            **{"llm": str(folder / "llm"), "llm_dtype": dtype, "load_in_4bit": in_4bit, "use_gpu": not options.cpu},
            **{"data_path": str(folder), "show_progress": False, "max_prompt_length": 4000, "max_title_tokens": None},
            **{"gradient_checkpointing": options.gradient_checkpointing, "rank_batch_size": options.batch},
        }
        config = Config("LlamaRec", "made-up", config_dict=settings)
        train, *_ = prepare_data(config, HistoryDataset(config))
        self.model = build(config, train.dataset)
        self.model.start_stage("ranker")
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "llm")
        draw = torch.Generator().manual_seed(0)
        items = torch.stack([torch.randperm(100, generator=draw) + 1 for _ in range(options.batch)])
        items = items.to(config["device"])
        self.history, self.candidates = items[:, :HISTORY], items[:, HISTORY : HISTORY + CANDIDATES]
        self.length = torch.full((options.batch,), HISTORY, device=items.device)
        self.label = torch.zeros(options.batch, dtype=torch.long, device=items.device)
        adapters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(adapters, lr=1e-4)

    def prompts_of(self, tokens: int) -> tuple[Prompts, int]:
        """Build a batch of prompts of about this many tokens; also return the tokens per title."""
        composer, template = self.model.composer, PromptTemplate.read("llamarec")
        size = 1
        while True:
            titles = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(size)) for i in range(101)]
            made = PromptComposer(self.tokenizer, template, titles, composer.words, HISTORY, 4000)
            batch = made.to(self.history.device)(self.history, self.length, self.candidates)
            lacking = tokens - batch.ids.shape[1]
            if lacking <= 0:
                break
            size += -(-lacking // (HISTORY + CANDIDATES))
        assert ids_in_context(self.tokenizer, made.text([], [1]), made.words) == self.model.reader.answer_ids.tolist()
        self.model.composer = made
        return batch, size

    @torch.no_grad()
    def rank(self, rows: int) -> None:
        """Letters of the first rows."""
        self.model.eval()
        self.model._letter_logits(self.history[:rows], self.length[:rows], [self.candidates[:rows]])

    @torch.no_grad()
    def generate(self, prompts: Prompts, rows: int, tokens: int) -> None:
        """So many tokens behind the prompts of the first rows."""
        self.model.eval()
        ids = self.model.ranker.generate(
            input_ids=prompts.ids[:rows],
            attention_mask=prompts.mask[:rows],
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=self.model.composer.pad,
        )
        assert ids.shape[1] == prompts.ids.shape[1] + tokens

    @torch.no_grad()
    def rank_with_all_logits(self, prompts: Prompts) -> None:
        """Read the same letters from logits of every position."""
        self.model.eval()
        logits = self.model.ranker(input_ids=prompts.ids, attention_mask=prompts.mask).logits
        logits[:, -1, self.model.reader.letter_ids].float()

    def step(self, prompts: Prompts) -> None:
        """Run a training step on the answers."""
        self.model.train()
        here = torch.ones_like(self.candidates, dtype=torch.bool)
        self._learn(self.model.answer_loss(prompts.ids, prompts.mask, self.label, here))

    def step_with_all_logits(self, prompts: Prompts) -> None:
        """Run a training step with the loss of transformers, -100 on the prompt."""
        self.model.train()
        answer = torch.stack(
            [self.model.reader.answer_ids[self.label], torch.full_like(self.label, self.model.reader.eos)], dim=1
        )
        # The last position predicts nothing: the end token is an input here, and a label only.
        ids = torch.cat([prompts.ids, answer], dim=1)
        labels = torch.cat([torch.full_like(prompts.ids, -100), answer], dim=1)
        mask = torch.nn.functional.pad(prompts.mask, (0, 2), value=1)
        self._learn(self.model.ranker(input_ids=ids, attention_mask=mask, labels=labels).loss)

    def _learn(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def operations(self, rows: int, length: int, logits: int) -> tuple[float, float]:
        """Of a forward pass and of a LoRA step, with so many logits a row."""
        shape = self.model.ranker.get_base_model().config
        width, heads = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        layer = 2 * width * (heads + shape.num_key_value_heads * shape.head_dim) + 3 * width * shape.intermediate_size
        linear = 2.0 * rows * length * shape.num_hidden_layers * layer + 2.0 * rows * logits * width
        attention = 2.0 * rows * length * length * shape.num_hidden_layers * heads
        return linear + attention, 2 * linear + 3 * attention


# ---- tables


def measure_lists(ranker: Ranker, device: Device, options: argparse.Namespace) -> list[list[Any]]:
    """Letters against generated lists, a user at a time."""
    rows = []
    for asked in options.lengths:
        prompts, title = ranker.prompts_of(asked)
        names = [ranker.model.composer.titles[i] for i in ranker.candidates[0].tolist()]
        new = len(ranker.tokenizer("\n".join(names), add_special_tokens=False)["input_ids"])
        letters = device.measure(lambda: ranker.rank(1), options.repeat)
        listed = device.measure(lambda p=prompts, n=new: ranker.generate(p, 1, n), 1, warm=False)
        length = prompts.ids.shape[1]
        rows.append(
            [length, title, 1000 * letters.seconds, new, 1000 * listed.seconds, listed.seconds / letters.seconds]
        )
    return rows


def measure_head(ranker: Ranker, device: Device, options: argparse.Namespace) -> list[list[Any]]:
    """Compare the head at the answer with the head at every position, one batch at a time."""
    rows = []
    for asked in options.lengths:
        prompts, _ = ranker.prompts_of(asked)
        for name, one, every in (
            ("rank", lambda: ranker.rank(options.batch), lambda p=prompts: ranker.rank_with_all_logits(p)),
            ("LoRA step", lambda p=prompts: ranker.step(p), lambda p=prompts: ranker.step_with_all_logits(p)),
        ):
            few, row = device.measure(one, options.repeat), [prompts.ids.shape[1], name]
            try:
                whole = device.measure(every, options.repeat)
            except torch.OutOfMemoryError:
                rows.append([*row, 1000 * few.seconds, None, None, few.added, "out of memory"])
                continue
            ratio = whole.seconds / few.seconds
            rows.append([*row, 1000 * few.seconds, 1000 * whole.seconds, ratio, few.added, f"{whole.added:,.0f}"])
    return rows


def measure_speed(
    ranker: Ranker, device: Device, options: argparse.Namespace, kind: str, product: float, sheet: float | None
) -> list[list[Any]]:
    """Tokens a second, memory and share of the peak, a batch at a time."""
    rows, vocabulary = [], ranker.model.ranker.get_base_model().config.vocab_size
    for asked in options.lengths:
        prompts, _ = ranker.prompts_of(asked)
        length = prompts.ids.shape[1]
        forward = device.measure(lambda: ranker.rank(options.batch), options.repeat)
        step = device.measure(lambda p=prompts: ranker.step(p), options.repeat)
        for name, done, operations in (
            ("forward", forward, ranker.operations(options.batch, length, CANDIDATES)[0]),
            ("LoRA step", step, ranker.operations(options.batch, length + 1, 2 * vocabulary)[1]),
        ):
            rate = operations / done.seconds
            rows.append(
                [
                    *(kind, length, name, options.batch * length / done.seconds, options.batch / done.seconds),
                    *(done.peak, rate / 1e12, f"{rate / product:.0%}"),
                    f"{rate / sheet / 1e12:.0%}" if sheet else None,
                ]
            )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="default: 1b on a GPU, small on a CPU")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[300, 600, 900, 1200, 1500], help="tokens of a prompt"
    )
    parser.add_argument(
        "--batch", type=int, help="prompts at once in tables 2 and 3; default: 16 on a GPU, 4 on a CPU"
    )
    parser.add_argument("--tables", type=int, nargs="+", choices=[1, 2, 3], default=[1, 2, 3])
    parser.add_argument(
        "--dtypes", nargs="+", help="float32, bfloat16, 4bit; default: bfloat16 4bit, float32 on a CPU"
    )
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--repeat", type=int, default=3, help="the median counts; a generated list is timed once")
    parser.add_argument("--peak_tflops", type=float, help="of the card's data sheet, dense bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--cpu_time", action="store_true", help="CPU time of the process: for a machine that is busy")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    torch.set_num_threads(options.threads)
    device = Device(options)
    options.shape = options.shape or ("1b" if device.gpu else "small")
    options.batch = options.batch or (16 if device.gpu else 4)
    kinds = options.dtypes or (["bfloat16", "4bit"] if device.gpu else ["float32"])

    machine = environment(device.torch)
    name = machine["gpu"] or machine["processor"]
    sheet = options.peak_tflops or next(
        (peak for card, peak in DATA_SHEET.items() if card in name and device.gpu), None
    )
    for place, kind in enumerate(kinds):
        dtype = "bfloat16" if kind == "4bit" else kind
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_llm(folder / "llm", SHAPES[options.shape], getattr(torch, dtype))
            write_data(folder, options.batch)
            try:
                ranker = Ranker(folder, options, dtype, kind == "4bit")
            except MissingExtraError as error:
                print(f"\n{kind}: not measured. {error}")
                continue
        base = ranker.model.ranker.get_base_model()
        weights = sum(p.numel() for n, p in base.named_parameters() if "lora_" not in n) if kind != "4bit" else None
        trained = sum(group.numel() for group in ranker.optimizer.param_groups[0]["params"])
        print(
            f"\n{options.shape}, {kind}: "
            + (f"{weights / 1e6:,.0f} million weights, " if weights else "")
            + f"{trained / 1e6:.2f} million in adapters; {name}"
            + ("" if device.gpu else f", {options.threads} threads{', CPU time' if options.cpu_time else ''}")
            + f", torch {torch.__version__}"
        )
        if 1 in options.tables and place == 0:
            heads = ["prompt", "title", "letters, ms", "list, tokens", "list, ms", "times"]
            print("\n1. one user: letters in one pass, and a generated list of titles")
            print(tabulate(measure_lists(ranker, device, options), heads, floatfmt=".1f"))
        if 2 in options.tables and place == 0:
            heads = ["prompt", "", "at the answer, ms", "everywhere, ms", "times", "added MB", "added MB, everywhere"]
            print(f"\n2. the head at the answer, and everywhere; {options.batch} prompts")
            digits = (".0f", "", ".0f", ".0f", ".2f", ",.0f", "")
            print(tabulate(measure_head(ranker, device, options), heads, floatfmt=digits, colalign=["right"] * 7))
        if 3 in options.tables:
            product = device.product(getattr(torch, dtype))
            heads = [
                "",
                "prompt",
                "",
                "tokens/s",
                "prompts/s",
                "peak MB",
                "Tflop/s",
                "of a product",
                "of the data sheet",
            ]
            print(f"\n3. {options.batch} prompts; one large {dtype} product reaches {product / 1e12:.2f} Tflop/s")
            rows = measure_speed(ranker, device, options, kind, product, sheet)
            print(tabulate(rows, heads, floatfmt=("", ".0f", "", ",.0f", ".1f", ",.0f", ".3f", "", "")))
        del ranker


if __name__ == "__main__":
    main()
