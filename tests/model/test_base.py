"""The model contract: defaults, and what it makes of RecBole's classes and of bare ones."""

import re
from pathlib import Path

import pytest
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

import recbole_llm
from recbole_llm.config import Config
from recbole_llm.config.adapter import AdaptedRecommender, adapt
from recbole_llm.config.registry import get_model, own_models, stock_models
from recbole_llm.contract import LLMRecommender, Reranker
from recbole_llm.data.dataset import HistoryDataset
from recbole_llm.data.loader import prepare_data
from recbole_llm.errors import ConfigError, UnsupportedError
from recbole_llm.quick_start import run
from tests.worlds import write_cycle

# Hooks that a model may leave alone, and what they then are.
ATTRIBUTES = {
    "training_stages": ("train",),
    "stages_start_afresh": False,
    "learned_earlier": (),
    "train_view": "prefix",
    "choices": (),
    "members": (),
    "needs_item_text": False,
    "accepts_new_items": False,
}


@pytest.fixture
def split(tmp_path):
    write_cycle(tmp_path)

    def make(model, **settings):
        given = {"data_path": str(tmp_path), "use_gpu": False, "show_progress": False, "train_batch_size": 16}
        config = Config(model, "cycle", config_dict={**given, "epochs": 1, **settings})
        train, _, test = prepare_data(config, HistoryDataset(config))
        return config, train, next(iter(test))[0]

    return make


@pytest.mark.parametrize("name", [*own_models(), *stock_models()])
def test_every_model_meets_the_contract(name):
    model = get_model(name)
    assert issubclass(model, LLMRecommender)
    assert model.__name__ == name
    assert get_model(name) is model
    # A hook is a method, or something of the type of its default.
    for hook in vars(LLMRecommender):
        if not hook.startswith("_") and not isinstance(getattr(model, hook), property):
            assert callable(getattr(model, hook)) == callable(getattr(LLMRecommender, hook))


def test_a_stock_model_has_the_defaults_and_its_own_scores(split):
    config, train, batch = split("SASRec")
    torch.manual_seed(1)
    adapted = config.model_class(config, train.dataset).eval()
    stock_class = config.model_class.__mro__[1]
    torch.manual_seed(1)
    stock = stock_class(config, train.dataset).eval()
    assert isinstance(adapted, stock_class)
    assert not issubclass(stock_class, LLMRecommender)  # RecBole itself is left alone
    assert {name: getattr(adapted, name) for name in ATTRIBUTES} == ATTRIBUTES
    assert adapted.state_dict().keys() == stock.state_dict().keys()
    assert torch.equal(adapted.full_sort_predict(batch), stock.full_sort_predict(batch))
    assert adapted.loss_weight(batch) == len(batch)
    assert (adapted.provenance(), adapted.stage_config("train"), adapted.batch_costs()) == (None, None, None)
    assert adapted.input_length(batch) == int(batch["item_length"].max())
    torch.testing.assert_close(
        adapted.user_vectors(batch) @ adapted.catalogue_vectors().T,
        stock.full_sort_predict(batch),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(UnsupportedError, match="SASRec learns an item from its interactions"):
        adapted.append_items(["new"])


class Bare(SequentialRecommender):
    """What RecBole asks for and nothing else."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = torch.nn.Embedding(self.n_items, 8)

    def calculate_loss(self, interaction):
        return torch.nn.functional.cross_entropy(self.full_sort_predict(interaction), interaction[self.ITEM_ID])

    def predict(self, interaction):
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]

    def full_sort_predict(self, interaction):
        last = interaction[self.ITEM_SEQ].gather(1, interaction[self.ITEM_SEQ_LEN][:, None] - 1)[:, 0]
        return self.item_embedding(last) @ self.item_embedding.weight.T


class Pairwise(LLMRecommender):
    """Reads a sampled negative of every row."""

    input_type = InputType.PAIRWISE
    scores_are_products = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = torch.nn.Embedding(self.n_items, 8)

    def user_vectors(self, interaction):
        return self.item_embedding(interaction[self.ITEM_SEQ]).sum(1)

    def catalogue_vectors(self):
        return self.item_embedding.weight

    def calculate_loss(self, interaction):
        users, table = self.user_vectors(interaction), self.catalogue_vectors()
        better = table[interaction[self.POS_ITEM_ID]] - table[interaction[self.NEG_ITEM_ID]]
        return -torch.nn.functional.logsigmoid((users * better).sum(-1)).mean()


@pytest.mark.parametrize("model", [Bare, Pairwise])
def test_a_class_without_a_property_file_runs(model, split, tmp_path):
    settings = {"data_path": str(tmp_path), "use_gpu": False, "show_progress": False, "epochs": 2}
    split(model)
    result = run(model, "cycle", config_dict={**settings, "checkpoint_dir": str(tmp_path / "saved")})
    assert 0 <= result["test_result"]["recall@10"] <= 1
    assert {"Bare": InputType.POINTWISE, "Pairwise": InputType.PAIRWISE}[model.__name__] == (
        split(model)[0]["MODEL_INPUT_TYPE"]
    )


def test_scores_and_predictions_follow_from_vectors(split):
    config, train, batch = split(Pairwise)
    model = config.model_class(config, train.dataset).eval()
    scores = model.full_sort_predict(batch)
    expected = model.user_vectors(batch) @ model.item_embedding.weight.T
    assert torch.equal(scores[:, 0], torch.full((len(batch),), -torch.inf))
    torch.testing.assert_close(scores[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.predict(batch), expected.gather(1, batch["item_id"][:, None])[:, 0], rtol=1e-4, atol=1e-4
    )
    bias = torch.randn(model.n_items)
    model.catalogue_bias = lambda: bias
    torch.testing.assert_close(model.full_sort_predict(batch)[:, 1:], (expected + bias)[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.predict(batch), (expected + bias).gather(1, batch["item_id"][:, None])[:, 0], rtol=1e-4, atol=1e-4
    )


def test_what_a_model_leaves_out_is_said(split):
    class Nothing(LLMRecommender):
        pass

    config, train, batch = split(Nothing)
    model = config.model_class(config, train.dataset)
    with pytest.raises(ConfigError, match="Nothing has nothing to train.* set epochs=0"):
        model.calculate_loss(batch)
    with pytest.raises(NotImplementedError, match="Nothing does not say how it scores: set scores_are_products"):
        model.full_sort_predict(batch)
    with pytest.raises(UnsupportedError, match="no vectors of items"):
        model.catalogue_vectors()


def test_a_view_that_there_is_not_is_named(split):
    class Misspelt(Pairwise):
        train_view = "sequenc"

    with pytest.raises(ConfigError, match="'sequenc'.*Did you mean 'sequence'"):
        split(Misspelt)


def test_adapting_is_idempotent_and_keeps_own_classes():
    assert adapt(Pairwise) is Pairwise
    assert adapt(Bare) is adapt(Bare)
    assert adapt(adapt(Bare)) is adapt(Bare)
    assert issubclass(adapt(Bare), AdaptedRecommender)
    assert (adapt(Bare).__module__, adapt(Bare).__qualname__, adapt(Bare).__doc__) == (
        Bare.__module__,
        Bare.__qualname__,
        Bare.__doc__,
    )
    assert issubclass(get_model("LlamaRec"), Reranker)


def test_nothing_probes_a_model_for_a_hook():
    hooks = {hook for cls in (LLMRecommender, Reranker) for hook in vars(cls) if not hook.startswith("_")}
    package = Path(recbole_llm.__file__).parent
    probes = {
        f"{path.relative_to(package)}: {found[0]}"
        for path in package.rglob("*.py")
        for found in re.finditer(r"(?:has|get)attr\([^()]*?, \"(\w+)\"", path.read_text(encoding="utf-8"))
        if found[1] in hooks
    }
    assert probes == set()
