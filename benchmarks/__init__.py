"""Side by side with torch.nn, in one run: `python -m benchmarks --help`."""
