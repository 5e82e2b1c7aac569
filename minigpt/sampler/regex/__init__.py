"""Text that must match a regular expression: `Regex` knows which tokens may come next, `processors.RegexMask` masks the rest.

From the expression to a tree (`pattern`), to an automaton over bytes (`automaton`), to the tokens that it lets
through (`token_trie`, `mask`).
"""
