"""Reasoning strength (Sheng et al. 2025): predict how long a model will think, find what moves it, and move it."""
