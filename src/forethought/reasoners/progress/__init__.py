"""Thinking progress (Eisenstadt, Zimerman & Wolf 2025): read how much of a thought is over, show it, and hurry it."""
