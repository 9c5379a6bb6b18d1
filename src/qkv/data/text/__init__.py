"""Text data: pairs, corpora of text, and packing into windows."""
