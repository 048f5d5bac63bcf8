"""``recbole-llm tune``, and a run with ``--params_file``."""

import sys
from collections.abc import Mapping
from typing import Any

from recbole_llm.errors import ConfigError
from recbole_llm.tune.options import split_options
from recbole_llm.tune.search import resume_study, tune

HELP = """\
Hyper-parameter search on the validation score; the winner alone is evaluated on test.

  recbole-llm tune --model=NAME --dataset=NAME [--params_file=FILE] [--option=value ...] [--key=value ...]
  recbole-llm tune --resume=STUDY_DIR          continue a study (typing the same command again does it, too)

  --params_file=FILE     search space in RecBole's format; default: props/hyper/<Model>.test
                           learning_rate loguniform -9.21,-4.61    natural logarithms of the bounds
                           dropout uniform 0,0.9                   also quniform and qloguniform: low,high,step
                           n_layers choice [1,2,4]
  --algo=NAME            exhaustive, random or bayes (Optuna's TPE).
                           Default: exhaustive where max_evals covers the whole space, else bayes
  --max_evals=N          maximum number of trials (default 100; exhaustive: all); raising it continues a study
  --early_stop=N         end after N trials without improvement, 0: never (default 20; exhaustive: 0)
  --max_hours=H          start no new trial after H hours in trials
  --random_trials=N      bayes: trials drawn at random first (default 20)
  --pruner=NAME          none (default), median, percentile or halving: give up trials by early validation
  --prune_after=N        epochs that no trial is pruned in; first rung of halving (default 5)
  --prune_trials=N       median, percentile: finished trials needed at the same epoch (default 5)
  --prune_keep=SHARE     percentile: share of the trials that goes on (default 0.25)
  --prune_factor=N       halving: one of N trials goes on at every rung (default 3)
  --keep_trials=WHAT     light (default: settings, log and curve of every trial, the best one's weights),
                           all (all weights) or best (the best trial's directory only)
  --study=FOLDER         default: <checkpoint_dir>/study-<Model>-<dataset>-<hash>
  --retry_failed         run the settings of failed trials again
  --tool=Ray             several trials at once: --parallel=N --cpus_per_trial=N --gpus_per_trial=0.5
  --ray_address=ADDRESS  a Ray cluster (`auto`, `ray://head:10001`) whose machines all see the study's folder

Needs `pip install 'recbole-llm[tune]'` (Optuna). A study leaves study.csv (every trial, written when it ends),
study.html, best.yaml (the winner's settings for --config_files), trials/ and journal.log, which Optuna's own tools
read (`optuna-dashboard journal.log`).
"""


def tune_main(given: Mapping[str, Any]) -> int:
    """Carry out what the command line asks for; ``given`` are its parsed arguments."""
    options, settings = split_options(given)
    folder = settings.pop("resume", None)
    params_file = settings.pop("params_file", None)
    if folder is not None:
        if folder is True or not isinstance(folder, str):
            raise ConfigError("--resume needs the folder of a study here: --resume=saved/study-...")
        others = sorted({*settings, *(["params_file"] if params_file else [])} - {"show_progress"})
        if others:
            raise ConfigError(
                f"A study continues with its own settings: --resume={folder} takes options such as --max_evals=N, but "
                f"not {', '.join(others)}."
            )
        resume_study(folder, **options)
        return 0
    if "," in str(settings.get("model", "")):
        raise ConfigError(
            f"--model={settings['model']}: a study searches the settings of one model; start one for each."
        )
    if params_file is True:
        raise ConfigError("--params_file needs a file: --params_file=FILE.")
    if not sys.stderr.isatty():
        settings.setdefault("show_progress", False)  # bars are noise in a file
    tune(params_file=params_file, arguments=settings, **options)
    return 0
