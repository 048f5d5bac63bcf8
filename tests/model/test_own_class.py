"""A model of one's own by ``package.module:Class``: run, resume, compare, tune, recommend, from the command line."""

import json
from pathlib import Path

import pytest

from recbole_llm.cli import main
from recbole_llm.config import Config
from recbole_llm.config.registry import default_settings, get_model, reference_of
from recbole_llm.errors import ConfigError
from tests.worlds import write_cycle

MODULE = """
import torch
from recbole_llm.contract import LLMRecommender
from recbole_llm.model.lrurec import LRURec


class {name}(LLMRecommender):
    defaults = {{"width": 4, "own_switch": True}}
    scores_are_products = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.table = torch.nn.Embedding(self.n_items, config["width"])

    def user_vectors(self, interaction):
        last = interaction[self.ITEM_SEQ_LEN][:, None] - 1
        return self.table(interaction[self.ITEM_SEQ].gather(1, last)[:, 0])

    def catalogue_vectors(self):
        return self.table.weight

    def calculate_loss(self, interaction):
        logits = self.user_vectors(interaction) @ self.table.weight.T
        return torch.nn.functional.cross_entropy(logits, interaction[self.POS_ITEM_ID])


class Misspelt({name}):
    defaults = {{"with": 4}}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.more = config["widht"], config["own_key"]


class Optional(Misspelt):
    config_keys = ("widht", "own_key")


class Reads({name}):
    '''Reads item texts.'''

    needs_item_text = True

    def __init__(self, config, dataset):
        from recbole_llm.text.item_vectors import item_vectors_of

        super().__init__(config, dataset)
        item_vectors_of(dataset, config, "sentence-transformers/all-MiniLM-L6-v2", self.logger)


class Wider(LRURec):
    defaults = {{"hidden_size": 16, "n_layers": 1}}


value = 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a module, ``mine_N``, that nobody has installed; a number, since modules are imported once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path not in ("", str(tmp_path))])
    name = f"mine_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(MODULE.format(name="Mine"))
    write_cycle(tmp_path / "data")
    return name


SETTINGS = ["--dataset=cycle", "--data_path=data", "--use_gpu=False", "--train_batch_size=64", "--show_progress=False"]


def run_dir_of(pattern):
    (folder,) = Path("saved").glob(pattern)
    return folder


def test_from_run_to_recommend(project):
    assert main([f"--model={project}:Mine", *SETTINGS, "--epochs=2"]) == 0
    folder = run_dir_of("Mine-cycle-*")
    results = json.loads((folder / "results.json").read_text())
    assert results["model"] == "Mine"
    assert results["notices"] == []
    assert f"model: {project}:Mine" in (folder / "config.yaml").read_text()
    assert main(["recommend", str(folder), "--out=top.csv", "--k=3"]) == 0
    assert len(Path("top.csv").read_text().splitlines()) == 1 + 40 * 3


def test_an_interrupted_run_goes_on(project, monkeypatch):
    from recbole_llm.trainer.trainer import RunTrainer

    original = RunTrainer._train_epoch

    def stop(self, data, epoch_idx, *args, **kwargs):
        if epoch_idx == 1:
            raise KeyboardInterrupt
        return original(self, data, epoch_idx, *args, **kwargs)

    monkeypatch.setattr(RunTrainer, "_train_epoch", stop)
    assert main([f"--model={project}:Mine", *SETTINGS, "--epochs=2"]) == 130
    monkeypatch.setattr(RunTrainer, "_train_epoch", original)
    folder = run_dir_of("Mine-cycle-*")
    assert main([f"--resume={folder}"]) == 0
    assert json.loads((folder / "results.json").read_text())["epochs"] == 2


def test_compare_and_tune(project):
    models = f"--model={project}:Mine,MostPopular"
    assert main(["compare", models, *SETTINGS, "--Mine.epochs=1", "--Mine.width=6", "--comparison_dir=table"]) == 0
    assert "Mine" in Path("table/table.txt").read_text()
    Path("space.test").write_text("width choice [4,8]\n")
    tune = ["tune", f"--model={project}:Mine", "--params_file=space.test", *SETTINGS, "--epochs=1"]
    assert main(tune) == 0
    assert any("Mine" in path.name for path in Path("saved").iterdir())


def test_defaults_types_and_unknown_keys(project):
    Path(f"{project}.yaml").write_text("width: 5\nfrom_file: 1.5\n")
    settings = {"data_path": "data", "use_gpu": False}
    config = Config(f"{project}:Mine", "cycle", config_dict={**settings, "from_file": 2.5})
    assert (config["model"], config["width"], config["own_switch"], config["from_file"]) == ("Mine", 4, True, 2.5)
    assert config.notices == []
    with pytest.raises(ConfigError, match="'own_swich' is not known. Did you mean 'own_switch'?"):
        Config(f"{project}:Mine", "cycle", config_dict={**settings, "own_swich": True})
    with pytest.raises(ConfigError, match="width: 'wide'"):
        Config(f"{project}:Mine", "cycle", config_dict={**settings, "width": "wide"})


def test_a_subclass_has_the_settings_of_its_parent(project):
    wider = get_model(f"{project}:Wider")
    settings, parent = default_settings(wider), default_settings(get_model("LRURec"))
    assert settings == {**parent, "hidden_size": 16, "n_layers": 1}
    assert reference_of(wider) == f"{project}:Wider"
    assert (reference_of(get_model("LRURec")), reference_of(get_model("SASRec"))) == ("LRURec", "SASRec")


@pytest.mark.parametrize("inside", ["evil.py", "evil/__init__.py", "code/evil.py"])
def test_a_run_directory_brings_no_code_along(project, monkeypatch, inside):
    assert main([f"--model={project}:Mine", *SETTINGS, "--epochs=1"]) == 0
    folder = run_dir_of("Mine-cycle-*").resolve()
    (folder / inside).parent.mkdir(exist_ok=True)
    (folder / inside).write_text("open('ran', 'w').close()\nclass Mine: pass\n")
    settings = (folder / "config.yaml").read_text().replace(f"{project}:Mine", "evil:Mine")
    (folder / "config.yaml").write_text(settings)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str((folder / inside).parent if inside.startswith("code") else folder))
    assert main(["recommend", ".", "--out=top.csv"]) == 2
    with pytest.raises(ConfigError, match="'evil' lies in the run directory"):
        get_model("evil:Mine")
    assert not list(folder.rglob("ran"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:Mine", "no module 'no_such_module'.*PYTHONPATH"),
        ("{}:Mime", "there is no 'Mime' in mine_.*Did you mean 'Mine'"),
        ("{}:value.of", "there is no 'of' in mine_"),
        ("{}.Mine", "Did you mean 'mine_[0-9]*:Mine'"),
        ("{}:value", "neither a model name nor a subclass"),
        ("{}:torch", "neither a model name nor a subclass"),
        ("{}.py:Mine", "names a file. Name the module, mine_[0-9]*:Mine,"),
        ("../src/{}.py:Mine", "names a file. Name the module, mine_[0-9]*:Mine,"),
        ("src/{}:Mine", "names a file. Name the module, mine_[0-9]*:Mine,"),
        ("Mine", "A class of your own is package.module:Class"),
        (":Mine", "package.module:Class"),
        ("{}:", "package.module:Class"),
        ("..x:Mine", "package.module:Class"),
        ("broken:Mine", "importing broken fails .*invalid syntax"),
        ("needs:Mine", "importing needs fails .*no_such_dependency"),
    ],
)
def test_references_that_lead_nowhere(project, reference, message):
    Path("broken.py").write_text("class Mine(:\n")
    Path("needs.py").write_text("import no_such_dependency\n")
    with pytest.raises(ConfigError, match=message):
        get_model(reference.format(project))


def test_a_key_without_a_default_is_an_error(project, capsys):
    assert main([f"--model={project}:Misspelt", *SETTINGS]) == 2
    assert "Misspelt reads config['widht'], which has no default. Did you mean 'width'?" in capsys.readouterr().err
    assert main([f"--model={project}:Optional", *SETTINGS, "--epochs=1"]) == 0
    assert Config(f"{project}:Optional", "cycle", config_dict={"data_path": "data"})["nobody_reads_this"] is None


def test_settings_of_the_encoder_must_be_declared(project, capsys):
    assert main([f"--model={project}:Reads", *SETTINGS, "--llm=tiny-random-t5"]) == 2
    assert "item_vectors_of reads item_pooling and item_max_tokens, which Reads does not" in capsys.readouterr().err


def test_help_on_a_class_and_its_keys(project, capsys):
    Path(f"{project}.yaml").write_text("from_file: 1.5  # Share of everything.\n")
    assert main(["help", f"{project}:Reads"]) == 0
    shown = capsys.readouterr().out
    assert f"{project}:Reads  Reads item texts.\n" in shown
    assert "  width = 4\n" in shown
    assert "  from_file = 1.5  Share of everything.\n" in shown
    assert main(["help", f"{project}:Wider"]) == 0
    assert "  hidden_size = 16  " in capsys.readouterr().out
    assert main(["help", "width"]) == 2
    assert "`recbole-llm help package.module:Class`" in capsys.readouterr().err


def test_what_belongs_to_another_command_is_said(project, capsys):
    assert main([f"--model={project}:Mine", *SETTINGS, "--Mine.width=8"]) == 2
    assert "Mine.KEY is for comparisons; in a single run, set 'width'" in capsys.readouterr().err
    assert main([f"--model={project}:Mine", "--resume=saved/x"]) == 2
    assert "recbole-llm --resume=saved/x" in capsys.readouterr().err


def test_debug_shows_the_traceback(project, capsys):
    Path(f"{project}.py").write_text(
        Path(f"{project}.py").read_text() + "\n\nMine.calculate_loss = lambda self, b: b[0][9]\n"
    )
    assert main([f"--model={project}:Mine", *SETTINGS]) == 2
    assert "Traceback" not in (shown := capsys.readouterr().err)
    assert "--debug" in shown
    assert main([f"--model={project}:Mine", *SETTINGS, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
