"""Short keyword-only functions on a session, one module for each noun.

Runs are named by their slug (``run-12``), jobs by their number. Functions that change something need a session of
``Database.write()``.
"""
