"""What decoding methods write from the same prompts, measured: the parts of `python -m minigpt.compare`.

Named settings (`methods`) continue prompts (`prompts`) at a counted cost (`writing`), are measured (`measuring`, by the
formulas of `measures`), and shown (`report`).
"""
