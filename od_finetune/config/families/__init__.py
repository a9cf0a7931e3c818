"""Tables of feature extractors, a file per family: each has ROWS, which `config/extractors.py` gathers."""
