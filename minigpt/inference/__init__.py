"""What runs faster than it reads: each file computes what a part of the model computes, and a test compares them."""
