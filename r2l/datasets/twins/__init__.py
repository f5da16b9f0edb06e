"""Data sets that need no download: drawn by code, from a seed, through the published cameras."""
