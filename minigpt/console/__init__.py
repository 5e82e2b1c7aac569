"""One run of `python -m minigpt.generate`: its flags, what it shows while it writes, and the conversation of `-i`.

`flags` says what can be asked, `session` is one run, `screen` and `beam_screen` show it as it goes, `clock` times it, and
`repl` is one run after another on the same text.
"""
