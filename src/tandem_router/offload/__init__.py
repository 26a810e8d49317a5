"""What must not run on the event loop: the tokenizer pool, the template process, the health thread."""
