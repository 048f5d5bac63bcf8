"""How fast the converters are, beside the bare parser in the same run, and whether memory stays flat.

    python benchmarks/convert.py                   throughput on made-up reviews, a few hundred MB
    python benchmarks/convert.py --memory_gb 5     also one conversion of a generated file of that size
    python benchmarks/convert.py --engines         also data engines as readers (docs/data-engine.md)

Everything is generated in a temporary folder (--folder) and deleted again. Unless it says wall, times are CPU seconds
of the whole process, best of five, so that other work on the machine counts little. Megabytes are 10^6 bytes.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from recbole_llm.convert import convert
from recbole_llm.convert.records import fast_loads, parse_literal, standard_loads

TEXT = 'the a great toy my son loves it broke after two weeks would buy again it\'s "perfect" for kids & adults'
WORDS = re.findall(r"\S+", TEXT)


def review(draw: random.Random, users: int, items: int) -> dict:
    """Return a review with the fields and about the length of the 2014 release."""
    return {
        "reviewerID": f"A{draw.randrange(users):013d}",
        "asin": f"B{draw.randrange(items):09d}",
        "reviewerName": "Jane Q. Public",
        "helpful": [draw.randrange(9), 9],
        "reviewText": " ".join(draw.choices(WORDS, k=draw.randrange(20, 180))),
        "overall": float(draw.randrange(1, 6)),
        "summary": " ".join(draw.choices(WORDS, k=5)),
        "unixReviewTime": 86_400 * draw.randrange(11_000, 16_000),
        "reviewTime": "04 21, 2014",
    }


def best(work: Callable[[], object], times: int = 5) -> float:
    """Return the least CPU seconds of several runs."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def throughput(folder: Path) -> None:
    """Print MB/s of JSON reviews, plain and gzip, and of Python literals."""
    draw = random.Random(0)
    records = [review(draw, 20_000, 5_000) for _ in range(20_000)]
    lines = [json.dumps(record).encode() for record in records]
    data = b"\n".join(lines) + b"\n"
    plain = folder / "reviews_Toys_and_Games_5.json"
    plain.write_bytes(data * 10)
    megabytes = len(data) * 10 / 1e6

    def bare() -> None:
        with plain.open("rb") as file:
            for line in file:
                fast_loads(line)

    def whole() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        convert("amazon-toys-2014", plain, folder / "out" / "toys", no_metadata=True)

    parser = "json" if fast_loads is standard_loads else "orjson"
    parse, full = best(bare), best(whole)
    print(f"JSON lines, {megabytes:.0f} MB, {len(lines) * 10:,} reviews of {len(data) / len(lines):.0f} bytes")
    print(f"  {parser} alone, line by line   {megabytes / parse:7.0f} MB/s")
    print(f"  convert (parse, sort, write) {megabytes / full:7.0f} MB/s   {full / parse:.2f} times as long")
    digest = best(lambda: hashlib.sha256(data * 10))
    print(f"  SHA-256 of the source        {megabytes / digest:7.0f} MB/s   part of it")

    literals = [repr(record) for record in records[:5000]]
    size = sum(map(len, literals)) / 1e6
    ours = best(lambda: [parse_literal(line) for line in literals])
    theirs = best(lambda: [ast.literal_eval(line) for line in literals])
    print(f"Python literals: parse_literal {size / ours:.1f} MB/s, ast.literal_eval {size / theirs:.1f} MB/s")

    steam = folder / "steam_reviews.json"
    games = [
        {"username": r["reviewerID"], "product_id": r["asin"], "date": "2017-12-17", "text": r["reviewText"]}
        for r in records
    ]
    steam.write_text("".join(f"{game!r}\n" for game in games) * 10)
    for workers in (1, 2):
        start = time.perf_counter()
        convert("steam", steam, folder / f"steam-{workers}", no_metadata=True, workers=workers)
        seconds = time.perf_counter() - start
        megabytes = steam.stat().st_size / 1e6
        print(f"  convert steam, {megabytes:.0f} MB, {workers} worker(s): {megabytes / seconds:.1f} MB/s wall")


ENGINES = {
    "recbole-llm convert": (
        "from recbole_llm.convert import convert\n"
        "convert('amazon-toys-2014', source, output, no_metadata=True, overwrite=True)\n"
    ),
    "DuckDB read_json, COPY": (
        "import duckdb\n"
        "engine = duckdb.connect(config={'threads': 1, 'memory_limit': '512MB'})\n"
        "types = {'reviewerID': 'VARCHAR', 'asin': 'VARCHAR', 'overall': 'DOUBLE', 'unixReviewTime': 'BIGINT'}\n"
        "read = f\"read_json('{source}', format = 'newline_delimited', columns = {types})\"\n"
        "engine.execute(f'CREATE TABLE t AS SELECT *, row_number() OVER () AS number FROM {read}')\n"
        "order = 'SELECT * EXCLUDE (number) FROM t ORDER BY unixReviewTime, number'\n"
        "engine.execute(f\"COPY ({order}) TO '{output}' (DELIMITER '\\t')\")\n"
    ),
    "polars scan_ndjson, write_csv": (
        "import polars as pl\n"
        "types = {'reviewerID': pl.String, 'asin': pl.String, 'overall': pl.Float64, 'unixReviewTime': pl.Int64}\n"
        "frame = pl.scan_ndjson(source, schema=types).collect(engine='streaming')\n"
        "frame.sort('unixReviewTime', maintain_order=True).write_csv(output, separator='\\t')\n"
    ),
}


def engines(folder: Path) -> None:
    """Print CPU seconds and peak memory of data engines as readers, and what they say about a line that is none."""
    source = folder / "reviews_Toys_and_Games_5.json"
    with source.open("rb") as whole:
        damaged = b"".join(whole.readline() for _ in range(1000)) + b'{"reviewerID": "A", "asin": "B", "over\n'
    (folder / "damaged" / source.name).parent.mkdir()
    (folder / "damaged" / source.name).write_bytes(damaged)
    peak = "int(re.search('VmHWM:\\\\s+(\\\\d+)', open('/proc/self/status').read())[1])"
    for name, code in ENGINES.items():
        program = f"import re, sys, time\nsource, output = sys.argv[1:]\n{code}print(time.process_time(), {peak})"
        for place in (source, folder / "damaged" / source.name):
            command = [sys.executable, "-c", program, str(place), str(folder / "engine")]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "POLARS_MAX_THREADS": "1"}
            )
            shutil.rmtree(folder / "engine", ignore_errors=True)
            (folder / "engine").unlink(missing_ok=True)
            if place == source and not done.returncode:
                seconds, kilobytes = done.stdout.split()
                print(f"{name:30} {float(seconds):5.1f} CPU s, peak {int(kilobytes) / 1e3:.0f} MB")
            else:
                last = done.stderr.strip().splitlines()[-1:] or ["(nothing: the line is read as missing values)"]
                print(f"    line 1001 cut short: {last[0].replace(str(folder), '')[:160]}")


def memory(folder: Path, gigabytes: float) -> None:
    """Print the peak memory of converting a quarter of a generated file, and the whole."""
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=120)) for _ in range(200)]
    path = folder / "reviews_Toys_and_Games_5.json"
    # VmHWM and not ru_maxrss, which a child inherits from the process that started it.
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from recbole_llm.convert import convert\n"
        "def peak(): return int(re.search('VmHWM:\\\\s+(\\\\d+)', Path('/proc/self/status').read_text()).group(1))\n"
        "import time\n"
        "before, cpu = peak(), time.process_time()\n"
        "r = convert('amazon-toys-2014', sys.argv[1], sys.argv[2], no_metadata=True)\n"
        "print(r.counts.users, r.counts.items, r.counts.interactions, before, peak(), time.process_time() - cpu)\n"
    )
    print(f"memory: 200,000 users, 50,000 items, reviews of about 700 bytes, up to {gigabytes:g} GB")
    with path.open("wb") as file:
        for share in (0.25, 1.0):
            while file.tell() < share * gigabytes * 1e9:
                block = [
                    f'{{"reviewerID": "A{draw.randrange(200_000):013d}", "asin": "B{draw.randrange(50_000):09d}", '
                    f'"reviewText": {json.dumps(draw.choice(texts))}, "overall": {draw.randrange(1, 6)}.0, '
                    f'"unixReviewTime": {86_400 * draw.randrange(11_000, 16_000)}}}\n'
                    for _ in range(20_000)
                ]
                file.write("".join(block).encode())
            file.flush()
            done = subprocess.run(
                [sys.executable, "-c", code, str(path), str(folder / "memory" / "toys")],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(f"the conversion failed ({done.returncode}):\n{done.stderr}")
            users, items, rows, base, peak, seconds = done.stdout.split()
            size = path.stat().st_size
            print(
                f"  {size / 1e9:5.2f} GB  {int(rows):>10,} interactions  {users} users  {items} items  "
                f"peak {int(peak) / 1e3:6.0f} MB (of which {int(base) / 1e3:.0f} before)  {float(seconds):.0f} CPU s  "
                f"{size / 1e6 / float(seconds):.0f} MB/s"
            )
            shutil.rmtree(folder / "memory")


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory_gb", type=float, default=0, help="size of the generated file; 0 leaves it out")
    parser.add_argument("--engines", action="store_true", help="data engines as readers; needs polars")
    parser.add_argument("--folder", help="where to generate (default: the system's temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recbole-llm-convert-", dir=given.folder) as folder:
        throughput(Path(folder))
        if given.engines:
            engines(Path(folder))
        if given.memory_gb:
            free = shutil.disk_usage(folder).free / 1e9
            if free < 1.3 * given.memory_gb:
                sys.exit(f"only {free:.0f} GB free in {folder}; --folder names another place")
            memory(Path(folder), given.memory_gb)
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
