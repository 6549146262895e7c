"""Numeric code without I/O, used by the steps: grouping by key, accumulators, sketches, sessions."""
