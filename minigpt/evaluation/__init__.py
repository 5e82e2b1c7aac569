"""How well a model predicts text, and how varied the text is that it writes."""
