"""How fast it is, beside what nothing could beat: one question a file, ``python -m benchmarks``."""
