"""Text: tokenizer archives, tokenizers, incremental detokenizing and chat templates. No network, no clock."""
