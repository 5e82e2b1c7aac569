"""A page that shows a run: what the model attends to, what each layer predicts, how each token came to be chosen.

    from minigpt.interp.page import explore, load

    explore(model, tokenizer, "Once upon a time")          # in a notebook, the page itself
    explore(model, tokenizer, "Once upon a time", Sample(top_p=0.9, seed=7)).save("page.html")
    load("page.html")["runs"][0]["tokens"]

The page is one HTML file that needs nothing else: page.html, page.css and script/*.js, put together with the data.
"""

from minigpt.interp.page.page import Page, explore
from minigpt.interp.page.reading import load

__all__ = ["Page", "explore", "load"]
