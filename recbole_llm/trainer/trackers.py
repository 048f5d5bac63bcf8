"""Trackers of the training curve: the log, ``history.csv``, TensorBoard, Weights & Biases."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.utils import dict2str, set_color

from recbole_llm.checksums import recorded
from recbole_llm.config import Config
from recbole_llm.config.values import SECRETS
from recbole_llm.errors import MissingExtraError
from recbole_llm.evaluator.ranks import MANY_TIES, Ranks


class Trackers:
    """All trackers of a run; on processes other than the main one there are none.

    Parameters
    ----------
    config : Config
    run_dir : pathlib.Path, optional
        None: nothing is written to files.
    is_main : bool
    """

    def __init__(self, config: Config, run_dir: Path | None, is_main: bool = True) -> None:
        self.run_dir = run_dir if is_main else None
        self._tensorboard: Any = None
        self._wandb = start_wandb(config) if config["log_wandb"] and is_main else None

    def log(self, curve: Sequence[Mapping[str, Any]], to_files: bool = True) -> None:
        """Write the whole curve; its last row is new."""
        row = curve[-1]
        numbers = {key: value for key, value in row.items() if key not in ("stage", "epoch")}
        if self._wandb is not None:
            named = {f"{row['stage']}/{key}": value for key, value in numbers.items()}
            self._wandb.log({"epoch": row["epoch"], **named})
        if self.run_dir is None or not to_files:
            return
        write_curve(self.run_dir / "history.csv", curve)
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._tensorboard = SummaryWriter(str(self.run_dir / "tensorboard"))
        for key, value in numbers.items():
            self._tensorboard.add_scalar(f"{row['stage']}/{key}", value, row["epoch"])
        self._tensorboard.flush()

    def close(self) -> None:
        """Close files and connections; their threads would live as long as the process."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def validation_lines(
    where: str, seconds: float, score: float, result: Mapping[str, float], ranks: Ranks | None, decimals: int
) -> tuple[str, str]:
    """Return what the log says of a validation: its place, time and score; all metrics and many ties."""
    time, valid_score = set_color("time", "blue"), set_color("valid_score", "blue")
    ties = f" ({ranks.tied:.1%} of the targets tied)" if ranks and ranks.tied > MANY_TIES else ""
    rounded = {name: round(value, decimals) for name, value in result.items()}
    return (
        set_color(f"{where} evaluating", "green") + f" [{time}: {seconds:.2f}s, {valid_score}: {score:f}]",
        set_color("valid result", "blue") + f"{ties}: \n" + dict2str(rounded),
    )


def write_curve(file: Path, curve: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that need not have the same columns as a CSV file, with its checksum."""
    columns = list(dict.fromkeys(key for row in curve for key in row))
    with recorded(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(curve)


def start_wandb(config: Config) -> Any:
    """Start a Weights & Biases run with the merged settings, without access tokens.

    Raises
    ------
    MissingExtraError
        Without the package.
    """
    try:
        import wandb
    except ImportError as error:
        raise MissingExtraError("log_wandb=True needs the package wandb: pip install wandb.") from error
    settings = {key: value for key, value in config.merged.items() if key not in SECRETS}
    return wandb.init(project=config["wandb_project"], config=settings)
