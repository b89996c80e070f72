"""Which pages of the documentation the lenses are fitted on, and which they are judged on."""
from frugal.data.text import Page, documentation_pages

EVERY = 6                                           # each sixth page is held out
WINDOW = 132                                        # tokens of a test window; the first four are not judged


def fitting_pages() -> list[Page]:
    """Pages for fitting."""
    return [page for i, page in enumerate(documentation_pages()) if i % EVERY]


def held_out_windows(tokenizer, count: int = 9, length: int = WINDOW) -> list[list[int]]:
    """The first `length` tokens of `count` pages that no lens was fitted on; pages that are too short are left out."""
    pages = [tokenizer.encode(page.text) for i, page in enumerate(documentation_pages()) if not i % EVERY]
    windows = [tokens[:length] for tokens in pages if len(tokens) >= length][:count]
    if len(windows) < count:
        raise ValueError(f"only {len(windows)} held-out pages have {length} tokens: ask for fewer or shorter windows")
    return windows
