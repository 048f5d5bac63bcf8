"""POD (Li, Zhang and Chen, CIKM 2023): prompt distillation, its sequential and top-N tasks.

Trained vectors stand before the words of the prompt; discrete templates are mixed in during training, and only the
bare form, ``user_1 item_2 item_3``, is left at test time. Whole-word embeddings number users and items, all pieces of
one alike. A training row is a random segment of a history (``train_view: segment``). Explanations are not here.
"""

from recbole_llm.model.generative import GenerativeRecommender


class POD(GenerativeRecommender):
    """Soft prompts before mixed templates, on a T5 that generates item codes; keys in ``props/model/POD.yaml``."""

    train_view = "segment"
