"""The text side of a request: tokenizer, incremental detokenisation, stop strings, chat templates.

Knows nothing of workers, HTTP or torch.
"""
