"""One decoding strategy a file, and nothing else: the listing is the menu."""
