"""P5 (Geng et al., arXiv 2203.13366), its sequential task: recommendation as language processing.

History and target are item codes in plain words: the prompt lists the history after a sentence, the decoder writes the
code of the next item. Whole-word embeddings number the words (Sec. 3.2); a training row is drawn as the released code
draws it (``train_view: p5``). The four other task families of the paper (rating, explanation, review, direct) are not
here, so a row is not the multi-task model of its tables.
"""

from recbole_llm.model.generative import GenerativeRecommender


class P5(GenerativeRecommender):
    """P5's sequential prompts, on a T5 that generates item codes; keys in ``props/model/P5.yaml``."""

    train_view = "p5"
