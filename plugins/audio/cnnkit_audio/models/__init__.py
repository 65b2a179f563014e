"""One paper, one file: the networks of the plugin."""
