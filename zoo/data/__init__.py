"""Data: where images come from (sources), how they are cut (transforms), and in which order (loader)."""
