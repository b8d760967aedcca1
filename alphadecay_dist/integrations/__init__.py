"""Thin layers into other people's trainers: a file a host, each loaded on demand, an extra each."""
