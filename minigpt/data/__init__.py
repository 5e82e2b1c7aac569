"""From documents to token ids to training windows."""
