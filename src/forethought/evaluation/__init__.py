"""Ranking, metrics, significance, leaderboard, report. Submodules load on first use."""
