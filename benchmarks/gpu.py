"""What one GPU gives, in less than eight minutes: the other benchmarks one after the other, each within its time.

    python benchmarks/gpu.py                          # on a machine with a GPU
    python benchmarks/gpu.py --device=cpu --tiny      # a try on a CPU, in a minute or two; its figures mean nothing

inference  LiteLLM4Rec in T5-small's shape beside SASRec, BERT4Rec, GRU4Rec: 32 users of ml-100k to their top 20
           (arXiv 2402.09543 gives 6.13 ms)
training   LiteLLM4Rec, a target at every position with causal attention against one a row, seconds a step on ml-100k
ranking    LlamaRec on a random Llama of 1B's shape: letters against a list of titles, tokens a second, memory and
           share of the card's peak in bfloat16 and in 4 bits, LoRA steps
losses     ItemLoss and cross-entropy against up to a million items: seconds and memory
lists      the ten best of a million items for 512 users at once

Nothing is downloaded: data comes with RecBole, weights are random or bundled. A part that fails or needs longer than
its share is reported, and the next one runs. Exit status 1 if any part failed.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """A benchmark script with its arguments, for a GPU and as a try, and the seconds that it may take."""

    name: str
    script: str
    full: tuple[str, ...]
    tiny: tuple[str, ...]
    seconds: int
    switch: tuple[str, str] = ("", "--cpu")  # what tells the script to use a GPU, and a CPU

    def command(self, device: str, tiny: bool) -> list[str]:
        """Return the command line."""
        chosen = self.switch[device == "cpu"]
        return [
            sys.executable,
            str(HERE / self.script),
            *(self.tiny if tiny else self.full),
            *([chosen] * bool(chosen)),
        ]


PARTS = (
    Part("inference", "inference.py", ("--batches=20",), ("--batches=1", "--warmup=1"), 90),
    Part("training", "causal.py", ("--steps=12",), ("--steps=1", "--rows=4", "--length=5"), 90, ("--gpu", "")),
    Part("ranking", "ranking.py", ("--repeat=2",), ("--shape=tiny", "--repeat=1", "--tables=1", "--lengths=300"), 200),
    Part(
        "losses", "losses.py", ("--items", "100000", "1000000"), ("--items", "300", "--targets=16", "--repeat=1"), 60
    ),
    Part("lists", "serving.py", ("--items=1000000",), ("--items=3000", "--batch=16"), 30),
)


def run(part: Part, device: str, tiny: bool) -> str | None:
    """Run a part; return what went wrong, or None."""
    print(f"\n== {part.name}", flush=True)
    start = time.monotonic()
    try:
        # On a CPU a try may take long to import everything.
        done = subprocess.run(
            part.command(device, tiny), timeout=part.seconds * (10 if device == "cpu" else 1), check=False
        )
    except subprocess.TimeoutExpired:
        return f"{part.name}: stopped after its {part.seconds} seconds"
    print(f"({time.monotonic() - start:.0f} s)", flush=True)
    return f"{part.name}: exit status {done.returncode}" if done.returncode else None


def main() -> None:
    """Run the parts and say which of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: whether everything runs")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS))
    options = parser.parse_args()
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("There is no GPU here. Try the script with --device=cpu --tiny.")
    wanted = options.parts.split(",")
    failures = [run(part, options.device, options.tiny) for part in PARTS if part.name in wanted]
    found = [text for text in failures if text is not None]
    print("\n" + ("\n".join(found) or "All parts ran."))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
