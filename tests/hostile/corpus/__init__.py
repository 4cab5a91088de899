"""Bad inputs, counted: what a careless or hostile person may hand in, and what must come of each.

Each module has a function `cases()`. A case is tried with a limit on time and memory and must end
as one clear line, or as the documents say; anything else is a fault. See `judging`. Some are tests;
all of them are one command, which prints how many of each kind ended how:

    python -m tests.hostile.corpus
"""
