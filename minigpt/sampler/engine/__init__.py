"""What strategies are built from: the decode loop, beam search, drafting, random streams."""
