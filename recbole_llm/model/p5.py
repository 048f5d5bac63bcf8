"""P5 (Geng et al., arXiv 2203.13366), its sequential task family: recommendation as language processing.

Prompts are sentences with item codes in plain words, and a T5 writes the answer (Sec. 3, appendix):

* 2-1 to 2-6: the history; the answer is the code of the next item. 2-13 is excluded from training: the unseen prompt.
* 2-7 to 2-10: the history and candidates to choose from; the answer is the next item's code.
* 2-11 and 2-12: the history and an item; the answer is yes or no.

Whole-word embeddings number the words (Sec. 3.2); a training row is drawn as the released code draws it
(``train_view: p5``). The other task families of the paper (rating, explanation, review, direct) are not implemented,
so results are not those of the multi-task model in its tables.
"""

import torch
from recbole.data.interaction import Interaction
from torch.nn.utils.rnn import pad_sequence

from recbole_llm.config import Config
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.errors import ConfigError
from recbole_llm.model.generative import GenerativeRecommender
from recbole_llm.prompt.p5 import WordPrompts

KINDS = ("sequential", "choice", "yes_no")
YES, NO = "yes", "no"
UNSEEN = "unseen"


class P5(GenerativeRecommender):
    """P5's sequential prompts, on a T5 that writes item codes; keys in ``props/model/P5.yaml``."""

    train_view = "p5"

    def __init__(self, config: Config, dataset: HistoryDataset) -> None:
        self.kinds = self._weights(config)
        super().__init__(config, dataset)
        end = [self.tokenizer.eos_token_id]
        answers = [self.tokenizer(word, add_special_tokens=False).input_ids + end for word in (NO, YES)]
        table = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True, padding_value=-100)
        self.register_buffer("answers", table.to(self.device), persistent=False)

    @staticmethod
    def _weights(config: Config) -> dict[str, float]:
        """Share of each kind of prompt in training; kinds with share 0 are omitted."""
        given = dict(config["prompt_weights"])
        unknown = sorted(set(given) - set(KINDS))
        weights = {kind: float(given.get(kind, 0)) for kind in KINDS}
        if unknown or not weights["sequential"] > 0:
            raise ConfigError(
                f"prompt_weights={given!r}: give the kinds {', '.join(KINDS)} a weight, and sequential, which is "
                "evaluated, one above 0."
            )
        weights = {kind: weight / sum(weights.values()) for kind, weight in weights.items() if weight > 0}
        if len(weights) > 1 and (config["task"] == "topn" or config["head"] == "projection"):
            key = "task=topn" if config["task"] == "topn" else "head=projection"
            raise ConfigError(
                f"prompt_weights={given!r} contradicts {key}, which has prompts of one kind only. Set "
                "prompt_weights={sequential: 1}."
            )
        return weights

    def template_keys(self, config: Config) -> dict[str, str]:
        """Return the setting with the training templates of every kind of prompt."""
        more = {"choice": "choice_templates", "yes_no": "yes_no_templates"}
        return {**super().template_keys(config), **{kind: key for kind, key in more.items() if kind in self.kinds}}

    def test_template_key(self, config: Config) -> str:
        """Return the setting with the evaluation template; with ``unseen`` it is one that training does not use."""
        key = super().test_template_key(config)
        if key != "test_template" or config[key] != UNSEEN:
            return key
        if config["unseen_template"] in config["templates"]:
            raise ConfigError(
                f"test_template={UNSEEN}: unseen_template={config['unseen_template']!r} is one of the templates that "
                "training uses. Remove it there, or give another."
            )
        return "unseen_template"

    def n_negatives(self, config: Config) -> int:
        """Return how many items besides the target there are to choose from, or to ask about."""
        return max(int(config["choice_candidates"]) - 1 if "choice" in self.kinds else 0, int("yes_no" in self.kinds))

    def training_rows(self, interaction: Interaction, task: str) -> tuple[WordPrompts, torch.Tensor]:
        """Return prompts, each of a random kind, and the tokens of their answers, (B, T), -100 after their end."""
        if len(self.kinds) == 1:
            return super().training_rows(interaction, task)
        target = interaction[self.POS_ITEM_ID]
        rows, device = len(target), target.device
        kind = torch.multinomial(torch.tensor([*self.kinds.values()]), rows, replacement=True)
        separators = len(self._separators)
        drawn = torch.stack([self.templates.draw(name, rows, separators) for name in self.kinds], dim=1)
        template = drawn.gather(1, kind[:, None])[:, 0]
        candidates = self.candidates_of(interaction)
        yes = torch.rand(rows, device=device) < 0.5
        other = torch.where(candidates[:, 0] == target, candidates[:, 1], candidates[:, 0])
        # A user who has had everything is never asked about anything else.
        item = torch.where(yes | (other == 0), target, other)
        prompts = self.prompt_table.build(
            interaction[self.USER_ID],
            interaction[self.ITEM_SEQ],
            interaction[self.ITEM_SEQ_LEN],
            template,
            self.max_prompt_tokens,
            self.settings.prompt_cut,
            candidates,
            item,
        )
        width = max(self.labels.shape[1], self.answers.shape[1])
        labels = torch.nn.functional.pad(self.labels[target], (0, width - self.labels.shape[1]), value=-100)
        asked = torch.tensor([name == "yes_no" for name in self.kinds], device=device)[kind.to(device)]
        answers = self.answers[(item == target).long()]
        answers = torch.nn.functional.pad(answers, (0, width - answers.shape[1]), value=-100)
        return prompts, torch.where(asked[:, None], answers, labels)
