"""Training from scratch: token shards, recipes, the loop, evaluation."""
