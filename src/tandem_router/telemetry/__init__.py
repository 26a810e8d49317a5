"""What happened, as spans, metrics and log lines. Only the composition root knows this room."""
