"""One module for each page, with one function that builds it."""
