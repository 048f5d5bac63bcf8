"""Tokenizers of the kinds that rankers have, small enough to make here."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recbole_llm.llm.tiny import tiny_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "llamarec_prompt"
# How Llama 3 splits text before it merges bytes (its tokenizer.json).
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama2():
    """The golden set's: BPE over characters with byte fallback, a blank put before every text."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDEN / "toy_tokenizer.json"),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
    )


def llama3(texts, size=600):
    """BPE over bytes with Llama 3's splitting, which joins ")" with line breaks, ":" with one, and so on."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])


def by_name(name, texts):
    """``llama2``, ``llama3`` or ``bytes``."""
    return {"llama2": llama2, "llama3": lambda: llama3(texts), "bytes": tiny_tokenizer}[name]()
