"""What runs faster than it reads: each file does the same as a part of the model, to the bit, and a test compares them."""
