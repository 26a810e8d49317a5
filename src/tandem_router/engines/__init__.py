"""Engine dialects: one file per engine protocol. Requests out, items in, metadata read; never a choice of worker."""
