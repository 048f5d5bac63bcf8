"""Two trees of this repository side by side: results of smoke runs, and the settings of every property file.

    python benchmarks/behaviour.py record CHECKOUT --out=before.json [--only=LRURec,SASRec]
    python benchmarks/behaviour.py compare before.json after.json

``record`` runs every model of CHECKOUT with ``--smoke`` on ml-100k, which comes with RecBole, and resolves every file
of ``props/paper`` and ``props/preset`` to its effective settings. It takes about ten minutes on one core and goes on
where it was stopped. ``compare`` prints what differs and ends with status 1 if anything does: a restructuring shows
that it changed nothing, or lists what it changed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SETTINGS = """
import json, sys
from recbole_llm.config import Config
config = Config(config_file_list=[sys.argv[1]], arguments={})
names = sorted(config.final_config_dict)
print("SETTINGS " + json.dumps({name: repr(config[name]) for name in names}))
"""
MODELS = """
from recbole_llm.{module} import own_models, stock_models
print("MODELS " + " ".join(own_models() + ["SASRec", "BERT4Rec", "GRU4Rec", "S3Rec", "FDSA"]))
"""
# What may differ between two machines, folders or hours, and says nothing about behaviour.
VOLATILE = {"checkpoint_dir", "data_path", "device", "embedding_cache_dir", "run_name", "state"}
METRICS = ("test_result", "test_result_unmasked", "best_valid_result")


def _python(checkout: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd or checkout, env=environment, capture_output=True, text=True, check=False)


def _marked(output: str, mark: str) -> str | None:
    lines = [line for line in output.splitlines() if line.startswith(mark)]
    return lines[-1].removeprefix(mark) if lines else None


def models_of(checkout: Path) -> list[str]:
    """Names of the models to run: all of this package, and RecBole's that the papers compare with."""
    for module in ("config.registry", "registry"):
        found = _marked(_python(checkout, "-c", MODELS.format(module=module)).stdout, "MODELS ")
        if found:
            return found.split()
    raise SystemExit(f"{checkout} has no list of models.")


def smoke(checkout: Path, model: str, cache: Path) -> dict[str, Any]:
    """Metrics of a smoke run, or the last lines of what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        done = _python(
            checkout,
            str(checkout / "run_recbole_llm.py"),
            f"--model={model}",
            "--dataset=ml-100k",
            "--smoke",
            "--show_progress=False",
            "--use_gpu=False",
            f"--checkpoint_dir={folder}",
            f"--embedding_cache_dir={cache}",
            cwd=Path(folder),
        )
        results = list(Path(folder).glob("*/results.json"))
        if done.returncode != 0 or not results:
            return {"failed": (done.stderr or done.stdout).splitlines()[-3:]}
        report = json.loads(results[0].read_text())
        return {name: report[name] for name in METRICS if name in report}


def record(checkout: Path, out: Path, only: list[str] | None) -> None:
    """Write the record of a checkout, after every run."""
    kept: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"smoke": {}, "settings": {}}
    for file in sorted([*checkout.glob("props/paper/*.yaml"), *checkout.glob("props/preset/*.yaml")]):
        if file.stem in kept["settings"]:
            continue
        settings = _marked(_python(checkout, "-c", SETTINGS, str(file)).stdout, "SETTINGS ")
        kept["settings"][file.stem] = None if settings is None else json.loads(settings)
        out.write_text(json.dumps(kept, indent=1))
    cache = out.with_suffix(".cache")
    for model in only or models_of(checkout):
        if model not in kept["smoke"]:
            kept["smoke"][model] = smoke(checkout, model, cache)
            out.write_text(json.dumps(kept, indent=1))
            print(model, "failed" if "failed" in kept["smoke"][model] else "ran", flush=True)


def differences(before: Any, after: Any, place: str = "", tolerance: float = 1e-9) -> list[str]:
    """One line for each value that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [name for name in [*before, *(set(after) - set(before))] if name not in VOLATILE]
        return [
            line
            for name in names
            for line in differences(before.get(name), after.get(name), f"{place}/{name}", tolerance)
        ]
    numbers = isinstance(before, float) and isinstance(after, float)
    same = abs(before - after) <= tolerance if numbers else before == after
    return [] if same else [f"{place}: {before} -> {after}"]


def main() -> int:
    """Record a checkout, or compare two records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("checkout", type=Path)
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--only", type=lambda text: text.split(","))
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        record(given.checkout.resolve(), given.out.resolve(), given.only)
        return 0
    lines = differences(json.loads(given.before.read_text()), json.loads(given.after.read_text()))
    print("\n".join(lines) or "no difference")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
