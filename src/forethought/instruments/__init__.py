"""Instruments over any Thought and any network: read states, fit probes and directions, steer, watch progress."""
