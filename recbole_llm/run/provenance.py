"""Provenance of results: versions, commit, hardware, files and command line."""

import os
import platform
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from recbole_llm.config.values import SECRETS
from recbole_llm.contract import LLMRecommender
from recbole_llm.data.dataset import HistoryDataset

PACKAGES = (
    *("recbole-llm", "recbole", "torch", "transformers", "sentence-transformers", "peft", "bitsandbytes"),
    *("numpy", "pandas"),
)


def files_read(dataset: HistoryDataset, model: LLMRecommender | type[LLMRecommender]) -> list[Path]:
    """Return the atomic files of a run, the .item file included even if the dataset does not load it."""
    items = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    text = [items] if model.needs_item_text and items.is_file() else []
    return list(dict.fromkeys([*dataset.source_files, *text]))


def command_line(command: list[str]) -> str:
    """Return the command line, ready to be run again, without access tokens."""
    return shlex.join(re.sub(rf"^--({'|'.join(SECRETS)})=.*", r"--\1=(hidden)", part, flags=re.S) for part in command)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit and hardware of this process."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "packages": {package: package_version(package) for package in PACKAGES},
        "git": git_state(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": str(device),
    }


def _processor() -> str:
    """Return the name of the CPU if known, else its architecture."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, if it runs from one."""
    folder = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
