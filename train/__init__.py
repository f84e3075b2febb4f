"""Training from scratch: token shards, recipes, the loop, evaluation."""

import maskgit_pt  # noqa: F401 - before anything slow, as it notes the parent process
