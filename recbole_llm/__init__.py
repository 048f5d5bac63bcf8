"""recbole-llm: LLM-based sequential recommenders inside RecBole."""

__version__ = "0.1.0"
