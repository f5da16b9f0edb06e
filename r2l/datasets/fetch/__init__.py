"""Fetching the published data sets: only when asked, checked, and to the end after a break."""
