"""How two legs are tied together, per KV connector; knows no transport and no engine's brand."""
