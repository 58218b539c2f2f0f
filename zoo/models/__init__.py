"""One family, one file: a frozen config dataclass and an nnx.Module."""
