"""A recipe for runs of a second: maskgit-train --config=tests/train/tiny_recipe.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def get_config():
    """Returns the settings; data.tokens is to be given."""
    from training import tiny_config

    config = tiny_config("")
    config.transformer.dropout_rate = 0.1
    return config
