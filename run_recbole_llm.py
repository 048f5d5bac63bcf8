"""python run_recbole_llm.py --model=LiteLLM4Rec --dataset=ml-100k [--any_key=value ...]."""

import sys

from recbole_llm.cli import main

if __name__ == "__main__":
    sys.exit(main())
