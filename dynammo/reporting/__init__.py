"""What a run came to, for people: figures, tables and one self-contained HTML report.

Everything here reads the results document (`metrics.json`) and computes no metric of its own.
"""
