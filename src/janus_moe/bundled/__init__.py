"""The bundled model: weights, configuration and tokenizer, in the Hugging Face Qwen3-MoE layout."""
